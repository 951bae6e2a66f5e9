"""Losses of the inner level: policy gradient on a reward, and the likelihood baselines beside it.

One signature for all: ``loss(policy, batch, generator) -> ([E], metrics)``, to be minimised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mbrl_bilevel.distributions import DiagonalGaussian
from mbrl_bilevel.estimators import Analytic, Estimator
from mbrl_bilevel.policies import GaussianPolicy, Policy
from mbrl_bilevel.regularisers import Entropy
from mbrl_bilevel.rewards import Reward
from mbrl_bilevel.types import Batch

Metrics = dict[str, Tensor]


class Loss(Protocol):
    """The slot: a scalar per ensemble member [E] and named metrics [E] for the log."""

    def __call__(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]: ...


@dataclass(frozen=True)
class NLL:
    """Negative log-likelihood, per target dimension: maximum likelihood estimation."""

    def __call__(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        log_prob = policy.dist(batch.x).log_prob(batch.y)
        loss = -batch.mean(log_prob) / batch.y.shape[-1]
        return loss, {"nll": loss.detach()}


@dataclass(frozen=True)
class MSE:
    """Mean squared error, per target dimension. It leaves σ alone: fit it afterwards."""

    def __call__(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        dist = policy.dist(batch.x)
        if not isinstance(dist, DiagonalGaussian):
            raise TypeError("MSE needs a Gaussian policy")
        loss = batch.mean((dist.mean - batch.y).square().mean(-1))
        return loss, {"mse": loss.detach()}


class PolicyGradient(nn.Module):
    """−G(θ, φ) = −E_{ŷ~p_θ}[r_φ(ŷ, y, x)] − λ·H(p_θ), per target dimension.

    The inner problem of arXiv 2510.07624. φ, the reward's parameters, is held here but is not
    trained here: the outer level sets it.
    """

    def __init__(
        self,
        reward: Reward,
        estimator: Estimator | None = None,
        regulariser: Entropy | None = None,
    ) -> None:
        super().__init__()
        self.reward = reward
        self.estimator: Estimator = estimator or Analytic()
        self.regulariser = regulariser or Entropy()

    def forward(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        assert isinstance(policy, GaussianPolicy)
        dist = policy.dist(batch.x)
        surrogate = self.estimator.surrogate(dist, self.reward, batch.y, batch.x, generator)
        bonus = self.regulariser.bonus(dist)
        loss = -batch.mean(surrogate + bonus) / batch.y.shape[-1]
        return loss, {"objective": -loss.detach(), "entropy": batch.mean(dist.entropy()).detach()}
