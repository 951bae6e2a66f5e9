from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.data.table_folds import row_folds


@given(
    st.lists(st.integers(0, 3), min_size=4, max_size=60),
    st.integers(1, 23),
    st.integers(1, 7),
    st.integers(0, 100),
)
def test_every_member_has_disjoint_parts_of_all_rows(
    strata: list[int], members: int, folds: int, seed: int
) -> None:
    found = row_folds(np.array(strata), members, np.random.default_rng(seed), folds)
    for parts in zip(found.train, found.stop, found.outer, strict=True):
        assert all(len(part) for part in parts)
        assert sorted(np.concatenate(parts).tolist()) == list(range(len(strata)))


def test_parts_have_their_share_of_each_class() -> None:
    strata = np.repeat([0, 1, 2], [60, 30, 10])
    found = row_folds(strata, 5, np.random.default_rng(0))
    for part in (*found.stop, *found.outer):
        assert np.bincount(strata[part]).tolist() == [6, 3, 1]


def test_from_four_members_a_fold_every_row_is_somebodys_outer_row_twice() -> None:
    found = row_folds(np.zeros(50, dtype=int), 20, np.random.default_rng(0))
    assert (np.bincount(np.concatenate(found.outer)) == 2).all()
    assert np.array_equal(found.outer[0], found.outer[5])
    assert np.array_equal(found.outer[0], found.stop[10])


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="3 rows are too few"):
        row_folds(np.zeros(3, dtype=int), 5, np.random.default_rng(0))
    with pytest.raises(InvalidInputError, match="members"):
        row_folds(np.zeros(9, dtype=int), 0, np.random.default_rng(0))
