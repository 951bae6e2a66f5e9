"""Who sees which rows: groups are never cut, margins keep time steps apart, folds are disjoint."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.data.splits import (
    NO_GROUP,
    FitData,
    Folds,
    IntArray,
    Minibatches,
    cross_fit,
    group_by_episode,
    groups_needed,
)

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=6)


def episodes(sizes: list[int], seed: int = 0) -> tuple[IntArray, IntArray]:
    """Episode numbers (far from 0, 1, 2 …) and time steps, with the rows shuffled."""
    episode = np.concatenate([np.full(n, 100 - 7 * i) for i, n in enumerate(sizes)])
    t = np.concatenate([np.arange(n) for n in sizes])
    order = np.random.default_rng(seed).permutation(len(t))
    return episode[order].astype(np.int64), t[order].astype(np.int64)


@settings(max_examples=150, deadline=None)
@given(lengths, st.integers(1, 12), st.integers(1, 8), st.integers(0, 100))
def test_no_two_groups_hold_neighbouring_time_steps(
    sizes: list[int], wanted: int, margin: int, seed: int
) -> None:
    episode, t = episodes(sizes, seed)
    if sum(max(1, n // 4) for n in sizes) < wanted and len(sizes) < wanted:
        with pytest.raises(InvalidInputError, match="too few"):
            group_by_episode(episode, t, wanted, margin)
        return
    groups = group_by_episode(episode, t, wanted, margin)
    assert len(np.unique(groups[groups != NO_GROUP])) == max(wanted, len(sizes))
    for number in np.unique(episode):
        rows = np.flatnonzero(episode == number)
        in_time = groups[rows[np.argsort(t[rows])]]
        elsewhere = groups[episode != number]
        assert not np.isin(in_time[in_time != NO_GROUP], elsewhere).any()
        kept = in_time != NO_GROUP
        # Wherever the group changes between rows that were kept, a row was left out between them.
        at = np.flatnonzero(kept)
        for one, two in pairwise(at):
            assert in_time[one] == in_time[two] or two - one >= 2
        # Blocks are stretches of time, and margins take at most a quarter.
        assert (np.diff(in_time[kept]) >= 0).all()
        assert (~kept).mean() <= 0.25


def test_margins_have_the_width_asked_for_where_blocks_are_long() -> None:
    episode, t = episodes([200])
    groups = group_by_episode(episode, t, 4, margin=5)[np.argsort(t)]
    assert np.flatnonzero(groups == NO_GROUP).tolist() == [
        *range(45, 50),
        *range(95, 100),
        *range(145, 150),
    ]
    assert [np.sum(groups == g) for g in range(4)] == [45, 45, 45, 50]


def test_enough_episodes_are_left_whole() -> None:
    episode, t = episodes([3, 50, 1, 7])
    groups = group_by_episode(episode, t, 4)
    assert (groups != NO_GROUP).all()
    pairs = set(zip(episode.tolist(), groups.tolist(), strict=True))
    assert len(pairs) == len(set(episode.tolist())) == len(set(groups.tolist())) == 4


def test_time_and_not_the_order_of_rows_makes_the_blocks() -> None:
    episode, t = episodes([40])
    inverse = np.argsort(t)
    in_order = group_by_episode(episode[inverse], t[inverse], 5)
    np.testing.assert_array_equal(group_by_episode(episode, t, 5)[inverse], in_order)


@pytest.mark.parametrize(("n", "m", "margin"), [(0, 0, 5), (4, 3, 5), (4, 4, 0), (4, 4, -1)])
def test_bad_rows_or_margin_are_refused(n: int, m: int, margin: int) -> None:
    with pytest.raises(InvalidInputError, match="group_by_episode: episode and t"):
        group_by_episode(np.zeros(n, np.int64), np.arange(m, dtype=np.int64), 1, margin)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 30), min_size=14, max_size=40), st.integers(1, 7), st.integers(0, 1000)
)
def test_folds_are_disjoint_whole_and_balanced(sizes: list[int], members: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    groups = draw.permutation(np.repeat(np.arange(len(sizes)) * 3, sizes)).astype(np.int64)
    groups[draw.random(len(groups)) < 0.1] = NO_GROUP
    assume(len(np.unique(groups[groups != NO_GROUP])) >= groups_needed(members))
    folds = cross_fit(groups, members, np.random.default_rng(seed))
    used = np.flatnonzero(groups != NO_GROUP)
    for parts in zip(folds.train, folds.stop, folds.outer, strict=True):
        np.testing.assert_array_equal(np.sort(np.concatenate(parts)), used)
        assert min(map(len, parts)) > 0
        for one, two in combinations(parts, 2):
            assert not np.isin(groups[one], groups[two]).any()
    held_out = [*folds.stop, *folds.outer]
    for one, two in combinations(held_out, 2):
        assert not np.intersect1d(one, two).size
    if members >= 5:
        np.testing.assert_array_equal(np.sort(np.concatenate(held_out)), used)
    largest = np.unique(groups[used], return_counts=True)[1].max()
    counts = [len(rows) for rows in held_out]
    assert max(counts) - min(counts) <= largest


def test_folds_depend_on_the_seed_alone() -> None:
    groups = np.repeat(np.arange(30), 4)
    one, same, other = (cross_fit(groups, 5, np.random.default_rng(s)) for s in (0, 0, 1))
    for a, b in zip(one.train, same.train, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any(
        len(a) != len(b) or (a != b).any() for a, b in zip(one.stop, other.stop, strict=True)
    )


def test_a_large_group_is_held_out_alone() -> None:
    groups = np.concatenate([np.zeros(100, dtype=np.int64), np.repeat(np.arange(1, 28), 10)])
    folds = cross_fit(groups, 5, np.random.default_rng(0))
    assert sorted(len(rows) for rows in [*folds.stop, *folds.outer]) == [*[30] * 9, 100]


def test_every_group_is_held_out_as_often_as_any_other() -> None:
    """Over 400 seeds a group is in the one member's outer sample a tenth of the time, whatever its
    size, and every time with others."""
    groups, times = np.repeat(np.arange(40), [20, 10, 5, *[1] * 37]), 400
    together = np.zeros((40, 40))
    for seed in range(times):
        held_out = np.unique(groups[cross_fit(groups, 1, np.random.default_rng(seed)).outer[0]])
        together[np.ix_(held_out, held_out)] += 1
    counts = together.diagonal()
    assert np.abs(counts - times / 10).max() < 5.0 * (times * 0.1 * 0.9) ** 0.5
    assert (together[10] > 0).sum() > 30


def test_without_an_outer_level_training_gets_its_sample() -> None:
    folds = cross_fit(np.arange(20), 2, np.random.default_rng(0))
    plain = folds.without_outer()
    for k in range(2):
        assert len(plain.outer[k]) == 0
        np.testing.assert_array_equal(plain.stop[k], folds.stop[k])
        assert set(plain.train[k]) == set(folds.train[k]) | set(folds.outer[k])
        assert not set(plain.train[k]) & set(plain.stop[k])


def test_stopping_rows_can_be_lent_to_the_outer_level() -> None:
    folds = cross_fit(np.arange(20), 2, np.random.default_rng(0))
    lent = folds.with_stop_as_outer()
    for k in range(2):
        np.testing.assert_array_equal(lent.train[k], folds.train[k])
        np.testing.assert_array_equal(lent.stop[k], folds.stop[k])
        assert set(lent.outer[k]) == set(folds.stop[k]) | set(folds.outer[k])
        assert not set(lent.outer[k]) & set(lent.train[k])


@pytest.mark.parametrize(("groups", "members"), [(9, 1), (13, 7)])
def test_too_few_groups_are_refused(groups: int, members: int) -> None:
    assert groups < groups_needed(members)
    with pytest.raises(InvalidInputError, match=f"{groups} groups are too few"):
        cross_fit(np.arange(groups), members, np.random.default_rng(0))


def test_no_members_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="members must be at least 1; got 0"):
        cross_fit(np.arange(20), 0, np.random.default_rng(0))


def rows_as_data(train: list[list[int]], n: int = 30) -> FitData:
    """x and y tell their row's number."""
    number = torch.arange(n, dtype=torch.float64)
    parts = tuple(np.array(rows, dtype=np.int64) for rows in train)
    empty = tuple(np.empty(0, dtype=np.int64) for _ in train)
    x = number.unsqueeze(1).repeat(1, 2)
    return FitData(x, -number.unsqueeze(1), Folds(parts, empty, empty))


