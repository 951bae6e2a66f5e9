"""The statistics against scipy, closed forms, loops written out, and recorded numbers of rliable."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.evaluation.statistics import (
    interquartile_mean,
    interval,
    mean,
    probability_of_improvement,
    stratified_interval,
)

# Four data sets of six repeats each, for two methods.
FIRST = [
    [0.698, 1.513, 0.368, 0.527, 1.821, 0.240],
    [3.332, 0.613, 2.532, 0.337, 1.019, 3.424],
    [4.043, 0.401, 0.945, 0.301, 0.633, 0.296],
    [1.373, 0.406, 1.137, 0.431, 0.787, 1.043],
]
SECOND = [
    [11.016, 1.461, 1.542, 2.012, 2.093, 0.849],
    [0.101, 0.234, 0.119, 0.631, 5.844, 1.173],
    [0.318, 1.027, 2.481, 0.704, 2.491, 0.802],
    [0.630, 1.264, 6.419, 0.092, 0.066, 3.653],
]


def test_estimates_and_intervals_of_rliable() -> None:
    """rliable 1.2.0 on the same numbers: metrics.aggregate_iqm, aggregate_mean and
    probability_of_improvement(SECOND, FIRST) (higher is better there), and
    library.get_interval_estimates with 50 000 draws."""
    iqm = stratified_interval(FIRST, interquartile_mean, draws=20_000)
    assert iqm.estimate == pytest.approx(0.801, abs=1e-12)
    assert (iqm.low, iqm.high) == pytest.approx((0.54825, 1.22183542), abs=0.012)
    average = stratified_interval(FIRST, draws=20_000)
    assert average.estimate == pytest.approx(1.1758333333333333)
    assert (average.low, average.high) == pytest.approx((0.8034125, 1.58991771), abs=0.012)
    better = probability_of_improvement(list(zip(FIRST, SECOND, strict=True)))
    assert better.estimate == pytest.approx(0.5972222222222222)


def test_the_interval_of_a_mean_is_that_of_the_central_limit() -> None:
    """Var of the stratified bootstrap mean: Σ_s n_s·v_s / N², v_s the plug-in variance."""
    g = np.random.default_rng(0)
    strata = [g.normal(scale, scale, size=n) for scale, n in ((1.0, 60), (3.0, 90), (0.2, 30))]
    found = stratified_interval(strata, confidence=0.9, draws=40_000)
    total = sum(map(len, strata))
    sd = math.sqrt(sum(len(s) * s.var() for s in strata)) / total
    low, high = stats.norm.interval(0.9, np.concatenate(strata).mean(), sd)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03 * sd)
    # Without the strata, what sets them apart would count as noise.
    apart = stratified_interval([np.concatenate(strata)], confidence=0.9)
    assert found.high is not None
    assert found.low is not None
    assert apart.high is not None
    assert apart.low is not None
    assert found.high - found.low < 0.97 * (apart.high - apart.low)


def test_paired_differences_are_narrower_than_the_difference_of_two() -> None:
    g = np.random.default_rng(1)
    split = g.normal(0, 5, size=(4, 8))  # how hard each split is, for both methods alike
    x, y = split + g.normal(0, 0.1, split.shape), split + 0.3 + g.normal(0, 0.1, split.shape)
    found = stratified_interval(list(x - y))
    assert found.low is not None
    assert found.high is not None
    assert found.estimate == pytest.approx(-0.3, abs=0.06)
    assert -0.4 < found.low < -0.3 < found.high < -0.2


def test_probability_of_improvement_by_hand_and_by_scipy() -> None:
    assert probability_of_improvement([([1.0, 2.0], [2.0, 3.0])]).estimate == 0.875
    g = np.random.default_rng(2)
    pairs = [(g.integers(0, 6, 7) / 2, g.integers(1, 7, n) / 2) for n in (7, 5)]  # with ties
    u = [stats.mannwhitneyu(y, x).statistic / (len(x) * len(y)) for x, y in pairs]
    assert probability_of_improvement(pairs).estimate == pytest.approx(np.mean(u))


def test_the_bootstrap_of_the_probability_is_that_of_a_loop() -> None:
    """Equal repeats are drawn together, others apart: against gathered index arrays."""
    g = np.random.default_rng(3)
    x, y, z = g.normal(0, 1, 9), g.normal(0.4, 1, 9), g.normal(0.4, 1, 12)
    for other in (y, z):
        shares = []
        for _ in range(4000):
            i = g.integers(9, size=9)
            j = i if len(other) == 9 else g.integers(12, size=12)
            shares.append(np.mean(x[i][:, None] < other[j]))
        found = probability_of_improvement([(x, other)])
        expected = np.quantile(shares, [0.025, 0.975])
        assert (found.low, found.high) == pytest.approx(expected, abs=0.02)


@given(st.integers(1, 6), st.integers(0, 2**32))
def test_laws_of_the_probability(strata: int, seed: int) -> None:
    g = np.random.default_rng(seed)
    pairs = [(g.integers(0, 4, 5) + 0.0, g.integers(0, 4, 3) + 0.0) for _ in range(strata)]
    forth = probability_of_improvement(pairs, draws=50).estimate
    back = probability_of_improvement([(y, x) for x, y in pairs], draws=50).estimate
    assert forth + back == pytest.approx(1.0)
    # Only the order counts.
    stretched = [(np.exp(x), np.exp(y)) for x, y in pairs]
    assert probability_of_improvement(stretched, draws=50).estimate == forth


def test_the_same_seed_gives_the_same_interval() -> None:
    first, again, other = (stratified_interval(FIRST, seed=s) for s in (0, 0, 1))
    assert first == again
    assert first.low != other.low


def test_no_interval_where_there_is_none() -> None:
    alone = stratified_interval([[1.0], [2.0]])
    assert (alone.estimate, alone.low, alone.high) == (1.5, None, None)
    broken = stratified_interval([[1.0, math.nan], [2.0, 3.0]])
    assert math.isnan(broken.estimate)
    assert broken.low is None
    with pytest.raises(InvalidInputError, match="at least one repeat for each stratum"):
        stratified_interval([[1.0], []])
    with pytest.raises(InvalidInputError, match="at least one repeat for each stratum"):
        stratified_interval([])
    with pytest.raises(InvalidInputError, match="confidence"):
        stratified_interval([[1.0, 2.0]], confidence=1.0)


@pytest.mark.parametrize("n", [1, 3, 4, 7, 25])
def test_interquartile_mean_along_the_last_axis(n: int) -> None:
    values = np.random.default_rng(n).lognormal(size=(3, n))
    cut = n // 4
    expected = np.sort(values, axis=1)[:, cut : n - cut].mean(1)
    assert interquartile_mean(values) == pytest.approx(expected)
    assert mean(values) == pytest.approx(values.mean(1))


def test_interval_is_the_bootstrap_of_scipy() -> None:
    values = np.random.default_rng(0).lognormal(size=25)
    found = interval(values, confidence=0.9, seed=3)
    expected = stats.bootstrap(
        (values,), np.mean, confidence_level=0.9, method="BCa", rng=np.random.default_rng(3)
    ).confidence_interval
    assert (found["low"], found["high"]) == (expected.low, expected.high)
    assert found["mean"] == pytest.approx(values.mean())
    # n = 25: rliable and scipy cut int(25/4) = 6 values on each side.
    assert found["iqm"] == pytest.approx(np.sort(values)[6:-6].mean())
    assert found["n"] == 25


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        found = interval(draws.normal(2.0, 1.0, size=30), confidence=0.9)
        assert found["low"] is not None
        assert found["high"] is not None
        covered += found["low"] <= 2.0 <= found["high"]
    assert stats.binomtest(covered, 60, 0.88).pvalue > 0.01


def test_interval_of_few_values() -> None:
    assert interval([4.0]) == {"mean": 4.0, "iqm": 4.0, "low": None, "high": None, "n": 1}
    assert interval([3.0] * 4) == {"mean": 3.0, "iqm": 3.0, "low": 3.0, "high": 3.0, "n": 4}
    two = interval([1.0, 2.0])
    assert (two["mean"], two["low"], two["high"]) == (1.5, 1.0, 2.0)
    with pytest.raises(InvalidInputError, match="values is empty"):
        interval([])


def test_interval_is_a_number_where_bca_is_undefined() -> None:
    """Values that differ in the last digit alone have no acceleration."""
    found = interval([1.0, 1.0, 1.0, 1.0, 1.0 + 2**-52])
    assert found["low"] == pytest.approx(1.0)
    assert found["high"] == pytest.approx(1.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_interval_does_not_hide_what_is_not_finite(bad: float) -> None:
    found = interval([1.0, 2.0, 3.0, 4.0, 5.0, bad])
    assert not np.isfinite(found["mean"])
    assert found["low"] is None
    assert found["high"] is None
