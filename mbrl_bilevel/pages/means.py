"""Means over repeats with their intervals, from the rows of a run; not finite stays not finite."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pandas as pd

from mbrl_bilevel.evaluation.statistics import interval

#: Points of a line at most: a curve looks the same with more, and the page stays small.
MOST_POINTS = 60


@dataclass(frozen=True)
class Mean:
    """The mean of ``n`` repeats and the ends of its 95 % bootstrap interval (None with fewer than two).

    ``lost`` of them were not finite; the mean then is NaN.
    """

    mean: float
    low: float | None = None
    high: float | None = None
    n: int = 1
    lost: int = 0

    @property
    def centre(self) -> str:
        """The mean, or how many repeats are not finite."""
        return f"{self.lost} of {self.n} not finite" if self.lost else said(self.mean)

    @property
    def ends(self) -> str:
        """``[low, high]``, empty without an interval."""
        if self.lost or self.low is None or self.high is None:
            return ""
        return f"[{said(self.low)}, {said(self.high)}]"

    def __str__(self) -> str:
        return f"{self.centre} {self.ends}".strip()


def mean_of(values: Sequence[float]) -> Mean:
    """Of at least one value."""
    lost = sum(not math.isfinite(value) for value in values)
    if lost:
        return Mean(math.nan, n=len(values), lost=lost)
    if len(values) == 1:  # no need of a bootstrap
        return Mean(float(values[0]))
    return _with_interval(tuple(values))


@lru_cache(maxsize=10_000)
def _with_interval(values: tuple[float, ...]) -> Mean:
    """Kept: tables and plots show the same means, and a bootstrap takes milliseconds."""
    found = interval(values)
    low, high = found["low"], found["high"]
    return Mean(float(found["mean"] or 0.0), low, high, len(values))


def grouped(
    frame: pd.DataFrame, keys: Sequence[str], value: str
) -> Iterator[tuple[tuple[Any, ...], Mean]]:
    """The mean of ``value`` in each group of equal ``keys``, in the order in which they first come."""
    for key, found in frame.groupby(list(keys), sort=False, dropna=False)[value]:
        yield key, mean_of(found.to_numpy(dtype=float).tolist())


def thinned(steps: Sequence[float], most: int = MOST_POINTS) -> list[float]:
    """At most so many of the sorted steps, evenly, with both ends."""
    if len(steps) <= most:
        return list(steps)
    places = {round(i * (len(steps) - 1) / (most - 1)) for i in range(most)}
    return [steps[place] for place in sorted(places)]


def said(value: float) -> str:
    """A number as a reader wants it: three digits, whole ones whole, no exponent where there is room."""
    if not math.isfinite(value):
        return "not finite"
    if value == int(value) and abs(value) < 1e7:
        return f"{int(value):,}"
    if 1e-3 <= abs(value) < 1e6:
        digits = max(0, 2 - math.floor(math.log10(abs(float(f"{value:.3g}")))))
        return f"{value:,.{digits}f}"
    return f"{value:.2e}"
