"""Rows of data and who may see them: groups that are never cut, folds, ragged samples, minibatches.

Neighbouring time steps of one episode are nearly copies of each other, so splits go by group
(an episode, or a block of one), never by row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Batch, Outcome, Segment, Transitions

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

#: Rows that belong to no group: the margins between two blocks of one episode.
NO_GROUP = -1

#: The fewest rows in a block of a cut episode: a quarter of it is then a margin of one row.
SHORTEST_BLOCK = 4


@dataclass(frozen=True)
class Folds:
    """For each of E members, disjoint row numbers: ``train``, ``stop`` (early stopping), ``outer``.

    Cross-fitted: member k holds out fold k, so that over the members all data is used by every
    level, while no member's outer or stopping sample was seen in its training.
    """

    train: tuple[IntArray, ...]
    stop: tuple[IntArray, ...]
    outer: tuple[IntArray, ...]

    @property
    def rows(self) -> IntArray:
        """The numbers of all rows that somebody sees, in order."""
        return np.unique(np.concatenate([*self.train, *self.stop, *self.outer]))

    def without_outer(self) -> Folds:
        """The outer samples given to training, for a method that has no outer level."""
        train = tuple(np.concatenate(pair) for pair in zip(self.train, self.outer, strict=True))
        return Folds(train, self.stop, tuple(rows[:0] for rows in self.outer))

    def with_stop_as_outer(self) -> Folds:
        """The stopping samples lent to the outer level, for one that sets nothing they stop."""
        outer = tuple(np.concatenate(pair) for pair in zip(self.stop, self.outer, strict=True))
        return Folds(self.train, self.stop, outer)


@dataclass(frozen=True)
class Chain:
    """How rows follow each other in time: ``successor`` [N] is the row of the next step, −1 for none.

    The first O inputs are a state, which a target y moves by ``y @ gain + drift`` ([D, O] and [O]); a
    ``direct`` target is the next state itself. Every batch then comes with segments of ``horizon`` rows, which
    hand ``outcome`` on. ``ended`` [N]: which rows ended an episode, where ``outcome`` has no rule that tells it.
    """

    successor: Tensor
    gain: Tensor
    drift: Tensor
    horizon: int
    direct: bool = False
    outcome: Outcome | None = None
    ended: Tensor | None = None

    def segment(self, x: Tensor, y: Tensor, index: Tensor) -> Segment:
        """What follows the rows ``index`` [E, B] of x [N, X] and y [N, D]."""
        rows, there = [index], [torch.ones(index.shape, dtype=x.dtype, device=x.device)]
        for _ in range(1, self.horizon):
            following = self.successor[rows[-1]]
            # After the end the last row is repeated: any finite numbers do at weight zero.
            there.append(there[-1] * (following >= 0))
            rows.append(torch.where(following >= 0, following, rows[-1]))
        stacked = torch.stack(rows)
        moves = (self.gain, self.drift, self.direct, self.outcome)
        return Segment(x[stacked], y[stacked], torch.stack(there), *moves)


@dataclass(frozen=True)
class FitData:
    """Normalised inputs ``x`` [N, X] and targets ``y`` [N, D], and who may see which rows.

    With a ``chain`` each batch comes with what followed its rows. ``weight`` [N], all positive, weighs
    the rows in every mean, of the inner level and of the outer. ``relevance`` [D]: how much each target counts, where that
    was asked of these rows.

    Raises InvalidInputError if these shapes disagree, a weight is not positive and finite, or a fold
    names a row that is not there.
    """

    x: Tensor
    y: Tensor
    folds: Folds
    chain: Chain | None = None
    weight: Tensor | None = None
    relevance: Tensor | None = None

    def __post_init__(self) -> None:
        if self.x.ndim != 2 or self.y.ndim != 2 or len(self.x) != len(self.y):
            raise InvalidInputError(
                f"FitData: x must be [N, X] and y [N, D] with the same N; "
                f"got x {tuple(self.x.shape)} and y {tuple(self.y.shape)}"
            )
        if self.weight is not None and (
            self.weight.shape != self.x.shape[:1]
            or not bool((self.weight.isfinite() & (self.weight > 0.0)).all())
        ):
            raise InvalidInputError(
                f"FitData: weight must be {len(self.x)} positive numbers, one a row; "
                "leave rows of weight zero out"
            )
        parts = (*self.folds.train, *self.folds.stop, *self.folds.outer)
        rows = np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self.x):
            raise InvalidInputError(
                f"FitData: folds name rows {rows.min()} to {rows.max()} of {len(self.x)}; "
                "make them from groups of this very data"
            )

    def sample(self, rows: tuple[IntArray, ...], most: int | None = None) -> Batch:
        """The given rows, one set per member, padded with rows of weight zero.

        Of a set with more than ``most`` rows, that many are taken, evenly spaced.
        """
        if most is not None:
            rows = tuple(r[evenly_spaced(len(r), most).numpy()] for r in rows)
        longest = max(1, *(len(r) for r in rows))
        index = np.zeros((len(rows), longest), dtype=np.int64)
        weight = np.zeros((len(rows), longest), dtype=np.float32)
        for member, r in enumerate(rows):
            index[member, : len(r)] = r
            weight[member, : len(r)] = 1.0
        gather = torch.from_numpy(index).to(self.x.device)
        return self.batch(gather, torch.from_numpy(weight).to(self.x.device, self.x.dtype))

    def batch(self, index: Tensor, weight: Tensor | None = None) -> Batch:
        """The rows ``index`` [E, B], with what followed them if there is a chain.

        A row's own weight multiplies that in ``weight`` [E, B].
        """
        if self.weight is not None:
            own = self.weight[index]
            weight = own if weight is None else own * weight
        segment = None if self.chain is None else self.chain.segment(self.x, self.y, index)
        return Batch(self.x[index], self.y[index], weight, segment)


class Minibatches:
    """Draws rows with replacement from each member's training rows: index [E, B] -> Batch."""

    def __init__(self, data: FitData, batch_size: int) -> None:
        if batch_size < 1:
            raise InvalidInputError(f"batch_size must be at least 1; got {batch_size}")
        sizes = [len(rows) for rows in data.folds.train]
        if min(sizes) < 1:
            raise InvalidInputError(
                f"every member needs training rows; got {sizes}: collect more data or use fewer folds"
            )
        device = data.x.device
        self._data, self._batch_size = data, batch_size
        self._sizes = torch.tensor(sizes, dtype=torch.float64, device=device).unsqueeze(1)
        rows = np.zeros((len(sizes), max(sizes)), dtype=np.int64)
        for member, r in enumerate(data.folds.train):
            rows[member, : len(r)] = r
        self._rows = torch.from_numpy(rows).to(device)

    def draw(self, generator: torch.Generator) -> Batch:
        """The next minibatch, x [E, B, X] and y [E, B, D]."""
        members = len(self._rows)
        # float64, so that the largest draw below 1 times the size never rounds up to the size.
        # Drawn where the generator is: one on the data's device leaves nothing to be copied.
        u = torch.rand(
            members,
            self._batch_size,
            generator=generator,
            dtype=torch.float64,
            device=generator.device,
        ).to(self._rows.device)
        index = self._rows.gather(1, (u * self._sizes).long())
        return self._data.batch(index)


