"""What may be said of a few repeats: interquartile means, bootstrap intervals, who is better.

Definitions of Agarwal et al. 2021 (NeurIPS, "Deep RL at the edge of the statistical precipice");
a stratum is one data set at one size, and what is drawn anew are the repeats within each, by scipy's
bootstrap. (The intervals on the pages of docs/results were drawn before that, from the same law by other
draws: their last digit differs.)
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mbrl_bilevel.base.errors import InvalidInputError

Array = npt.NDArray[np.float64]

#: How often ``interval`` draws; scipy's own default.
_DRAWS = 9999

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
    from scipy import stats  # here: it takes a second, and every process of a study would pay it

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

    def of_all(*parts: Array) -> Array:
        return statistic(np.concatenate(parts, axis=-1))

    estimate = float(of_all(*values))
    if not _drawable(values):
        return Interval(estimate, None, None)
    return Interval(estimate, *_bootstrap(values, of_all, confidence, draws, seed))


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
    wins = [(x[:, None] < y) + 0.5 * (x[:, None] == y) for x, y in zip(first, second, strict=True)]
    # What is drawn are numbers of repeats: one sample for both where they are paired.
    sizes = [win.shape[:1] if win.shape[0] == win.shape[1] else win.shape for win in wins]

    def of_all(*numbers: Array) -> Array:
        rest, shares = list(numbers), []
        for win, size in zip(wins, sizes, strict=True):
            drawn = [rest.pop(0).astype(np.int64) for _ in size]
            rows, columns = drawn[0], drawn[-1]
            shares.append(win[rows[..., :, None], columns[..., None, :]].mean((-2, -1)))
        found: Array = np.mean(shares, axis=0)
        return found

    estimate = float(np.mean([win.mean() for win in wins]))
    if not _drawable([*first, *second]):
        return Interval(estimate, None, None)
    numbers = [np.arange(n, dtype=np.float64) for size in sizes for n in size]
    # At most 80 MB of pairs at once.
    batch = max(1, 10**7 // max(win.size for win in wins))
    return Interval(estimate, *_bootstrap(numbers, of_all, confidence, draws, seed, batch=batch))


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
    if _drawable([array]):
        if np.ptp(array) == 0.0:
            low = high = float(array[0])
        else:
            low, high = _interval_of_mean(array, confidence, seed)
    return {
        "mean": float(array.mean()),
        "iqm": float(interquartile_mean(array)),
        "low": low,
        "high": high,
        "n": len(array),
    }


def _interval_of_mean(array: Array, confidence: float, seed: int) -> tuple[float, float]:
    if len(array) >= 5:
        low, high = _bootstrap([array], mean, confidence, _DRAWS, seed, "BCa")
        # Values that differ in the last digit alone have no acceleration: scipy says NaN.
        if np.isfinite(low) and np.isfinite(high):
            return low, high
    return _bootstrap([array], mean, confidence, _DRAWS, seed)


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


def _drawable(strata: Sequence[Array]) -> bool:
    """Whether there is anything to draw anew, and all of it finite."""
    several = any(len(stratum) > 1 for stratum in strata)
    return several and all(bool(np.isfinite(stratum).all()) for stratum in strata)


def _bootstrap(
    samples: Sequence[Array],
    statistic: Callable[..., Array],
    confidence: float,
    draws: int,
    seed: int,
    method: str = "percentile",
    batch: int | None = None,
) -> tuple[float, float]:
    """The bounds of scipy's interval of ``statistic(*samples)``, each sample drawn anew by itself."""
    from scipy import stats  # see interquartile_mean

    # scipy draws of at least two: a sample of one stays what it is.
    several = [sample for sample in samples if len(sample) > 1]

    def of_drawn(*drawn: Array, axis: int) -> Array:
        lead, found = drawn[0].shape[:-1], iter(drawn)
        return statistic(
            *(
                next(found) if len(sample) > 1 else np.broadcast_to(sample, (*lead, 1))
                for sample in samples
            )
        )

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = stats.bootstrap(
            several,
            of_drawn,
            n_resamples=draws,
            batch=batch,
            vectorized=True,
            axis=-1,
            confidence_level=confidence,
            method=method,
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)
