"""Losses of the inner level: policy gradient on a reward, and the likelihood baselines beside it.

One signature for all: ``loss(policy, batch, generator) -> ([E], metrics)``, to be minimised.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mbrl_bilevel.distributions import Distribution
from mbrl_bilevel.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.estimators import Analytic, DiCE, Estimator
from mbrl_bilevel.policies import Policy
from mbrl_bilevel.regularisers import Entropy, Regulariser
from mbrl_bilevel.rewards import Reward, expected_reward
from mbrl_bilevel.types import Batch

Metrics = dict[str, Tensor]


class Loss(Protocol):
    """The slot: a scalar per ensemble member [E] and named metrics [E] for the log."""

    def __call__(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]: ...


class PolicyGradient(nn.Module):
    """−G(θ, φ) = −(E_{ŷ~p_θ}[r_φ(ŷ, y, x)] + λ_H·H(p_θ) − λ_K·KL(p_θ ‖ p_ref)), per target dimension.

    The inner problem of arXiv 2510.07624. ``parameters()`` is φ: the trainable parameters of the
    reward and of the regulariser, held here but set by the outer level. ``reward`` is any callable
    r(ŷ [K, E, B, D], y [E, B, D], x [E, B, X]) -> [K, E, B]; one that is no module has no φ.
    Where the policy's entropy is known by a bound only (a mixture), the bonus is estimated without
    bias from ``bonus_samples`` draws of its own.

    Raises InvalidInputError for a reward that cannot be called.
    """

    def __init__(
        self,
        reward: Reward,
        estimator: Estimator | None = None,
        regulariser: Regulariser | None = None,
        *,
        bonus_samples: int = 8,
    ) -> None:
        super().__init__()
        if not callable(reward):
            raise InvalidInputError(
                f"reward must be a module or a function r(y_hat, y, x); got {type(reward).__name__}"
            )
        self.reward = reward
        self.estimator: Estimator = estimator or Analytic()
        self.regulariser: Regulariser = regulariser or Entropy()
        self._bonus_estimator = DiCE(bonus_samples)

    @property
    def unbiased(self) -> bool:
        """Whether the gradient in θ is that of G in expectation; if not, the inner optimum moves."""
        return self.estimator.unbiased

    @property
    def second_derivative(self) -> bool:
        """Whether differentiating the loss twice in θ gives the Hessian of −G in expectation."""
        return self.estimator.second_derivative

    def forward(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        """The loss [E] and the metrics objective (its negative) and bonus, both [E]."""
        dist = policy.dist(batch.x)
        surrogate = self.estimator.surrogate(dist, self.reward, batch.y, batch.x, generator)
        bonus = self._bonus(dist, batch.y, batch.x, generator)
        loss = -batch.mean(surrogate + bonus) / batch.y.shape[-1]
        return loss, {"objective": -loss.detach(), "bonus": batch.mean(bonus).detach()}

    def objective(self, dist: Distribution, y: Tensor, x: Tensor) -> Tensor:
        """G of each row in closed form, [E, B]: the sum over target dimensions, not the mean.

        Raises UnsupportedCombinationError where E[r] or the bonus has no closed form under ``dist``.
        """
        if not _closed_bonus(dist):
            raise UnsupportedCombinationError(
                f"the entropy of a {type(dist).__name__} is known by a bound only, so the inner "
                "objective has no closed form: use a solver that takes sampled gradients"
            )
        return expected_reward(self.reward, dist, y, x) + self.regulariser.bonus(dist, x)

    def _bonus(
        self, dist: Distribution, y: Tensor, x: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The regulariser's bonus, [E, B]: exact, or a surrogate with all its derivatives right."""
        if _closed_bonus(dist):
            return self.regulariser.bonus(dist, x)

        def integrand(y_hat: Tensor, y: Tensor, x: Tensor) -> Tensor:
            return self.regulariser.integrand(dist, y_hat, x)

        return self._bonus_estimator.surrogate(dist, integrand, y, x, generator)


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
    """Mean squared error, per target dimension. It leaves the scale alone: fit it afterwards.

    Raises UnsupportedCombinationError for a policy whose distribution has no mean (classes).
    """

    def __call__(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        dist = policy.dist(batch.x)
        mean = getattr(dist, "mean", None)
        # A mixture keeps its components' means there, with one dimension more.
        if not isinstance(mean, Tensor) or mean.ndim != batch.y.ndim:
            raise UnsupportedCombinationError(
                f"MSE needs a Gaussian policy; got a {type(dist).__name__}: use NLL"
            )
        loss = batch.mean((mean - batch.y).square().mean(-1))
        return loss, {"mse": loss.detach()}


def _closed_bonus(dist: Distribution) -> bool:
    return dist.entropy_is == dist.kl_is == "exact"