def test_minibatches_draw_each_members_training_rows_alike() -> None:
    train = [[3, 7, 1, 29, 11], [0, 2, 4], list(range(30))]
    batches = Minibatches(rows_as_data(train), 4000)
    batch = batches.draw(torch.Generator().manual_seed(0))
    assert batch.x.shape == (3, 4000, 2)
    torch.testing.assert_close(batch.y[..., 0], -batch.x[..., 0])  # the same row of both
    for member, rows in enumerate(train):
        drawn, counts = np.unique(batch.x[member, :, 0].numpy(), return_counts=True)
        assert drawn.tolist() == sorted(rows)
        assert stats.chisquare(counts).pvalue > 1e-4
    one, two = batch.x[0, :, 0] == 3.0, batch.x[1, :, 0] == 0.0
    together = (one & two).double().mean().item()  # members draw independently
    assert together == pytest.approx(1.0 / 15.0, abs=5.0 * (1.0 / 15.0 / 4000) ** 0.5)


def test_minibatches_follow_the_generator() -> None:
    batches = Minibatches(rows_as_data([[1, 2, 3, 4, 5, 6]]), 16)
    draw = torch.Generator().manual_seed(1)
    first, second = batches.draw(draw).x, batches.draw(draw).x
    assert torch.equal(first, batches.draw(torch.Generator().manual_seed(1)).x)
    assert not torch.equal(first, second)


