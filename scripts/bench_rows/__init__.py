"""The rows of bench: each a function ``(sizes, seed) -> Pair`` that makes both sides of one comparison.

To add one, write a function as those in ``training.py`` and name its file here.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

#: Name of a row -> the file in this folder that holds it; its function has the same name, with underscores.
ROWS: dict[str, str] = {
    "plan": "planning",
    "oracle": "oracle",
    "train-nll": "training",
    "train-bilevel": "training",
    "repeats-side-by-side": "repeats",
    "repeats-side-by-side-small": "repeats",
    "agents-side-by-side": "repeats",
    "agents-side-by-side-small": "repeats",
    "train-bilevel-fisher": "outer",
    "fisher-vector-product": "outer",
    "outer-solve": "outer",
    "episode": "peers",
    "plan-float32-mbrl-lib": "peers",
    "plan-bfloat16-mbrl-lib": "peers",
    "plan-float32-torchrl": "peers",
    "plan-bfloat16-torchrl": "peers",
    "train-mbrl-lib": "peers",
    "sac-updates": "sac",
    "sac-updates-fast": "sac",
    "act-by-plan": "acting",
    "act-by-policy": "acting",
    "continual-task": "continual",
}


def load_row(name: str) -> Callable[..., Any]:
    """The function of that row; importing its file brings in PyTorch."""
    found: Callable[..., Any] = getattr(
        import_module(f"bench_rows.{ROWS[name]}"), name.replace("-", "_")
    )
    return found
