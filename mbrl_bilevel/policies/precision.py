"""What a network may compute in; apart from ``fast_inference``, so that settings name it without PyTorch."""

from __future__ import annotations

from typing import Literal

#: "float32" is the type that the parameters have.
Precision = Literal["float32", "bfloat16"]
