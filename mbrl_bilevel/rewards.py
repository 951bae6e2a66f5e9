"""Rewards r_φ(ŷ, y, x): what generating ŷ is worth where the data says y.

Each is a module whose parameters are φ, the variables of the outer problem.
Source: From Data to Rewards (arXiv 2510.07624).
"""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mbrl_bilevel.distributions import DiagonalGaussian
from mbrl_bilevel.errors import InvalidInputError

Form = Literal["scaled_identity", "diagonal"]


@runtime_checkable
class Reward(Protocol):
    """``reward(y_hat [K, E, B, D], y [E, B, D], x [E, B, X]) -> [K, E, B]``, higher is better."""

    def __call__(self, y_hat: Tensor, y: Tensor, x: Tensor, /) -> Tensor: ...


@runtime_checkable
class AnalyticReward(Reward, Protocol):
    """A reward whose mean under the policy has a closed form."""

    def expected(self, dist: DiagonalGaussian, y: Tensor, x: Tensor) -> Tensor:
        """E_{ŷ~dist}[r(ŷ, y, x)], [E, B]."""
        ...


class Mahalanobis(nn.Module):
    """r = −(ŷ − y)ᵀ U (ŷ − y) with U positive by construction: ``diag(u)``, or ``u·I``.

    With entropy weight λ the inner optimum is N(E[y|x], (λ/2) U⁻¹) (arXiv 2510.07624, section 4).
    φ is log u, so any unconstrained step keeps U positive.
    """

    def __init__(self, dim: int, form: Form = "diagonal", initial: float = 0.5) -> None:
        super().__init__()
        if form not in ("scaled_identity", "diagonal"):
            raise InvalidInputError(f'form must be "scaled_identity" or "diagonal"; got {form!r}')
        if dim < 1 or not initial > 0.0:
            raise InvalidInputError(
                f"dim must be >= 1 and initial > 0; got dim={dim}, initial={initial}"
            )
        self.dim, self.form = dim, form
        free = 1 if form == "scaled_identity" else dim
        self.log_u = nn.Parameter(torch.full((free,), initial).log())

    @property
    def u(self) -> Tensor:
        """The diagonal of U, [D]."""
        return self.log_u.exp().expand(self.dim)

    @torch.no_grad()
    def set_u(self, u: Tensor) -> None:
        """Set the diagonal of U to ``u`` [D] (positive; all alike for the scaled identity)."""
        if not (u > 0).all():
            raise InvalidInputError(f"u must be positive in every dimension; got {u.tolist()}")
        self.log_u.copy_(u[: self.log_u.numel()].log())

    def forward(self, y_hat: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return -((y_hat - y).square() * self.u).sum(-1)

    def expected(self, dist: DiagonalGaussian, y: Tensor, x: Tensor) -> Tensor:
        """−(μ − y)ᵀU(μ − y) − tr(U S), [E, B]: the mean of a quadratic form (Petersen & Pedersen
        2012, eq. 378)."""
        second_moment = (dist.mean - y).square() + dist.std.square()
        return -(second_moment * self.u).sum(-1)
