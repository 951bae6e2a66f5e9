"""Means and numbers: what is finite, what is said."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mbrl_bilevel.pages.means import grouped, mean_of, said, thinned
from mbrl_bilevel.pages.ranking import best_of


def test_a_group_has_the_mean_of_pandas_and_the_interval_of_scipy() -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"m": ["b", "a"] * 8, "v": random.normal(size=16)})
    found = dict(grouped(frame, ["m"], "v"))
    assert list(found) == [("b",), ("a",)]  # as they first come
    for (name,), mean in found.items():
        values = frame.loc[frame["m"] == name, "v"].to_numpy()
        ends = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0)).confidence_interval
        assert mean.mean == pytest.approx(frame.groupby("m")["v"].mean()[name])
        assert (mean.low, mean.high, mean.n) == (ends.low, ends.high, 8)


def test_what_is_not_finite_is_counted_and_no_mean() -> None:
    mean = mean_of([1.0, math.nan, math.inf])
    assert math.isnan(mean.mean)
    assert (mean.lost, mean.n, str(mean)) == (2, 3, "2 of 3 not finite")
    assert mean_of([2.0]).low is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *((0.12345, "0.123"), (0.99972, "1.00"), (-1419.04, "-1,419"), (400.0, "400")),
        *((0.00001234, "1.23e-05"), (1e9, "1.00e+09"), (0.0, "0"), (math.nan, "not finite")),
    ],
)
def test_numbers_are_said_with_three_digits(value: float, text: str) -> None:
    assert said(value) == text


def test_a_thinned_line_keeps_its_ends() -> None:
    steps = [float(i) for i in range(1001)]
    found = thinned(steps, 11)
    assert found == [100.0 * i for i in range(11)]
    assert thinned(steps[:5], 11) == steps[:5]


def test_the_best_is_of_its_group_and_ties_are_all_the_best() -> None:
    values = [("a", 1.0), ("a", 2.0), ("a", 1.0), ("b", 0.0), ("c", math.nan), ("c", 5.0)]
    assert best_of(values, "lower") == [True, False, True, False, False, True]
    assert best_of(values, "higher") == [False, True, False, False, False, True]
    assert best_of([("a", 0.8), ("a", 0.95)], "level", 0.9) == [False, True]