def group_by_episode(episode: IntArray, t: IntArray, min_groups: int, margin: int = 5) -> IntArray:
    """A group number for each of N rows, [N]: its episode where there are enough of them.

    Where there are fewer than ``min_groups`` episodes, the longest are cut into equal blocks, and
    the ``margin`` rows before each cut (at most a quarter of a block, at least one) belong to no
    group (NO_GROUP), so that no two groups hold neighbouring time steps. ``t`` is the row's time
    step within its episode.

    Raises InvalidInputError if there are too few rows for that, or ``margin`` is below one.
    """
    if not len(episode) == len(t) > 0 or margin < 1:
        raise InvalidInputError(
            f"group_by_episode: episode and t must have the same number of rows, and margin must be "
            f"at least 1; got {len(episode)} and {len(t)} rows, margin={margin}"
        )
    _, episode_index = np.unique(episode, return_inverse=True)
    lengths = np.bincount(episode_index)
    blocks = np.ones_like(lengths)
    while blocks.sum() < min_groups:
        # The episode whose blocks are the longest after one more cut.
        longest = int(np.argmax(lengths / (blocks + 1)))
        blocks[longest] += 1
        if lengths[longest] / blocks[longest] < SHORTEST_BLOCK:
            raise InvalidInputError(
                f"{len(episode)} rows are too few: members hold out {min_groups} stretches of at least "
                f"{SHORTEST_BLOCK} rows; collect more (train: --learning-starts), or take fewer members"
            )
    first = np.concatenate([[0], np.cumsum(blocks)[:-1]])
    groups = np.empty(len(episode), dtype=np.int64)
    for number, count in enumerate(blocks):
        rows = np.flatnonzero(episode_index == number)
        block = cut_in_time(t[rows], int(count), margin)
        groups[rows] = np.where(block == NO_GROUP, NO_GROUP, first[number] + block)
    return groups


