"""What the outer level wants, and what early stopping watches: a value per member on held-out data.

Lower is better. One-step likelihood is the objective of arXiv 2510.07624.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mbrl_bilevel.distributions import DiagonalGaussian
from mbrl_bilevel.policies import Policy
from mbrl_bilevel.types import Batch


class Objective(Protocol):
    """``objective(policy, batch) -> [E]``, to be minimised."""

    def __call__(self, policy: Policy, batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class OneStepNLL:
    """Negative log-likelihood per target dimension, in normalised units."""

    def __call__(self, policy: Policy, batch: Batch) -> Tensor:
        return -batch.mean(policy.dist(batch.x).log_prob(batch.y)) / batch.y.shape[-1]


@dataclass(frozen=True)
class ProfileNLL:
    """Negative log-likelihood at the constant σ that suits this sample best, per dimension.

    ½ log(2πe Σ_dd), Σ_dd the sample's mean squared residual: what a constant-σ policy can reach.
    It watches the mean alone while σ is still on its way to its optimum.
    """

    def __call__(self, policy: Policy, batch: Batch) -> Tensor:
        dist = policy.dist(batch.x)
        if not isinstance(dist, DiagonalGaussian):
            raise TypeError("ProfileNLL needs a Gaussian policy")
        squared = (dist.mean - batch.y).square().movedim(-1, 0)
        return 0.5 * (batch.mean(squared) * (2.0 * math.pi * math.e)).log().mean(0)


@dataclass(frozen=True)
class OneStepMSE:
    """Mean squared error per target dimension, in normalised units."""

    def __call__(self, policy: Policy, batch: Batch) -> Tensor:
        dist = policy.dist(batch.x)
        if not isinstance(dist, DiagonalGaussian):
            raise TypeError("OneStepMSE needs a Gaussian policy")
        return batch.mean((dist.mean - batch.y).square().mean(-1))
