"""Which columns float32 cannot hold, told from their own size and spread."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from mbrl_bilevel.base.rounding import Changes, coarse, narrowed

Array = npt.NDArray[np.float64]


def walk(offset: float, unit: float, n: int = 200) -> tuple[Array, Array]:
    """obs and next_obs [n, 2] of a walk whose changes have standard deviation ``unit``."""
    steps = np.random.default_rng(0).normal(size=(n + 1, 2)) * unit
    path = offset + steps.cumsum(0)
    return path[:-1], path[1:]


@pytest.mark.parametrize(
    ("offset", "unit", "kept"),
    [
        (0.0, 1.0, "float32"),
        (0.0, 1e-6, "float32"),
        (0.0, 1e-30, "float32"),
        (100.0, 0.1, "float32"),
        (5e6, 0.1, "float64"),
        (1.7e9, 1.0, "float64"),
    ],
)
def test_changes_decide_whether_float32_will_do(offset: float, unit: float, kept: str) -> None:
    obs, next_obs = walk(offset, unit)
    found = narrowed(obs, next_obs)
    assert [part.dtype.name for part in found] == [kept, kept]
    wanted = next_obs - obs
    error = (found[1].astype(np.float64) - found[0]) - wanted
    assert np.sqrt(np.square(error).mean()) < 0.01 * wanted.std()
    changes = Changes()
    for rows in range(0, 200, 50):
        changes.add(obs[rows : rows + 50], next_obs[rows : rows + 50])
    assert (len(changes.lost()) == 2) is (kept == "float64")


def test_rounding_of_float64_and_numbers_that_float32_has_anyway_stay_small() -> None:
    constant = 1.0 + np.finfo(np.float64).eps * np.random.default_rng(0).integers(-1, 2, (50, 1))
    assert constant.std() > 0.0
    assert narrowed(constant)[0].dtype == np.float32
    whole = np.arange(5_000_000.0, 5_000_050.0)[:, None]
    assert narrowed(whole)[0].dtype == np.float32
    np.testing.assert_array_equal(narrowed(whole)[0], whole)


def test_the_spread_of_one_array_is_its_values() -> None:
    stamps = 1.7e9 + np.random.default_rng(0).uniform(0.0, 3600.0, (100, 1)).round(1)
    assert narrowed(stamps)[0].dtype == np.float64
    # Half a year is told well enough to two minutes.
    assert coarse(np.array([1.7e9]), np.array([1.6e7])).tolist() == [False]
