"""Which observed dimensions can matter for what is paid: told by held-out rows, before the network is trained.

What a reward should weigh is an error that reaches a return, at once or by way of other dimensions. A dimension of
another system never does, however well it can be predicted. Two questions that unseen rows answer:

1. *What belongs together?* Where a shallow model errs in two dimensions at once, they are of one system: errors of
   systems that know nothing of each other are independent.
2. *What does it matter to?* Give the model the values that such a group had in another row (permutation importance:
   Breiman 2001). Where the group says nothing, errors stay as large on average; so they do where the model only
   believes that it says something, which a gradient of the model cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.data.splits import FitData
from mbrl_bilevel.outer.shallow import Shallow
from mbrl_bilevel.policies.networks import EnsembleMLP
from mbrl_bilevel.policies.policies import Policy

#: Rows in a row, whose errors may be alike, count as one for a residual, and for the rise of its square.
_RESIDUAL_BLOCK, _SQUARE_BLOCK = 5, 10
#: Standard errors above which a rise is known to be one.
_KNOWN = 4.0
#: What may matter to more than this part of what is paid is never let go, however many dimensions it has.
_MOST = 0.1
#: Bins of as many rows for one input alone; how far beyond its mean, in standard deviations of chance, a sum over them counts.
_BINS, _BEYOND = 16, 6.0
#: With more dimensions, or groups, each is asked about with fewer rows, or draws: time and memory grow by the square.
_MANY = 64


@dataclass(frozen=True)
class Relevance:
    """A weight for each target: 1, or ``floor`` where unseen rows say that its errors do not matter.

    A group of dimensions matters to a target as far as the squared error there rises when the group is that of another
    row, over the rise when the whole state is. By way of others it matters as those do. It is let go if the most that it
    may matter, ``sigmas`` standard errors above what was found, is less than ``share`` of what as many dimensions
    matter on average, and less than a tenth of what is paid; if neither it nor a part of it that is a system of its own is known
    to matter to one target by more, which an average would hide; and if nothing that the model leaves over of what is paid
    depends on one of its dimensions.

    Two dimensions are of one group if their residuals, or the roots of the residuals' sizes, are correlated beyond chance at the
    ``level`` of all pairs together. A group of less than a quarter of all dimensions joins the one that it is tied to
    most, by residuals or since one matters to the other, if that is ``attach`` standard errors from nothing; dimensions
    tied to none are a group together. Systems that begin anew at once may err alike then: a group is parted along its weakest
    ties where both sides have a quarter of all dimensions and neither matters to the other by more than ``apart``, counted
    as for ``share``.

    What is paid is the reward and the endings, learned or by rule. Where one of them varies and it is not known that the
    state tells of it, all weights are 1.

    ``features``, ``rows`` of ``Shallow``; ``draws``: how often a group is given other rows. Raises InvalidInputError for
    numbers out of range.
    """

    floor: float = 0.02
    share: float = 0.25
    apart: float = 0.05
    sigmas: float = 2.0
    level: float = 1e-5
    attach: float = 3.0
    features: int = 300
    rows: int = 8000
    draws: int = 8

    def __post_init__(self) -> None:
        for name, most in (("floor", 1.0), ("share", 1.0), ("apart", 1.0), ("level", 0.5)):
            if not 0.0 < getattr(self, name) <= most:
                raise InvalidInputError(
                    f"Relevance: {name} must be above 0 and at most {most}; got {getattr(self, name)}"
                )
        if min(self.features, self.rows, self.draws) < 1 or min(self.sigmas, self.attach) < 0.0:
            raise InvalidInputError(
                f"Relevance: features, rows and draws must be at least 1, sigmas and attach not negative; got {self}"
            )

    @torch.no_grad()
    def weights(self, data: FitData) -> Tensor:
        """A weight for each target of ``data``, [D]; ones where its rows do not follow each other, pay nothing
        or are hardly any."""
        ones = data.y.new_ones(data.y.shape[1])
        paid = _paid(data)
        held_out = data.folds.with_stop_as_outer().outer
        if paid is None or min(map(len, held_out)) < 2 * _SQUARE_BLOCK:
            return ones
        moved = _moved(data)
        rows = max(1, self.rows * _MANY // max(_MANY, moved.shape[1]))
        targets = torch.cat([data.y.double(), paid], 1)
        shallow = Shallow.fitted(data, targets, self.features, self.rows, rows)
        evidence = _Evidence(self, shallow, moved, ones.shape[0])
        if len(evidence.pays) < paid.shape[1]:
            return ones
        matters = torch.zeros(evidence.states, dtype=torch.bool)
        groups = evidence.groups()
        for group in _mattering(groups, evidence):
            matters[group] = True
        of_none = ~evidence.moved.any(1)
        kept = of_none | (evidence.moved & matters).any(1)
        return torch.where(kept.to(ones.device), ones, ones.new_tensor(self.floor))


@torch.no_grad()
def unseen(policy: Policy, data: FitData) -> FitData:
    """``data`` in which ``policy`` does not see what counts less than others, nor will when it is trained: these inputs are
    zero, and so is what it makes of them. They say nothing about the others, and what they seem to say is noise.

    Inputs that never move within an episode stay: nothing can be told of them. Raises UnsupportedCombinationError for a
    policy that is not made of networks of this project.
    """
    assert data.chain is not None
    assert data.relevance is not None
    network = getattr(policy, "network", None)
    if not isinstance(network, EnsembleMLP):
        raise UnsupportedCombinationError(
            f"a {type(policy).__name__} cannot be kept from seeing inputs: use another method, such as bilevel"
        )
    little = data.relevance < data.relevance.max()
    hidden = (data.chain.gain[little] != 0.0).any(0).nonzero().squeeze(1)
    x = data.x.clone()
    x[:, hidden] = 0.0
    readers = [network]
    # Without hidden layers the inputs are the features that σ(x) is read from, too.
    scale = getattr(policy, "scale_network", None)
    if len(network.pairs) == 1 and isinstance(scale, EnsembleMLP):
        readers.append(scale)
    for reader in readers:
        first, _ = reader.pairs[0]
        first[:, hidden] = 0.0
    return replace(data, x=x)


def _paid(data: FitData) -> Tensor | None:
    """What each step paid, and whether it was the last, as far as these vary: [N, 1 or 2], standardised. None if
    neither does, or it is not known."""
    chain = data.chain
    if chain is None or chain.outcome is None or not bool((chain.gain != 0.0).any()):
        return None
    step = chain.outcome(data.x.unsqueeze(0), data.y.unsqueeze(0))
    ends = step.terminated[0] if chain.ended is None else chain.ended.to(step.reward)
    found = torch.stack([step.reward[0], ends], 1).double()
    spread = found.std(0)
    varies = spread > 1e-6 * (1.0 + found.abs().mean(0))
    if not bool(varies.any()):
        return None
    return ((found - found.mean(0)) / spread)[:, varies]


def _moved(data: FitData) -> Tensor:
    """Which dimensions of the state a target moves, [D, S] bool."""
    assert data.chain is not None
    return (data.chain.gain != 0.0).cpu()


class _Evidence:
    """What unseen rows say of ties between dimensions, and of what matters to what."""

    def __init__(self, rule: Relevance, shallow: Shallow, moved: Tensor, targets: int) -> None:
        self.rule, self.moved, self.states = rule, moved, moved.shape[1]
        self._shallow, self._residuals = shallow, shallow.residuals()
        self._before = [r.square() for r in self._residuals]
        self._generator = torch.Generator().manual_seed(0)
        self._rises: dict[tuple[int, ...], Tensor] = {}
        self._asked: dict[tuple[tuple[int, ...], tuple[int, ...]], float] = {}
        self._draws = rule.draws
        self._parts: list[list[int]] = []
        whole = self._rise(range(self.states))
        mean, error = _mean_and_error(whole)
        known = mean > _KNOWN * error
        self._scale = mean.clamp(min=1e-12)
        self._known = known[:targets]
        self.pays = [k for k in range(targets, len(mean)) if known[k]]
        self.ties = self._ties(targets)
        self._unsaid = _unsaid(shallow.x, [r[:, self.pays] for r in self._residuals])

    def groups(self) -> list[list[int]]:
        """The state's dimensions by what belongs together."""
        pairs = int(self.moved.any(1).sum()) ** 2
        chance = NormalDist().inv_cdf(1.0 - self.rule.level / (2.0 * max(1, pairs)))
        groups = [part for g in _connected(self.ties > chance) for part in self._parted(g)]
        self._parts = list(groups)
        self._draws = max(1, self.rule.draws * _MANY // max(_MANY, len(groups)))
        settled: list[list[int]] = []
        while True:
            small = [g for g in groups if 4 * len(g) < self.states and g not in settled]
            if not small or len(groups) == 1:
                break
            group = min(small, key=len)
            others = [g for g in groups if g is not group]
            tie, nearest = max(((self._tie(group, g), g) for g in others), key=lambda pair: pair[0])
            if tie > self.rule.attach:
                groups = [g for g in others if g is not nearest] + [sorted(group + nearest)]
                settled = []
            else:
                settled.append(group)
        alone = sorted(g[0] for g in groups if len(g) == 1)
        return [g for g in groups if len(g) > 1] + ([alone] if alone else [])

    def may_matter(self, group: Sequence[int], targets: Sequence[int]) -> bool:
        """Whether ``group`` may matter to all ``targets`` together, or it or one of its parts, which others
        would hide, is known to matter to one of them."""
        if not targets:
            return False
        most = self._at_most(group, targets)
        if most >= self.rule.share * self._usual(group):
            return True
        if targets == self.pays and (most >= _MOST or bool(self._unsaid[group].any())):
            return True
        parts = [part for part in self._parts if set(part) < set(group)]
        return any(self._known_to_matter(part, targets) for part in (group, *parts))

    def _known_to_matter(self, group: Sequence[int], targets: Sequence[int]) -> bool:
        share, error = _mean_and_error(self._rise(group)[:, targets] / self._scale[targets])
        least = min(_MOST, self.rule.share * self._usual(group))
        return bool(((share >= least) & (share > _KNOWN * error)).any())

    def explained(self, group: Sequence[int]) -> list[int]:
        """The targets that move ``group`` and are known to be explained by the state."""
        moves = self.moved[:, group].any(1) & self._known
        return [int(k) for k in moves.nonzero().squeeze(1)]

    def _parted(self, group: list[int]) -> list[list[int]]:
        """``group`` in two where neither side matters to the other, each at least a quarter of all dimensions."""
        for half in _halves(self.ties[group][:, group]):
            one = [g for g, inside in zip(group, half, strict=True) if inside]
            other = [g for g in group if g not in one]
            if 4 * min(len(one), len(other)) < self.states:
                continue
            ways = ((one, self.explained(other)), (other, self.explained(one)))
            if all(self._at_most(*way) < self.rule.apart * self._usual(way[0]) for way in ways):
                return [*self._parted(one), *self._parted(other)]
        return [group]

    def _tie(self, one: Sequence[int], other: Sequence[int]) -> float:
        """How many standard errors from nothing what ties them is."""
        key = (tuple(one), tuple(other))
        if key not in self._asked:
            self._asked[key] = self._asked[key[::-1]] = self._found_tie(one, other)
        return self._asked[key]

    def _found_tie(self, one: Sequence[int], other: Sequence[int]) -> float:
        found = [float(self.ties[one][:, other].max())]
        for group, targets in ((one, self.explained(other)), (other, self.explained(one))):
            if targets:
                mean, error = self._share(group, targets)
                found.append(mean / max(error, 1e-12))
        return max(found)

    def _usual(self, group: Sequence[int]) -> float:
        """What as many dimensions matter on average."""
        return len(group) / self.states

    def _at_most(self, group: Sequence[int], targets: Sequence[int]) -> float:
        """The most that ``group`` may matter to ``targets``, as a part of what the state explains of them."""
        if not targets:
            return 0.0
        mean, error = self._share(group, targets)
        return mean + self.rule.sigmas * error

    def _share(self, group: Sequence[int], targets: Sequence[int]) -> tuple[float, float]:
        """How much of what the state explains of ``targets``, on average, is gone without ``group``; its standard
        error."""
        share = (self._rise(group)[:, targets] / self._scale[targets]).mean(1, keepdim=True)
        mean, error = _mean_and_error(share)
        return float(mean), float(error)

    def _rise(self, group: Sequence[int]) -> Tensor:
        """By how much squared errors rise where ``group`` is another row's, by blocks of rows: [B, D]."""
        key = tuple(group)
        if key not in self._rises:
            total = [torch.zeros_like(before) for before in self._before]
            for _ in range(self._draws):
                after = self._shallow.shuffled(key, self._generator)
                for sum_, residual, before in zip(total, after, self._before, strict=True):
                    sum_ += (residual.square() - before) / self._draws
            self._rises[key] = torch.cat([_blocks(t, _SQUARE_BLOCK) for t in total]).float().cpu()
        return self._rises[key]

    def _ties(self, targets: int) -> Tensor:
        """Between each two dimensions of the state, the strongest correlation of what moves them, in standard errors:
        [S, S]."""
        residuals = [r[:, :targets] for r in self._residuals]
        sizes = [r.abs().sqrt() for r in residuals]
        between = torch.maximum(_correlations(residuals), _correlations(sizes)).cpu()
        moved = self.moved.float()
        found = torch.zeros(self.states, self.states)
        for state in range(self.states):
            strongest = (between * moved[:, state].unsqueeze(1)).amax(0)
            found[state] = (strongest.unsqueeze(1) * moved).amax(0)
        found.fill_diagonal_(0.0)
        return torch.maximum(found, found.T)


def _mattering(groups: Sequence[Sequence[int]], evidence: _Evidence) -> Iterator[Sequence[int]]:
    """The groups that may matter to what is paid, or to a group that does."""
    left, newly = list(groups), [evidence.pays]
    while newly:
        targets = newly.pop()
        found = [g for g in left if evidence.may_matter(g, targets)]
        left = [g for g in left if g not in found]
        newly += [evidence.explained(group) for group in found]
        yield from found


def _unsaid(inputs: Sequence[Tensor], residuals: Sequence[Tensor]) -> Tensor:
    """Which of the ``inputs`` [R, X] of each member tell by themselves, by the bin of their values, of the ``residuals`` [R, P] of
    what is paid, too rough for the shallow model: [X] bool. Known beyond chance, and of ``_MOST`` of the variance at least."""
    x, count = torch.cat(list(inputs)).double(), residuals[0].shape[1]
    found = torch.zeros(x.shape[1], dtype=torch.bool)
    levels = torch.linspace(0.0, 1.0, _BINS + 1, dtype=x.dtype, device=x.device)[1:-1]
    for column in range(x.shape[1]):
        edges: Tensor = torch.unique(torch.quantile(x[:, column], levels))
        blocks = []
        for own, residual in zip(inputs, residuals, strict=True):
            which = torch.bucketize(own[:, column].double().contiguous(), edges)
            within = torch.nn.functional.one_hot(which, len(edges) + 1).to(residual)
            parts = within.unsqueeze(2) * residual.unsqueeze(1)
            blocks.append(_blocks(torch.cat([parts.flatten(1), within], 1), _SQUARE_BLOCK))
        mean, error = _mean_and_error(torch.cat(blocks))
        bins = len(edges) + 1
        share = mean[-bins:].clamp(min=1e-12).unsqueeze(1)
        mean, error = (v[:-bins].reshape(bins, count) for v in (mean, error))
        beyond = (mean / error.clamp(min=1e-12)).square().sum(0) - bins
        part = ((mean.square() - error.square()) / share).sum(0)
        found[column] = bool(((beyond > _BEYOND * math.sqrt(2.0 * bins)) & (part > _MOST)).any())
    return found


def _correlations(values: Sequence[Tensor]) -> Tensor:
    """|z| of the correlation of each two columns of ``values`` [R, D] of all members, [D, D] in float32."""
    every = torch.cat(list(values))
    mean, spread = every.mean(0), every.std(0).clamp(min=1e-12)
    total = every.new_zeros(every.shape[1], every.shape[1])
    squares, count = torch.zeros_like(total), 0
    for value in values:
        standard = (value - mean) / spread
        for rows in torch.split(standard, 64 * _RESIDUAL_BLOCK):
            blocks = len(rows) // _RESIDUAL_BLOCK
            cut = rows[: blocks * _RESIDUAL_BLOCK].reshape(blocks, _RESIDUAL_BLOCK, len(mean))
            products = cut.transpose(1, 2) @ cut / _RESIDUAL_BLOCK
            total += products.sum(0)
            squares += products.square().sum(0)
            count += blocks
    average = total / count
    variance = (squares / count - average.square()).clamp(min=0.0)
    z = average.abs() / (variance / count).sqrt().clamp(min=1e-12)
    return z.fill_diagonal_(0.0).float()


def _connected(joined: Tensor) -> list[list[int]]:
    """The connected components of a symmetric relation, [S, S] bool."""
    count, label = connected_components(coo_array(joined.numpy()), directed=False)
    return [np.flatnonzero(label == k).tolist() for k in range(count)]


def _halves(ties: Tensor) -> Iterator[list[bool]]:
    """The two sides of each edge of the spanning tree of the strongest ``ties`` [S, S], the weakest edge first."""
    tree = minimum_spanning_tree((1.0 + ties.max() - ties).numpy())
    edges = tree.tocoo()
    for cut in edges.data.argsort()[::-1]:
        kept = np.arange(len(edges.data)) != cut
        left = coo_array((edges.data[kept], (edges.row[kept], edges.col[kept])), ties.shape)
        _, side = connected_components(left, directed=False)
        yield (side == side[0]).tolist()


def _blocks(values: Tensor, length: int) -> Tensor:
    """Means over each ``length`` rows of [R, D]; what is left over at the end counts as none."""
    count = len(values) // length
    return values[: count * length].reshape(count, length, values.shape[1]).mean(1)


def _mean_and_error(values: Tensor) -> tuple[Tensor, Tensor]:
    return values.mean(0), values.std(0) / math.sqrt(len(values))
