"""What may be said of a few repeats: interquartile means, bootstrap intervals, who is better.

Definitions of Agarwal et al. 2021 (NeurIPS, "Deep RL at the edge of the statistical precipice");
a stratum is one data set at one size, and what is drawn anew are the repeats within each.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from mbrl_bilevel.base.errors import InvalidInputError

Array = npt.NDArray[np.float64]

#: A number for the values [..., N] along the last axis: [...].
Statistic = Callable[[Array], Array]


@dataclass(frozen=True)
class Interval:
    """An ``estimate`` and the bounds of its bootstrap interval; None where there is none: a single
    repeat in every stratum, or values that are not finite."""

    estimate: float
    low: float | None
    high: float | None


def mean(values: Array) -> Array:
    """The mean along the last axis."""
    found: Array = values.mean(-1)
    return found


def interquartile_mean(values: Array) -> Array:
    """The mean of the middle half along the last axis: int(N/4) values are cut on each side."""
    found: Array = np.asarray(stats.trim_mean(values, 0.25, axis=-1))
    return found


def stratified_interval(
    strata: Sequence[npt.ArrayLike],
    statistic: Statistic = mean,
    *,
    confidence: float = 0.95,
    draws: int = 5000,
    seed: int = 0,
) -> Interval:
    """``statistic`` of all values together, and its stratified percentile bootstrap interval.

    Each of the ``strata`` is a 1-D array of the repeats on one data set; each draw takes as many of
    them again, with replacement, within every stratum (Agarwal et al. 2021, section 4.1). For paired
    differences the values are the differences of the repeats that share a split.

    With n repeats a stratum the interval is narrower than that of the normal law by about
    √((n−1)/n): 11 % at five. Raises InvalidInputError for no values, or options out of range.
    """
    values = _checked(strata, confidence, draws)
    random = np.random.default_rng(seed)

    def drawn(count: int) -> Array:
        parts = [stratum[_indices(random, count, len(stratum))] for stratum in values]
        return statistic(np.concatenate(parts, axis=1))

    return _percentile(float(statistic(np.concatenate(values))), values, drawn, confidence, draws)


def probability_of_improvement(
    pairs: Sequence[tuple[npt.ArrayLike, npt.ArrayLike]],
    *,
    confidence: float = 0.95,
    draws: int = 5000,
    seed: int = 0,
) -> Interval:
    """P(X < Y), ties for one half: the mean over strata of the share of pairs of repeats (i, j) in
    which x_i is below y_j (Agarwal et al. 2021, section 4.3; lower is better here).

    Each of ``pairs`` holds the repeats of X and of Y on one data set. Where both have as many,
    repeat i of either is taken to share a split, and the bootstrap draws them together.
    Raises InvalidInputError as ``stratified_interval`` does.
    """
    first = _checked([x for x, _ in pairs], confidence, draws)
    second = _checked([y for _, y in pairs], confidence, draws)
    random = np.random.default_rng(seed)
    wins = [(x[:, None] < y) + 0.5 * (x[:, None] == y) for x, y in zip(first, second, strict=True)]

    def drawn(count: int) -> Array:
        found: Array = np.mean([_resampled_share(random, count, win) for win in wins], axis=0)
        return found

    estimate = float(np.mean([win.mean() for win in wins]))
    return _percentile(estimate, [*first, *second], drawn, confidence, draws)


def interval(
    values: Sequence[float], confidence: float = 0.95, seed: int = 0
) -> Mapping[str, float | int | None]:
    """Mean, interquartile mean and a bootstrap interval of the mean over repeats.

    The interval is the bias-corrected accelerated bootstrap (Efron 1987) of scipy, percentile with
    fewer than five values or where that is undefined; None with fewer than two values, or where one
    is not finite. Raises InvalidInputError without any.
    """
    array = np.asarray(values, dtype=np.float64)
    if len(array) == 0:
        raise InvalidInputError("interval: values is empty; give at least one")
    low: float | None = None
    high: float | None = None
    if len(array) >= 2 and np.isfinite(array).all():
        if np.ptp(array) == 0.0:
            low = high = float(array[0])
        else:
            low, high = _bootstrap(array, confidence, seed, "BCa" if len(array) >= 5 else None)
    return {
        "mean": float(array.mean()),
        "iqm": float(stats.trim_mean(array, 0.25)),
        "low": low,
        "high": high,
        "n": len(array),
    }


def _bootstrap(
    array: Array, confidence: float, seed: int, method: str | None
) -> tuple[float, float]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # Values that differ in the last digit alone have no acceleration; scipy warns, says NaN.
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            (array,),
            np.mean,
            confidence_level=confidence,
            method=method or "percentile",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    if method is not None and not (np.isfinite(found.low) and np.isfinite(found.high)):
        return _bootstrap(array, confidence, seed, None)
    return float(found.low), float(found.high)


def _checked(strata: Sequence[npt.ArrayLike], confidence: float, draws: int) -> list[Array]:
    values = [np.asarray(stratum, dtype=np.float64) for stratum in strata]
    if not values or any(stratum.ndim != 1 or not len(stratum) for stratum in values):
        raise InvalidInputError(
            f"strata: give one 1-D array of at least one repeat for each stratum; "
            f"got shapes {[stratum.shape for stratum in values]}"
        )
    if not 0.0 < confidence < 1.0 or draws < 1:
        raise InvalidInputError(
            f"confidence must lie between 0 and 1 and draws be at least 1; got {confidence} and {draws}"
        )
    return values


def _indices(random: np.random.Generator, draws: int, n: int) -> npt.NDArray[np.int64]:
    return random.integers(n, size=(draws, n))


def _resampled_share(random: np.random.Generator, draws: int, win: Array) -> Array:
    """The mean of ``win`` [n, m] over repeats drawn anew, [draws]: by how often each was drawn."""
    n, m = win.shape
    first = _counts(random, draws, n)
    second = first if n == m else _counts(random, draws, m)
    share: Array = ((first @ win) * second).sum(-1) / (n * m)
    return share


def _counts(random: np.random.Generator, draws: int, n: int) -> npt.NDArray[np.int64]:
    return random.multinomial(n, np.full(n, 1.0 / n), size=draws)


def _percentile(
    estimate: float,
    values: Sequence[Array],
    drawn: Callable[[int], Array],
    confidence: float,
    draws: int,
) -> Interval:
    single = all(len(stratum) == 1 for stratum in values)
    if single or not all(np.isfinite(stratum).all() for stratum in values):
        return Interval(estimate, None, None)
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(drawn(draws), [tail, 1.0 - tail])
    return Interval(estimate, float(low), float(high))
