"""Losses of the inner level: policy gradient on a reward, and the likelihood baselines beside it.

One signature for all: ``loss(policy, batch, generator) -> ([E], metrics)``, to be minimised.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.estimators import Automatic, DiCE, Estimator
from mbrl_bilevel.inner.open_loop import k_step_mse
from mbrl_bilevel.inner.regularisers import Entropy, Regulariser
from mbrl_bilevel.inner.rewards import RBF, Reward, expected_reward
from mbrl_bilevel.policies.distributions import DiagonalGaussian, Distribution
from mbrl_bilevel.policies.policies import Policy

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
    r(ŷ [K, E, B, D], y [E, B, D], x [E, B, X]) -> [K, E, B]; one that is no module has no φ. By default
    (``Automatic``) its mean is exact where there is a closed form, and sampled where there is none.
    Where the policy's entropy is known by a bound only (a mixture), the bonus is estimated without
    bias from ``bonus_samples`` draws of its own.

    Warns where the inner problem has no optimum to be found (an RBF under too much entropy). Raises
    InvalidInputError for a reward that cannot be called.
    """

    #: It never looks at what followed a row, so its minibatches need no segments.
    looks_ahead = False

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
        self.estimator: Estimator = estimator or Automatic()
        self.regulariser: Regulariser = regulariser or Entropy()
        self._bonus_estimator = DiCE(bonus_samples)
        if isinstance(reward, RBF):
            _warn_of_no_optimum(reward, self.regulariser)

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
class BetaNLL:
    """Σ_d stop(σ_d^{2β})·NLL_d: each row and dimension weighed by its own variance to the power β.

    β-NLL (Seitzer et al. 2022, arXiv 2203.09168, eq. 5). β = 0 is NLL; at β = 1 the mean sees the
    gradient of squared error. Raises InvalidInputError for β outside [0, 1],
    UnsupportedCombinationError for a policy that is no diagonal Gaussian.
    """

    beta: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.beta <= 1.0:
            raise InvalidInputError(f"beta must lie between 0 and 1; got {self.beta}")

    def __call__(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        dist = _diagonal(policy.dist(batch.x), "BetaNLL")
        weight = torch.exp(2.0 * self.beta * dist.log_std.detach())
        log_prob = (weight * dist.log_prob_each(batch.y)).sum(-1)
        loss = -batch.mean(log_prob) / batch.y.shape[-1]
        return loss, {"beta_nll": loss.detach()}


@dataclass(frozen=True)
class Faithful:
    """Squared error for the mean plus NLL for the variance, which sees a detached mean.

    Stirn et al. 2023 (arXiv 2212.09184, eq. 4): with a variance that sees a detached trunk, the
    policy's ``scale="detached"``, the mean is trained exactly as squared error trains it. Raises
    UnsupportedCombinationError for a policy whose variance moves the trunk, or no diagonal Gaussian.
    """

    def __call__(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        if getattr(policy, "scale", None) == "network":
            raise UnsupportedCombinationError(
                'Faithful needs a policy whose variance does not move the mean: scale="detached"'
            )
        dist = _diagonal(policy.dist(batch.x), "Faithful")
        squared = batch.mean((dist.mean - batch.y).square().mean(-1))
        fixed = DiagonalGaussian(dist.mean.detach(), dist.log_std)
        nll = -batch.mean(fixed.log_prob(batch.y)) / batch.y.shape[-1]
        return squared + nll, {"mse": squared.detach(), "nll": nll.detach()}


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


@dataclass(frozen=True)
class KStep:
    """Mean squared error of open-loop rollouts along the batch's segments: direct k-step training.

    Raises as ``open_loop`` does.
    """

    def __call__(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        loss = k_step_mse(policy, batch)
        return loss, {"k_step_mse": loss.detach()}


def _warn_of_no_optimum(reward: RBF, regulariser: Regulariser) -> None:
    """Say so where the entropy of a wide Gaussian is worth more than all that a bounded reward can pay."""
    if not isinstance(regulariser, Entropy) or not regulariser.is_number:
        return
    least = reward.most_temperature
    if regulariser.temperature >= least:
        warnings.warn(
            f"RBF({reward.dim}) is bounded, and under Entropy({regulariser.temperature:g}) the policy only "
            f"grows wider: there is no optimum to find; pass regulariser=Entropy({least / 3:.2g}) (below "
            f"{least:.3g}), or add KL to a reference by Sum",
            stacklevel=3,
        )


def _diagonal(dist: Distribution, loss: str) -> DiagonalGaussian:
    if not isinstance(dist, DiagonalGaussian):
        raise UnsupportedCombinationError(
            f"{loss} needs a variance per dimension, a GaussianPolicy; got a {type(dist).__name__}"
        )
    return dist


def _closed_bonus(dist: Distribution) -> bool:
    return dist.entropy_is == dist.kl_is == "exact"
