"""What the rows of each script hold, by "The scripts' contract"; read as it may have been edited.

Numbers come back as floats: null, NaN and what is too large to be squared as NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, Any]
Check = Callable[[Any], Any]


def number(value: Any) -> float:
    """Raises ValueError for what is no number."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError
    return float(value) if -1e100 < value < 1e100 else math.nan


def text(value: Any) -> str:
    """Raises ValueError for what is no text."""
    if not isinstance(value, str):
        raise ValueError
    return value


def numbers(value: Any) -> list[float]:
    """Raises ValueError for what is no list of numbers."""
    if not isinstance(value, list):
        raise ValueError
    return [number(one) for one in value]


def texts(value: Any) -> list[str]:
    """Raises ValueError for what is no list of texts."""
    if not isinstance(value, list):
        raise ValueError
    return [text(one) for one in value]


def square(value: Any) -> list[list[float]]:
    """Raises ValueError for what is no matrix [T, T] with T >= 1."""
    if not isinstance(value, list) or not value:
        raise ValueError
    rows = [numbers(row) for row in value]
    if any(len(row) != len(rows) for row in rows):
        raise ValueError
    return rows


def scores(value: Any) -> dict[str, float]:
    """The numbers by their names; other things in it are passed over. Raises ValueError for no object."""
    if not isinstance(value, dict):
        raise ValueError
    return {name: number(v) for name, v in value.items() if type(v) in (int, float, type(None))}


def rising(value: Any) -> float:
    """A step: finite. Raises ValueError otherwise."""
    found = number(value)
    if not math.isfinite(found):
        raise ValueError
    return found


#: What every row of a script holds.
REQUIRED: Mapping[str, Mapping[str, Check]] = {
    "train": {"seed": rising, "step": rising, "mean": number},
    "plan": {"env_id": text, "planner": text, "seed": rising, "return": number},
    "offline": {"policy": text, "seed": rising, "mean": number},
    "compare": {
        **{"method": text, "dataset": text, "seed": rising, "n_train": rising},
        **{"nrmse": number, "nll": number},
    },
    "continual": {"method": text, "sequence": text, "seed": rising},
    "classify": {
        **{"method": text, "dataset": text, "seed": rising, "n_train": rising},
        **{"accuracy": number, "nll": number, "ece": number, "brier": number},
    },
    "tune": {"method": text, "trial": rising, "value": number},
    "theory": {"part": text},
    "bench": {"name": text, "ours": number, "peer": number, "ratio": number},
}

#: What a row may hold beside it; a value that is there must be of that kind.
OPTIONAL: Mapping[str, Mapping[str, Check]] = {
    "train": {"policy_mean": number, "cpu_seconds": number, "health": scores, "outer": scores},
    "plan": {"wall_seconds": number},
    "offline": {"wall_seconds": number},
    "compare": {
        **dict.fromkeys(("ncrps", "calibration_error", "coverage_90", "return"), number),
        **dict.fromkeys(("k", "k_nrmse", "k_nll", "k_coverage_90", "coverage"), numbers),
        **{"train_seconds": number, "outer": scores},
    },
    "continual": {
        **dict.fromkeys(("nll", "rmse", "k_rmse", "return", "success", "accuracy", "ece"), square),
        **{"train_seconds": numbers, "tasks": texts},
    },
    "classify": {
        **{"learning_rate": rising, "balanced_accuracy": number, "train_seconds": number},
        **dict.fromkeys(("count", "confidence", "correct"), numbers),
        **{"outer": scores, "reward_matrix": square, "labels": texts},
    },
    "tune": {"learning_rate": rising},
    "theory": {
        **{"problem": text, "solver": text, "form": text, "dim": rising},
        **{"distance": numbers, "gap": numbers, "error": number},
    },
    "bench": {"unit": text, "peer_name": text, "threads": rising},
}

#: Columns of one length.
_TOGETHER = (
    ("k", "k_nrmse", "k_nll", "k_coverage_90"),
    ("count", "confidence", "correct"),
    ("reward_matrix", "labels"),
    ("nll", "rmse", "k_rmse", "return", "success", "accuracy", "ece", "tasks", "train_seconds"),
)


def checked(script: str, row: Row) -> Row:
    """The row with its numbers as floats. Raises KeyError with the name of a column that is missing or
    cannot be."""
    kept = dict(row)
    for checks, needed in ((REQUIRED.get(script, {}), True), (OPTIONAL.get(script, {}), False)):
        for name, check in checks.items():
            if name not in row and not needed:
                continue
            try:
                kept[name] = check(row[name])
            except (ValueError, KeyError):
                raise KeyError(name) from None
    known = {*REQUIRED.get(script, {}), *OPTIONAL.get(script, {})}
    for names in _TOGETHER:
        present = [n for n in names if n in known and isinstance(kept.get(n), list)]
        for name in present[1:]:
            if len(kept[name]) != len(kept[present[0]]):
                raise KeyError(name)
    return kept
