"""Folds of experience that grows: what a member held out it never trains on, nor the other way round.

For fits that go on from one another. ``cross_fit`` alone deals rows out afresh each time: a member would
stop by, and infer its reward on, rows that it was trained on in the fit before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.data.splits import (
    NO_GROUP,
    SHORTEST_BLOCK,
    Folds,
    IntArray,
    cells_of_groups,
    cut_in_time,
    deal,
    folds_of_cells,
    group_by_episode,
    groups_needed,
)

#: Rows between two stretches of one episode that belong to neither, at most.
_MARGIN = 5


@dataclass(frozen=True)
class GrowingFolds:
    """Which stretches of which episodes the ``members`` hold out, from fit to fit.

    ``stretches`` [S, 4] int: an episode, the first and the last of its time steps, and the cell that they
    lie in, for good. Cell 2k is what member k stops by, 2k + 1 its outer sample (``folds_of_cells``). A
    step of no stretch that is followed by a later one of its episode belongs to nobody, for good too.

    Raises InvalidInputError for stretches of another form, or that overlap.
    """

    members: int
    stretches: IntArray

    def __post_init__(self) -> None:
        found = self.stretches
        if found.ndim != 2 or found.shape[1] != 4 or found.dtype != np.int64 or self.members < 1:
            raise InvalidInputError(
                "GrowingFolds: stretches must be [S, 4] int64 and members at least 1; got "
                f"{found.shape} {found.dtype} and {self.members}"
            )
        episode, first, last, cell = found[np.lexsort((found[:, 1], found[:, 0]))].T
        overlap = (episode[1:] == episode[:-1]) & (first[1:] <= last[:-1])
        cells = groups_needed(self.members)
        if (first > last).any() or overlap.any() or ((cell < 0) | (cell >= cells)).any():
            raise InvalidInputError(
                f"GrowingFolds: stretches must not overlap and lie in cells 0 to {cells - 1}"
            )

    @staticmethod
    def of(
        episode: IntArray, t: IntArray, members: int, generator: np.random.Generator
    ) -> GrowingFolds:
        """The first folds, of rows [N] at the time steps ``t`` of their ``episode``: those of ``cross_fit`` by
        ``group_by_episode``. Raises as these, and for rows of the same time step."""
        _require_distinct(episode, t)
        groups = group_by_episode(episode, t, groups_needed(members), _MARGIN)
        cell = cells_of_groups(groups, groups_needed(members), generator)
        return GrowingFolds(members, _stretches(episode, t, groups, cell))

    def grown(self, episode: IntArray, t: IntArray, generator: np.random.Generator) -> GrowingFolds:
        """The same with new stretches for the steps that lie behind all stretches of their episode.

        A new stretch has at most half as many rows as a cell has on average. Where it goes on from an old one, or
        from another new one, a margin between them belongs to nobody. Raises InvalidInputError for rows of
        the same time step.
        """
        _require_distinct(episode, t)
        known = self.groups(episode, t)
        cells = groups_needed(self.members)
        longest = math.ceil(len(episode) / (2 * cells))
        in_time = self.stretches[np.argsort(self.stretches[:, 2], kind="stable")]
        end = dict(zip(in_time[:, 0].tolist(), in_time[:, 2].tolist(), strict=True))
        groups = np.full(len(episode), NO_GROUP, dtype=np.int64)
        count = 0
        for rows in _by_episode(episode, t, known == NO_GROUP):
            kept = _behind(rows, t, end.get(int(episode[rows[0]])))
            if len(kept):
                pieces = min(math.ceil(len(kept) / longest), len(kept) // SHORTEST_BLOCK)
                blocks = cut_in_time(t[kept], max(1, pieces), _MARGIN)
                groups[kept] = np.where(blocks == NO_GROUP, NO_GROUP, count + blocks)
                count += int(blocks.max()) + 1
        if not count:
            return self
        held = np.bincount(self.stretches[known[known != NO_GROUP], 3], minlength=cells)
        cell = deal(np.bincount(groups[groups != NO_GROUP]), held, generator)
        new = _stretches(episode, t, groups, cell[groups])
        return GrowingFolds(self.members, np.concatenate([self.stretches, new]))

    def groups(self, episode: IntArray, t: IntArray) -> IntArray:
        """The number of the stretch of each of N rows, [N]; NO_GROUP for rows that belong to nobody."""
        start, count = self.stretches, len(self.stretches)
        if not count:
            return np.full(len(episode), NO_GROUP, dtype=np.int64)
        # Beside rows at its first step a stretch comes first; each row then looks back for the last one.
        is_row = np.repeat([0, 1], [count, len(episode)])
        order = np.lexsort(
            (is_row, np.concatenate([start[:, 1], t]), np.concatenate([start[:, 0], episode]))
        )
        place = np.maximum.accumulate(np.where(order < count, np.arange(len(order)), -1))
        before = np.where(place >= 0, order[place], NO_GROUP)
        rows = order >= count
        found = np.full(len(episode), NO_GROUP, dtype=np.int64)
        found[order[rows] - count] = before[rows]
        inside = (found != NO_GROUP) & (start[found, 0] == episode) & (t <= start[found, 2])
        return np.where(inside, found, NO_GROUP)

    def folds(self, episode: IntArray, t: IntArray) -> Folds:
        """Who sees which of these rows."""
        groups = self.groups(episode, t)
        cell = np.where(groups == NO_GROUP, -1, self.stretches[groups, 3])
        return folds_of_cells(cell, self.members)


def _require_distinct(episode: IntArray, t: IntArray) -> None:
    """A time step in two stretches could be told from no other one."""
    order = np.lexsort((t, episode))
    if ((np.diff(episode[order]) == 0) & (np.diff(t[order]) == 0)).any():
        raise InvalidInputError(
            "two rows are the same time step of one episode: number episodes and steps apart"
        )


def _by_episode(episode: IntArray, t: IntArray, chosen: np.ndarray) -> list[IntArray]:
    """The ``chosen`` [N] bool rows of each episode, in the order of time."""
    order = np.lexsort((t, episode))
    order = order[chosen[order]]
    if not len(order):
        return []
    return np.split(order, np.flatnonzero(np.diff(episode[order])) + 1)


def _behind(rows: IntArray, t: IntArray, end: int | None) -> IntArray:
    """Those of an episode's ``rows``, in the order of time, that lie behind step ``end`` and a margin; all
    where nothing of it was seen. A margin takes at most a quarter of them, and at least one step."""
    if end is None:
        return rows
    rows = rows[t[rows] > end]
    return rows[t[rows] > end + max(1, min(_MARGIN, len(rows) // SHORTEST_BLOCK))]


def _stretches(episode: IntArray, t: IntArray, groups: IntArray, cell: IntArray) -> IntArray:
    """[S, 4] of the rows that have a group, all of one in one cell."""
    rows = np.flatnonzero(groups != NO_GROUP)
    rows = rows[np.lexsort((t[rows], groups[rows]))]
    cuts = np.flatnonzero(np.diff(groups[rows])) + 1
    first, last = rows[np.r_[0, cuts]], rows[np.r_[cuts - 1, len(rows) - 1]]
    return np.stack([episode[first], t[first], t[last], cell[first]], axis=1).astype(np.int64)
