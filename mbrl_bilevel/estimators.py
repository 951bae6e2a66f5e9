"""Estimators of ∇_θ E_{ŷ~p_θ}[r(ŷ, y, x)], each as a surrogate whose gradient it is.

``surrogate(dist, reward, y, x, generator) -> [E, B]``. The value of a score-function surrogate
means nothing; only its first derivative does. Each says so by two attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mbrl_bilevel.distributions import DiagonalGaussian
from mbrl_bilevel.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.rewards import AnalyticReward, Reward


class Estimator(Protocol):
    """The slot: a surrogate, whether its gradient is unbiased, and its second derivative right."""

    @property
    def unbiased(self) -> bool: ...

    @property
    def second_derivative(self) -> bool: ...

    def surrogate(
        self,
        dist: DiagonalGaussian,
        reward: Reward,
        y: Tensor,
        x: Tensor,
        generator: torch.Generator,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Analytic:
    """The exact expectation, for rewards that offer ``expected``: no samples, no variance."""

    unbiased: bool = True
    second_derivative: bool = True

    def surrogate(
        self,
        dist: DiagonalGaussian,
        reward: Reward,
        y: Tensor,
        x: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """E[r] itself, [E, B]. Raises UnsupportedCombinationError without a closed form."""
        if not isinstance(reward, AnalyticReward):
            raise UnsupportedCombinationError(
                f"estimator Analytic needs a reward with a closed-form mean under the policy; "
                f"{type(reward).__name__} has none: use LeaveOneOut"
            )
        return reward.expected(dist, y, x)


@dataclass(frozen=True)
class LeaveOneOut:
    """REINFORCE with the mean reward of the other samples as baseline (Kool et al. 2019, eq. 8).

    Unbiased, because the baseline of a sample does not depend on it. Differentiating the surrogate
    twice does not give the Hessian, so ``second_derivative`` is False.
    """

    samples: int = 8
    unbiased: bool = True
    second_derivative: bool = False

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise InvalidInputError(
                f"samples must be at least 2 for a leave-one-out baseline; got {self.samples}"
            )

    def surrogate(
        self,
        dist: DiagonalGaussian,
        reward: Reward,
        y: Tensor,
        x: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """(1/K) Σ_k (r_k − mean of the other r) · log p_θ(ŷ_k|x), [E, B]."""
        draws = dist.sample(self.samples, generator)
        with torch.no_grad():
            value = reward(draws, y, x)
            advantage = (value - value.mean(0)) * (self.samples / (self.samples - 1))
        return (advantage * dist.log_prob(draws)).mean(0)
