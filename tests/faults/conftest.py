"""``make faults`` runs every fault test at full length; ``make test`` a short part of each."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))  # my_task.py
sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))


@pytest.fixture
def times() -> float:
    """How much of the full length is asked for, 0 to 1."""
    return float(os.environ.get("FAULTS", "0.01"))
