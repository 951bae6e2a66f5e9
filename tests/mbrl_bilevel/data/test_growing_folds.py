"""Folds of growing experience: what a member has trained on never becomes a row that it holds out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.data.growing_folds import GrowingFolds
from mbrl_bilevel.data.splits import (
    NO_GROUP,
    Folds,
    IntArray,
    cross_fit,
    group_by_episode,
    groups_needed,
)

Place = tuple[int, int]


def experience(lengths: list[int], steps: int) -> tuple[IntArray, IntArray]:
    """The first ``steps`` rows of episodes of these lengths, one after another."""
    episode = np.repeat(np.arange(len(lengths)) * 3 - 4, lengths)
    t = np.concatenate([np.arange(n) for n in lengths])
    return episode[:steps].astype(np.int64), t[:steps].astype(np.int64)


def seen_by(folds: Folds, episode: IntArray, t: IntArray) -> list[dict[str, set[Place]]]:
    """For each member and part the (episode, step) of its rows."""
    places = list(zip(episode.tolist(), t.tolist(), strict=True))
    parts = ("train", "stop", "outer")
    return [
        {part: {places[row] for row in getattr(folds, part)[member]} for part in parts}
        for member in range(len(folds.train))
    ]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 90), min_size=3, max_size=40),
    st.lists(st.integers(1, 120), min_size=1, max_size=6),
    st.integers(1, 6),
    st.integers(0, 10_000),
)
def test_no_row_ever_changes_sides(
    lengths: list[int], more: list[int], members: int, seed: int
) -> None:
    """Nor from one sample to the other, whatever the fits, the ends of episodes and the order of rows;
    and a step beside one that a member has held out is never trained on by it."""
    g = np.random.default_rng(seed)
    lengths = [*lengths, 60, 60]
    first = 8 * groups_needed(members)
    grown: GrowingFolds | None = None
    before: list[dict[str, set[Place]]] = []
    for steps in np.cumsum([first, *more]):
        episode, t = experience(lengths, int(steps))
        order = g.permutation(len(t))
        episode, t = episode[order], t[order]
        if len(t) < first:
            return
        if grown is None:
            grown = GrowingFolds.of(episode, t, members, g)
        else:
            grown = grown.grown(episode, t, g)
        now = seen_by(grown.folds(episode, t), episode, t)
        for member, parts in enumerate(now):
            held = parts["stop"] | parts["outer"]
            assert not parts["train"] & held
            assert not parts["stop"] & parts["outer"]
            near = {(e, s + d) for e, s in held for d in (-1, 1)}
            assert not near & parts["train"]
            for part, rows in before[member].items() if before else ():
                assert rows <= parts[part], "a row was moved"
        before = now


def test_the_first_folds_are_those_of_cross_fit() -> None:
    for lengths, members in (([40] * 30, 5), ([300, 500], 3), ([17] * 12, 1)):
        episode, t = experience(lengths, 10_000)
        found = GrowingFolds.of(episode, t, members, np.random.default_rng(4)).folds(episode, t)
        groups = group_by_episode(episode, t, groups_needed(members))
        wanted = cross_fit(groups, members, np.random.default_rng(4))
        for part in ("train", "stop", "outer"):
            for mine, theirs in zip(getattr(found, part), getattr(wanted, part), strict=True):
                np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(("length", "every"), [(1000, 1000), (1000, 250), (30, 250), (100, 40)])
def test_cells_stay_balanced_and_few_rows_are_lost(length: int, every: int) -> None:
    g, members = np.random.default_rng(0), 5
    lengths = [length] * (6000 // length + 1)
    grown = GrowingFolds.of(*experience(lengths, 1000), members, g)
    for steps in range(1000 + every, 6001, every):
        episode, t = experience(lengths, steps)
        grown = grown.grown(episode, t, g)
    folds = grown.folds(episode, t)
    sizes = [len(rows) for rows in (*folds.stop, *folds.outer)]
    assert max(sizes) < 1.6 * min(sizes), sizes
    assert len(folds.rows) > 0.85 * len(t)
    assert grown.grown(episode, t, g) is grown, "nothing new: nothing changes"


def test_what_a_ring_has_forgotten_is_missed_by_nobody() -> None:
    g = np.random.default_rng(0)
    episode, t = experience([50] * 40, 2000)
    grown = GrowingFolds.of(episode[:1000], t[:1000], 5, g).grown(episode[600:], t[600:], g)
    assert (grown.groups(episode[600:], t[600:]) != NO_GROUP).all()
    assert min(map(len, grown.folds(episode[1000:], t[1000:]).stop)) > 0


@pytest.mark.parametrize(
    ("members", "rows"),
    [
        (0, [[0, 0, 5, 1]]),
        (5, [[0, 0, 5, 10]]),
        (5, [[0, 0, 5, -1]]),
        (5, [[0, 5, 0, 1]]),
        (5, [[0, 0, 5, 1], [0, 5, 9, 2]]),
        (5, [[0, 0, 5]]),
    ],
)
def test_what_cannot_be_folds_is_refused(members: int, rows: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^GrowingFolds: stretches must") as caught:
        GrowingFolds(members, np.array(rows))
    assert "\n" not in str(caught.value)


def test_a_time_step_that_comes_twice_is_refused() -> None:
    episode, t = experience([100] * 3, 300)
    t[7] = t[6]
    with pytest.raises(InvalidInputError, match="two rows are the same time step"):
        GrowingFolds.of(episode, t, 5, np.random.default_rng(0))