def cut_in_time(t: IntArray, count: int, margin: int) -> IntArray:
    """The block of each of the rows of one episode, [N], of ``count`` blocks of as many rows, in the
    order of ``t`` [N]; NO_GROUP for the ``margin`` rows before each cut, at most a quarter of a block."""
    length = len(t)
    position = np.empty(length, dtype=np.int64)
    position[np.argsort(t, kind="stable")] = np.arange(length)
    block = position * count // length
    width = min(margin, int(length / count) // SHORTEST_BLOCK)
    near_cut = (position + width) * count // length != block
    return np.where(near_cut & (block < count - 1), NO_GROUP, block)


def successors(episode: IntArray, t: IntArray, groups: IntArray) -> IntArray:
    """The row of the next time step of each of N rows, [N]; −1 where it is missing, or in another group.

    A segment therefore never leaves its side of a split by ``groups``.
    """
    found = np.full(len(episode), -1, dtype=np.int64)
    order = np.lexsort((t, episode))
    here, after = order[:-1], order[1:]
    follows = (episode[here] == episode[after]) & (t[here] + 1 == t[after])
    follows &= (groups[here] == groups[after]) & (groups[here] != NO_GROUP)
    found[here[follows]] = after[follows]
    return found


def cross_fit(
    groups: IntArray,
    members: int,
    generator: np.random.Generator,
    outer_only: BoolArray | None = None,
) -> Folds:
    """Cut the groups [N] into max(members, 5) folds; member k holds out fold k.

    Half of a held-out fold, by group, is the member's early-stopping sample and half its outer
    sample. Groups go at random, the largest spread first, to the fold with the fewest rows.

    With ``outer_only`` [N], those rows are the outer sample (another policy's data, say), shared out
    among the members by group; the others are all for training and early stopping.

    Raises InvalidInputError if there are fewer than two groups for each fold, or fewer groups of
    ``outer_only`` than members.
    """
    if members < 1:
        raise InvalidInputError(f"members must be at least 1; got {members}")
    if outer_only is not None:
        inner = np.where(outer_only, NO_GROUP, groups)
        cells = cells_of_groups(np.where(outer_only, groups, NO_GROUP), members, generator)
        given = tuple(np.flatnonzero(cells == member) for member in range(members))
        return replace(cross_fit(inner, members, generator).without_outer(), outer=given)
    return folds_of_cells(cells_of_groups(groups, groups_needed(members), generator), members)


def folds_of_cells(cell: IntArray, members: int) -> Folds:
    """The folds where row n lies in ``cell[n]`` [N]: 2k is what member k stops by, 2k + 1 its outer
    sample, −1 nobody's."""
    train, stop, outer = [], [], []
    for member in range(members):
        stop.append(np.flatnonzero(cell == 2 * member))
        outer.append(np.flatnonzero(cell == 2 * member + 1))
        train.append(np.flatnonzero((cell >= 0) & (cell // 2 != member)))
    return Folds(tuple(train), tuple(stop), tuple(outer))


def groups_needed(members: int) -> int:
    """How many groups ``cross_fit`` needs for this many members: one for each cell."""
    return 2 * max(members, 5)


def rows_needed(members: int) -> int:
    """Fewer rows than this of one episode ``group_by_episode`` cannot cut into so many groups."""
    return SHORTEST_BLOCK * groups_needed(members)


def cells_of_groups(groups: IntArray, cells: int, generator: np.random.Generator) -> IntArray:
    """Which of so many ``cells`` each row lies in, [N], by its group [N]; −1 for NO_GROUP.

    Raises InvalidInputError if there are fewer groups than cells.
    """
    numbers, counts = np.unique(groups[groups != NO_GROUP], return_counts=True)
    if len(numbers) < cells:
        raise InvalidInputError(
            f"{len(numbers)} groups are too few: {cells} are needed to hold out disjoint samples; "
            "collect more episodes, or pass min_groups to group_by_episode"
        )
    cell_of_number = deal(counts, np.zeros(cells, dtype=np.int64), generator)
    cell_of_group = dict(zip(numbers.tolist(), cell_of_number.tolist(), strict=True))
    cell_of_group[NO_GROUP] = -1
    return np.array([cell_of_group[int(g)] for g in groups], dtype=np.int64)


def deal(sizes: IntArray, rows_in_cell: IntArray, generator: np.random.Generator) -> IntArray:
    """The cell of each of G groups with ``sizes`` [G] rows, [G], where cells have ``rows_in_cell`` [C] rows
    already. Groups go at random, the largest first, to the cell with the fewest rows."""
    order = generator.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    # Cells that are alike take turns at random.
    names = generator.permutation(len(rows_in_cell))
    rows, groups = rows_in_cell[names], np.zeros_like(rows_in_cell)
    found = np.empty(len(sizes), dtype=np.int64)
    for number in order:
        cell = int(np.lexsort((groups, rows))[0])
        rows[cell] += sizes[number]
        groups[cell] += 1
        found[number] = names[cell]
    return found


def evenly_spaced(count: int, most: int) -> Tensor:
    """The numbers of at most ``most`` of ``count`` rows, evenly spaced from the first to the last."""
    return torch.arange(count) if count <= most else torch.linspace(0, count - 1, most).long()


def regression_rows(
    transitions: Transitions, *, reward: bool = True, jump: float = 0.0, direct: bool = False
) -> tuple[Tensor, Tensor]:
    """What a dynamics model learns from: x [N, O + A], the (observation, action) of each step, and y
    [N, O + 1], its (Δobservation, reward), [N, O] without the ``reward``.

    ``direct`` has the next observation in the place of its change. ``jump`` is taken off the reward of steps
    that terminate.
    """
    x = np.concatenate([transitions.obs, transitions.action], axis=1)
    y = transitions.next_obs if direct else transitions.next_obs - transitions.obs
    if reward:
        smooth = transitions.reward - np.float32(jump) * transitions.terminated
        y = np.concatenate([y, smooth[:, None]], axis=1)
    return torch.from_numpy(x), torch.from_numpy(y)


def stretch_means(
    transitions: Transitions, values: npt.NDArray[np.floating], length: int
) -> tuple[npt.NDArray[np.float64], IntArray]:
    """The mean of ``values`` [N] over each stretch of ``length`` steps of an episode, [S], and which stretch
    each step belongs to, [N]."""
    place = np.stack([transitions.episode, transitions.t // length])
    _, stretch = np.unique(place, axis=1, return_inverse=True)
    return np.bincount(stretch, values) / np.bincount(stretch), stretch


def sample_segments(
    transitions: Transitions, rows: int, length: int, generator: np.random.Generator
) -> Transitions:
    """``rows`` steps in stretches of at most ``length``, spread over as many episodes as there are.

    A few long episodes would give a small data set that has seen one trajectory; stretches from
    many see more, and stay whole for splits by group. Raises InvalidInputError if there are fewer
    than ``rows`` steps.
    """
    if rows < 1 or length < 1:
        raise InvalidInputError(f"rows and length must be at least 1; got {rows} and {length}")
    if rows > len(transitions):
        raise InvalidInputError(
            f"rows: {rows} were asked for, but there are {len(transitions)}; collect more data"
        )
    stretches: list[tuple[int, float, IntArray]] = []
    for episode in np.unique(transitions.episode):
        members = np.flatnonzero(transitions.episode == episode)
        pieces = [members[i : i + length] for i in range(0, len(members), length)]
        # In rounds: every episode's first pick comes before any episode's second.
        order = generator.permutation(len(pieces))
        stretches += [(turn, generator.random(), pieces[i]) for turn, i in enumerate(order)]
    stretches.sort(key=lambda s: s[:2])
    picked = np.concatenate([piece for _, _, piece in stretches])[:rows]
    return transitions[np.sort(picked)]
