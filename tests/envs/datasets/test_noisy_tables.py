"""Noisy tables: the classes follow the probabilities that they were drawn from."""

from __future__ import annotations

import numpy as np
import pytest

from envs.datasets.noisy_tables import NOISY_TABLES, noisy_table
from mbrl_bilevel.base.errors import InvalidInputError


@pytest.mark.parametrize("name", NOISY_TABLES)
def test_classes_are_as_frequent_as_they_are_likely(name: str) -> None:
    x, y, probs = noisy_table(name)
    classes = probs.shape[1]
    assert x.shape == (8000, 8)
    np.testing.assert_allclose(probs.sum(1), 1.0)
    # Within four standard errors, for the rows at large and for those where a class is likely.
    drawn = np.eye(classes)[y]
    for rows in (np.ones(len(y), bool), probs[:, 0] > np.median(probs[:, 0])):
        error = np.sqrt((probs * (1.0 - probs))[rows].mean(0) / rows.sum())
        assert (np.abs(drawn[rows].mean(0) - probs[rows].mean(0)) < 4.0 * error).all()
    assert (np.bincount(y, minlength=classes) >= 10).all()
    again = noisy_table(name, 8000)
    assert all(np.array_equal(a, b) for a, b in zip((x, y, probs), again, strict=True))


def test_three_classes_and_more_are_likely() -> None:
    for name, least in (("noisy", 0.9), ("noisy-many", 1.9), ("noisy-rare", 0.3)):
        _, _, probs = noisy_table(name)
        assert -(probs * np.log(probs)).sum(1).mean() > least


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(InvalidInputError, match="did you mean 'noisy"):
        noisy_table("noisi")
