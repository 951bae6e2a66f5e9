"""The shallow model fitted to all data so far by follow-the-leader: sparse random features, least squares.

W = (A + ρI)⁻¹B with A = Σ φ(x)φ(x)ᵀ and B = Σ φ(x)yᵀ over every row that was ever seen. The sums are all that
is kept, so nothing can be forgotten (after Losse-FTL; Liu et al. 2024, arXiv 2401.13034). How x is coded follows that
paper's idea; the number of grids, their knots and the noise are ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import FitResult
from mbrl_bilevel.continual.keeping import Nothing
from mbrl_bilevel.data.splits import FitData, IntArray
from mbrl_bilevel.inner.losses import MSE
from mbrl_bilevel.policies.distributions import DiagonalGaussian
from mbrl_bilevel.training.method import Method
from mbrl_bilevel.training.settings import Schedule

#: Rows whose features are written out at once.
_ROWS = 2048
#: Smallest variance, in units of the targets' variance: of a target that is predicted exactly.
_FLOOR = 1e-8


class SparsePolicy(nn.Module):
    """N(Wᵀφ(x), diag σ²), an ensemble of E; φ is a locality-sensitive sparse code, after arXiv 2401.13034.

    Each of ``grids`` grids has two axes, random directions in x, with ``bins`` knots each at equally likely
    values of a standard normal. A point gives its four nearest knots of a grid what bilinear
    interpolation gives them: four numbers that add up to one, of ``bins``² features a grid. The directions are
    each member's own, drawn from ``generator``; ``hidden`` has no meaning here.

    Raises InvalidInputError for sizes that are not positive, or fewer than two bins.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        generator: torch.Generator,
        members: int = 5,
        hidden: Sequence[int] = (),
        grids: int = 80,
        bins: int = 4,
    ) -> None:
        super().__init__()
        if min(inputs, outputs, members, grids) < 1 or bins < 2:
            raise InvalidInputError(
                f"inputs, outputs, members and grids must be at least 1, bins at least 2; got {inputs}, "
                f"{outputs}, {members}, {grids} and {bins}"
            )
        self.inputs, self.outputs, self.members = inputs, outputs, members
        self.grids, self.bins, self.hidden = grids, bins, ()
        #: Standard normal numbers that a draw of ``dist`` takes.
        self.noise_width = outputs
        directions = torch.randn(members, inputs, 2 * grids, generator=generator)
        self.directions: Tensor
        self.register_buffer("directions", directions / directions.norm(dim=1, keepdim=True))
        self.weight = nn.Parameter(torch.zeros(members, self.features, outputs))
        self.log_std = nn.Parameter(torch.zeros(members, 1, outputs))

    @property
    def features(self) -> int:
        """F, the length of φ(x)."""
        return self.grids * self.bins**2

    def dist(self, x: Tensor) -> DiagonalGaussian:
        """The predicted distribution at ``x`` [E, B, X]: mean and log σ [E, B, D]."""
        place, value = self.code(x)
        first = self.features * torch.arange(self.members, device=x.device)
        rows = (place + first.reshape(-1, 1, 1)).flatten(0, 1)
        mean = nn.functional.embedding_bag(
            rows, self.weight.flatten(0, 1), per_sample_weights=value.flatten(0, 1), mode="sum"
        ).reshape(*x.shape[:2], self.outputs)
        return DiagonalGaussian(mean, self.log_std.expand_as(mean))

    def code(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """φ at ``x`` [E, B, X]: which features are not zero, and what they are, [E, B, 4·grids] both."""
        along = torch.special.ndtr(torch.bmm(x, self.directions)) * (self.bins - 1)
        knot = along.detach().floor().clamp(0, self.bins - 2)
        near = along - knot
        # [E, B, grids, 2]: the lower of two knots on each axis of a grid, and the share of the upper one.
        low, share = (v.unflatten(-1, (self.grids, 2)) for v in (knot.long(), near))
        corner = low[..., 0] * self.bins + low[..., 1]
        corner = corner + self.bins**2 * torch.arange(self.grids, device=x.device)
        steps = torch.tensor([0, 1, self.bins, self.bins + 1], device=x.device)
        one, other = (torch.stack([1.0 - s, s], -1) for s in share.unbind(-1))
        value = (one.unsqueeze(-1) * other.unsqueeze(-2)).flatten(-2)
        return (corner.unsqueeze(-1) + steps).flatten(-2), value.flatten(-2)


@dataclass(frozen=True)
class Sums:
    """What least squares has to know of rows seen, member by member, in float64: ``gram`` Σφφᵀ [E, F, F],
    ``cross`` Σφyᵀ [E, F, D], ``squared`` Σy² [E, D] and their number ``rows`` [E]."""

    gram: Tensor
    cross: Tensor
    squared: Tensor
    rows: Tensor

    @staticmethod
    @torch.no_grad()
    def of(policy: SparsePolicy, data: FitData, rows: tuple[IntArray, ...]) -> Sums:
        """Of each member's ``rows`` of the data."""
        members, features, outputs = policy.weight.shape
        gram = torch.zeros(members, features, features, dtype=torch.float64)
        cross = torch.zeros(members, features, outputs, dtype=torch.float64)
        squared = torch.zeros(members, outputs, dtype=torch.float64)
        for member, mine in enumerate(rows):
            for part in torch.split(torch.from_numpy(mine), _ROWS):
                y = data.y[part].double()
                place, value = policy.code(data.x[part].expand(members, -1, -1))
                phi = torch.zeros(len(part), features, dtype=torch.float64)
                phi.scatter_(1, place[member], value[member].double())
                gram[member].addmm_(phi.mT, phi)
                cross[member].addmm_(phi.mT, y)
                squared[member] += y.square().sum(0)
        return Sums(gram, cross, squared, torch.tensor([float(len(mine)) for mine in rows]))

    def __add__(self, other: Sums) -> Sums:
        return Sums(
            self.gram + other.gram,
            self.cross + other.cross,
            self.squared + other.squared,
            self.rows + other.rows,
        )

    def solve(self, ridge: float) -> Tensor:
        """(A + ρI)⁻¹B, [E, F, D], ρ = ``ridge``."""
        eye = ridge * torch.eye(self.gram.shape[1], dtype=torch.float64)
        solution: Tensor = torch.cholesky_solve(self.cross, torch.linalg.cholesky(self.gram + eye))
        return solution

    def residual(self, weight: Tensor) -> Tensor:
        """Σ(y − Wᵀφ)² of these rows for a ``weight`` [E, F, D], exactly: [E, D]."""
        explained = (weight * (2.0 * self.cross - self.gram @ weight)).sum(1)
        return (self.squared - explained).clamp_min(0.0)


@dataclass(frozen=True)
class Known:
    """The sums of rows for training and of those held out, of all tasks so far."""

    train: Sums
    held_out: Sums

    def __add__(self, other: Known) -> Known:
        return Known(self.train + other.train, self.held_out + other.held_out)


def known_of(policy: SparsePolicy, data: FitData) -> Known:
    """The sums of ``data``; each member holds out its stopping sample."""
    folds = data.folds.without_outer()
    return Known(Sums.of(policy, data, folds.train), Sums.of(policy, data, folds.stop))


@dataclass(frozen=True)
class LeastSquares:
    """Fits a ``SparsePolicy`` by its formula, in the place of gradient steps, to the rows given and those
    ``known`` from before.

    ρ is the one of ``ridges`` with which a fit to the training rows predicts the held-out ones best, over all
    tasks so far; σ² is their mean squared residual then, pooled over members, dimension by dimension. Both
    come from the sums alone, exactly. W is then fitted to the rows of both.
    """

    ridges: tuple[float, ...] = (0.3, 3.0, 30.0)
    known: Known | None = None

    @torch.no_grad()
    def __call__(
        self,
        method: Method,
        policy: Any,
        data: FitData,
        generator: torch.Generator,
        schedule: Schedule,
    ) -> FitResult:
        found = known_of(policy, data)
        found = found if self.known is None else self.known + found
        trials = {r: found.held_out.residual(found.train.solve(r)) for r in self.ridges}
        ridge = min(trials, key=lambda r: float(trials[r].sum()))
        rows = found.held_out.rows.unsqueeze(1)
        variance = (trials[ridge].sum(0) / rows.sum()).clamp_min(_FLOOR)
        policy.weight.copy_((found.train + found.held_out).solve(ridge))
        policy.log_std.copy_(0.5 * variance.log().expand_as(policy.log_std))
        each = 0.5 * (math.log(2.0 * math.pi) + variance.log() + trials[ridge] / rows / variance)
        one = (1,) * policy.members
        return FitResult(tuple(each.mean(1).tolist()), one, 1, False, {}, {"ridge": ridge})


@dataclass(frozen=True)
class Followed(Nothing):
    """Follow the leader: the next fit is to the rows of all tasks so far, by their sums. Their size does not grow."""

    known: Known | None = None

    def require_for(self, method: Method) -> None:
        """Raises UnsupportedCombinationError for a method that is not fitted by LeastSquares."""
        if not isinstance(method.trainer, LeastSquares):
            raise UnsupportedCombinationError(
                "ftl keeps the sums of a least-squares fit, and this method makes none: write losse+ftl, or use "
                "joint, which keeps all rows"
            )

    def method(self, method: Method) -> Method:
        assert isinstance(method.trainer, LeastSquares)
        return replace(method, trainer=replace(method.trainer, known=self.known))

    def after(self, policy: Any, new: FitData, generator: torch.Generator) -> Followed:
        found = known_of(policy, new)
        return Followed(found if self.known is None else self.known + found)


#: Sparse random features and least squares; the loss is what its formula minimises.
LOSSE = Method(
    make_policy=SparsePolicy,
    make_loss=lambda policy, data: MSE(),
    summary="least squares on sparse random features, a constant variance from held-out residuals (Losse)",
    trainer=LeastSquares(),
)