def test_a_ragged_sample_has_the_mean_of_its_rows() -> None:
    data = rows_as_data([[0], [0], [0]])
    rows = ([5, 9, 20], [8], [])
    batch = data.sample(tuple(np.array(r, dtype=np.int64) for r in rows))
    assert batch.weight is not None
    assert batch.weight.dtype == batch.x.dtype == torch.float64
    assert batch.weight.sum(1).tolist() == [3, 1, 0]
    mean = batch.mean(batch.x[..., 0])
    assert mean[:2].tolist() == pytest.approx([34 / 3, 8])
    assert mean[2].isnan()


@pytest.mark.parametrize(("train", "size"), [([[1], []], 4), ([[1]], 0)])
def test_minibatches_that_cannot_be_drawn_are_refused(train: list[list[int]], size: int) -> None:
    with pytest.raises(InvalidInputError, match=r"batch_size|needs training rows; got \[1, 0\]"):
        Minibatches(rows_as_data(train), size)


@pytest.mark.parametrize(
    ("x", "y"), [((4,), (4, 1)), ((4, 2), (4,)), ((4, 2), (5, 1)), ((4, 2, 1), (4, 1))]
)
def test_data_of_other_shapes_is_refused(x: tuple[int, ...], y: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match=r"FitData: x must be \[N, X\]"):
        FitData(torch.zeros(x), torch.zeros(y), Folds((), (), ()))


@pytest.mark.parametrize("row", [-1, 30])
def test_folds_of_other_data_are_refused(row: int) -> None:
    with pytest.raises(InvalidInputError, match="of 30; make them from groups of this very data"):
        rows_as_data([[0, row]])


def test_a_large_sample_is_thinned_evenly_and_a_small_one_is_whole() -> None:
    x = torch.arange(100.0).unsqueeze(1)
    rows = (np.arange(100), np.arange(40, 45))
    data = FitData(x, x, Folds(rows, rows, rows))
    whole, thinned = data.sample(rows), data.sample(rows, 10)
    assert whole.x.shape == (2, 100, 1)
    assert thinned.x[0, :, 0].tolist() == [
        0.0,
        11.0,
        22.0,
        33.0,
        44.0,
        55.0,
        66.0,
        77.0,
        88.0,
        99.0,
    ]
    assert thinned.weight is not None
    assert thinned.weight.sum(1).tolist() == [10.0, 5.0]
    assert thinned.x[1, :5, 0].tolist() == [40.0, 41.0, 42.0, 43.0, 44.0]


@given(st.integers(1, 4), st.integers(0, 100))
def test_rows_for_the_outer_level_only_are_seen_by_nothing_else(members: int, seed: int) -> None:
    groups = np.arange(300) // 10
    outer_only = np.arange(300) >= 200
    folds = cross_fit(groups, members, np.random.default_rng(seed), outer_only)
    shared_out = np.sort(np.concatenate(folds.outer))
    np.testing.assert_array_equal(shared_out, np.flatnonzero(outer_only))
    for train, stop, outer in zip(folds.train, folds.stop, folds.outer, strict=True):
        assert len(outer) > 0
        assert not outer_only[train].any()
        assert not outer_only[stop].any()
        np.testing.assert_array_equal(np.sort(np.concatenate([train, stop])), np.arange(200))
        assert not set(groups[train]) & set(groups[stop])


def test_a_rows_own_weight_goes_into_samples_and_minibatches() -> None:
    x = torch.arange(6.0).unsqueeze(1)
    folds = Folds((np.arange(2),), (np.arange(2, 6),), (np.arange(4, 6),))
    data = FitData(x, x, folds, weight=x.squeeze(1) + 1.0)
    batch = Minibatches(data, 5).draw(torch.Generator().manual_seed(0))
    assert batch.weight is not None
    assert torch.equal(batch.weight, batch.x.squeeze(-1) + 1.0)
    # Rows 2 to 5 weigh 3 to 6: (2·3 + 3·4 + 4·5 + 5·6)/18.
    stop = data.sample(folds.stop)
    assert stop.mean(stop.y[..., 0]).item() == pytest.approx(68.0 / 18.0)
    for wrong in (torch.ones(5), torch.zeros(6), torch.full((6,), torch.nan)):
        with pytest.raises(InvalidInputError, match="leave rows of weight zero out"):
            FitData(x, x, folds, weight=wrong)
