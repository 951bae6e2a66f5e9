"""What a learner has of earlier tasks' data: stored rows, or inputs and targets drawn anew.

Rows carry who may see them (``Folds``): what an ensemble member held out once, it holds out for ever.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.data.splits import FitData, Folds, IntArray, cross_fit
from mbrl_bilevel.data.table_folds import row_folds
from mbrl_bilevel.policies.policies import CategoricalPolicy, Policy


@dataclass(frozen=True)
class Memory:
    """A sample of at most ``capacity`` of the ``seen`` rows of the tasks so far, each as likely as any
    other (reservoir sampling, Vitter 1985; Chaudhry et al. 2019, arXiv 1902.10486)."""

    capacity: int
    rows: FitData | None = None
    seen: int = 0

    def __post_init__(self) -> None:
        if self.capacity < 1:
            raise InvalidInputError(f"capacity must be at least 1; got {self.capacity}")

    def after(self, data: FitData, generator: torch.Generator) -> Memory:
        """The memory once the rows of ``data`` were seen as well."""
        seen, new = self.seen + len(data.x), len(data.x)
        random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        if seen <= self.capacity:
            picked_old, picked_new = np.arange(self.seen), np.arange(new)
        else:
            from_new = int(random.hypergeometric(new, self.seen, self.capacity))
            old = 0 if self.rows is None else len(self.rows.x)
            picked_new = np.sort(random.choice(new, from_new, replace=False))
            picked_old = np.sort(random.choice(old, self.capacity - from_new, replace=False))
        kept = taken(data, picked_new)
        if self.rows is not None:
            kept = joined(taken(self.rows, picked_old), kept)
        return Memory(self.capacity, kept, seen)


@dataclass(frozen=True)
class InputDensity:
    """The inputs of each earlier task as a Gaussian, with ``rows`` of each task counted, ``mean`` [X] and
    ``factor`` [X, X] the Cholesky factor of its covariance."""

    mean: tuple[Tensor, ...] = ()
    factor: tuple[Tensor, ...] = ()
    rows: tuple[int, ...] = ()

    def after(self, x: Tensor) -> InputDensity:
        """With one more task, whose inputs are x [N, X]."""
        centred = (x - x.mean(0)).double()
        covariance = centred.mT @ centred / len(x)
        # A column that never moves has no variance to invert.
        jitter = 1e-8 * torch.eye(len(covariance), dtype=torch.float64)
        factor = torch.linalg.cholesky(covariance + jitter).to(x.dtype)
        return InputDensity((*self.mean, x.mean(0)), (*self.factor, factor), (*self.rows, len(x)))

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` inputs, from each task in proportion to its rows, [count, X]."""
        share = torch.tensor(self.rows, dtype=torch.float64)
        task = torch.multinomial(share, count, replacement=True, generator=generator)
        noise = torch.randn(count, len(self.mean[0]), generator=generator)
        mean, factor = torch.stack(self.mean)[task], torch.stack(self.factor)[task]
        return mean + (factor @ noise.unsqueeze(-1)).squeeze(-1)


@torch.no_grad()
def drawn_targets(policy: Policy, x: Tensor, generator: torch.Generator) -> Tensor:
    """y [N, D] at x [N, X], each drawn from one of the members, taken at random."""
    dist = policy.dist(x.expand(policy.members, -1, -1))
    each = dist.sample(1, generator)[0]
    member = torch.randint(policy.members, (len(x),), generator=generator)
    return each[member, torch.arange(len(x))]


def independent_rows(x: Tensor, y: Tensor, policy: Policy, generator: torch.Generator) -> FitData:
    """Rows that belong to no episode, each of them free to go to any fold; folds of the kind that the
    ``policy`` is trained on."""
    random = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    if isinstance(policy, CategoricalPolicy):
        return FitData(x, y, row_folds(y[:, 0].long().numpy(), policy.members, random))
    return FitData(x, y, cross_fit(np.arange(len(x)), policy.members, random))


def joined(first: FitData, second: FitData) -> FitData:
    """The rows of both, each seen by whom it was seen."""
    shift = len(first.x)

    def both(a: tuple[IntArray, ...], b: tuple[IntArray, ...]) -> tuple[IntArray, ...]:
        return tuple(np.concatenate([i, j + shift]) for i, j in zip(a, b, strict=True))

    folds = Folds(
        both(first.folds.train, second.folds.train),
        both(first.folds.stop, second.folds.stop),
        both(first.folds.outer, second.folds.outer),
    )
    return FitData(torch.cat([first.x, second.x]), torch.cat([first.y, second.y]), folds)


def rehearsed(new: FitData, past: FitData, share: float) -> FitData:
    """The rows of both, those of ``past`` named as often as makes them ``share`` of each sample (but at
    least once): in training, for early stopping and for the outer level alike."""
    if not 0.0 < share < 1.0:
        raise InvalidInputError(f"share must lie between 0 and 1; got {share}")
    together = joined(new, past)
    wanted = len(new.x) * share / (1.0 - share)
    times = max(1, round(wanted / len(past.x)))

    def repeat(rows: tuple[IntArray, ...]) -> tuple[IntArray, ...]:
        return tuple(
            np.concatenate([r[r < len(new.x)], np.tile(r[r >= len(new.x)], times)]) for r in rows
        )

    folds = together.folds
    return replace(
        together, folds=Folds(repeat(folds.train), repeat(folds.stop), repeat(folds.outer))
    )


def taken(data: FitData, rows: IntArray) -> FitData:
    """The ``rows`` [M] of ``data``, in this order, seen by whom they were seen."""
    place = np.full(len(data.x), -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))

    def of(parts: tuple[IntArray, ...]) -> tuple[IntArray, ...]:
        return tuple(found[found >= 0] for found in (place[np.unique(part)] for part in parts))

    folds = Folds(of(data.folds.train), of(data.folds.stop), of(data.folds.outer))
    index = torch.from_numpy(rows)
    return FitData(data.x[index], data.y[index], folds)
