"""Rows of a study repeat by repeat: those of one method, and the pairs of two methods that share a split."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from mbrl_bilevel.base.rows import Row

T = TypeVar("T")


def once(rows: Sequence[Mapping[str, Any]], *names: str) -> list[Row]:
    """The different values of the columns ``names``, a dict for each, in the order in which they first come."""
    seen = dict.fromkeys(tuple(row[name] for name in names) for row in rows)
    return [dict(zip(names, values, strict=True)) for values in seen]


def repeats(rows: Sequence[Mapping[str, Any]], **key: Any) -> dict[int, Mapping[str, Any]]:
    """The rows that hold these values, ``repeats(rows, method="nll", dataset="wine")``, by their seed."""
    return {row["seed"]: row for row in rows if key.items() <= row.items()}


def pairs(ours: Mapping[int, T], theirs: Mapping[int, T]) -> list[tuple[T, T]]:
    """What both have by the same seed, in the order of seeds; a repeat may have failed for one of them."""
    return [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]


def number(value: float | None) -> float:
    """As rows.jsonl gives it back: what was not finite is null there, and NaN here."""
    return math.nan if value is None else value
