"""Regularisers of the inner problem, the one home of λ.

G = E[r] + λ·H(p_θ): the entropy weight (temperature) λ keeps the policy stochastic.
Source: From Data to Rewards (arXiv 2510.07624), the inner problem.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mbrl_bilevel.distributions import DiagonalGaussian
from mbrl_bilevel.errors import InvalidInputError


@dataclass(frozen=True)
class Entropy:
    """λ·H(p_θ(·|x)) with a constant ``temperature`` λ > 0.

    (U, λ) → c·(U, λ) leaves the inner optimum unchanged; λ = 1 fixes this gauge where U is learned.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise InvalidInputError(f"temperature must be positive; got {self.temperature}")

    def bonus(self, dist: DiagonalGaussian) -> Tensor:
        """λ·H, [E, B]."""
        return self.temperature * dist.entropy()
