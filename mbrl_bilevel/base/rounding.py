"""What rounding leaves of a number, always judged by the data's own size and spread.

Networks work in float32. That is enough for nearly all data; a column far from zero that changes little (a
time stamp, a position in a large grid) loses its changes there, and is kept in float64 up to the normaliser.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

#: A spread of no more than so many units in the last place is that of rounding: nothing varies.
ULPS = 4.0
#: Rounding of this share of the spread is not noticed beside what a model gets wrong.
_UNNOTICED = 0.03


def coarse(magnitude: Array, spread: Array) -> npt.NDArray[np.bool_]:
    """Which columns float32 cannot represent: their largest ``magnitude`` [D], and the standard deviation
    ``spread`` [D] of what matters of them, their changes or their values themselves."""
    there = spread > ULPS * np.finfo(np.float64).eps * magnitude
    found: npt.NDArray[np.bool_] = there & (
        np.finfo(np.float32).eps * magnitude > _UNNOTICED * spread
    )
    return found


def narrowed(*values: Array) -> tuple[Array, ...]:
    """Arrays [N, …] of one quantity in float32 where that represents every column, else all in float64.

    Of two, obs and next_obs, what matters is their difference; of one, its own spread.
    """
    wide = [np.asarray(v, dtype=np.float64) for v in values]
    with np.errstate(over="ignore"):
        single = [v.astype(np.float32) for v in wide]
    if all(np.array_equal(s, w) for s, w in zip(single, wide, strict=True)):
        return tuple(single)
    matters = wide[-1] - wide[0] if len(wide) > 1 else wide[0]
    magnitude = np.abs(wide).max((0, 1))
    return tuple(wide if coarse(magnitude, matters.std(0)).any() else single)


class Changes:
    """The changes of observations as they come, in float64, to tell what float32 would make of them."""

    def __init__(self) -> None:
        self.steps = 0
        self._first = self._magnitude = self._sum = self._square = np.zeros(())

    @np.errstate(over="ignore", invalid="ignore")  # who takes the numbers refuses infinite ones
    def add(self, obs: Array, next_obs: Array) -> None:
        """More steps, [n, O] each."""
        both = np.asarray([obs, next_obs], dtype=np.float64)
        if not self.steps:
            self._first = both[1, 0] - both[0, 0]
        # Less the first one, so that squares do not cancel.
        change = both[1] - both[0] - self._first
        self.steps += len(change)
        self._magnitude = np.maximum(self._magnitude, np.abs(both).max((0, 1)))
        self._sum = self._sum + change.sum(0)
        self._square = self._square + np.square(change).sum(0)

    def lost(self) -> npt.NDArray[np.intp]:
        """The observation dimensions whose changes float32 loses."""
        mean = self._sum / max(1, self.steps)
        variance = self._square / max(1, self.steps) - np.square(mean)
        return np.flatnonzero(coarse(self._magnitude, np.sqrt(np.maximum(variance, 0.0))))


def as_type(values: Array, dtype: npt.DTypeLike) -> Array:
    """``values`` as ``dtype``: rounded to the nearest where that is of integers, where NumPy would cut."""
    if np.issubdtype(dtype, np.integer):
        values = np.rint(values)
    return np.asarray(values).astype(dtype)
