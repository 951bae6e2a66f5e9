"""The outer level: infer the reward that makes held-out data likely under the inner optimum.

max_φ F(φ) = E_{(x,y)~outer}[log p_{θ*(φ)}(y|x)] (arXiv 2510.07624, the bilevel problem).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mbrl_bilevel.distributions import DiagonalGaussian
from mbrl_bilevel.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.losses import Loss, PolicyGradient
from mbrl_bilevel.objectives import Objective, OneStepNLL
from mbrl_bilevel.policies import GaussianPolicy, Policy
from mbrl_bilevel.rewards import Mahalanobis
from mbrl_bilevel.types import Batch


@dataclass(frozen=True)
class OuterProblem:
    """What a solver sees: the inner policy and loss (it holds φ), and the held-out outer sample."""

    policy: Policy
    loss: Loss
    held_out: Batch
    objective: Objective


class Solver(Protocol):
    """The slot: one step on φ, in place; a report of named numbers comes back."""

    def step(self, problem: OuterProblem, generator: torch.Generator) -> Mapping[str, float]: ...

    def finish(self, problem: OuterProblem) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Outer:
    """When the outer level runs: ``every`` inner steps, after ``warmup`` of them."""

    solver: Solver
    objective: Objective = field(default_factory=OneStepNLL)
    every: int = 25
    warmup: int = 0

    def __post_init__(self) -> None:
        if self.every < 1 or self.warmup < 0:
            raise InvalidInputError(
                f"every must be >= 1 and warmup >= 0; got every={self.every}, warmup={self.warmup}"
            )

    def due(self, step: int) -> bool:
        """Whether the outer level runs before inner step ``step``."""
        return step >= self.warmup and (step - self.warmup) % self.every == 0


@dataclass(frozen=True)
class ClosedForm:
    """U* from the held-out second moment of the residual, Σ = E[(y − μ_θ)(y − μ_θ)ᵀ].

    Diagonal: u_d = λ/(2 Σ_dd); scaled identity: β = λ n/(2 tr Σ) (arXiv 2510.07624, the optimal
    reward). Shared by the members: the moment is pooled over all their held-out samples.
    Refuses combinations for which this is not the optimum.
    """

    def step(self, problem: OuterProblem, generator: torch.Generator) -> Mapping[str, float]:
        """Set U to its optimum at the present θ."""
        reward, temperature = self._checked(problem)
        moment = held_out_second_moment(problem.policy, problem.held_out)
        if reward.form == "scaled_identity":
            moment = moment.mean().expand_as(moment)
        reward.set_u(temperature / (2.0 * moment))
        return {"u_geometric_mean": reward.u.log().mean().exp().item()}

    def finish(self, problem: OuterProblem) -> Mapping[str, float]:
        """Set U once more at the kept θ, and σ to the inner optimum there, σ² = λ/(2u)."""
        reward, temperature = self._checked(problem)
        report = self.step(problem, torch.Generator())
        assert isinstance(problem.policy, GaussianPolicy)
        problem.policy.set_std((temperature / (2.0 * reward.u)).sqrt())
        return report

    def _checked(self, problem: OuterProblem) -> tuple[Mahalanobis, float]:
        loss, policy = problem.loss, problem.policy
        if not isinstance(loss, PolicyGradient) or not isinstance(loss.reward, Mahalanobis):
            raise UnsupportedCombinationError(
                "ClosedForm knows the optimum of a PolicyGradient loss with a Mahalanobis reward only"
            )
        if not isinstance(policy, GaussianPolicy) or policy.scale != "constant":
            raise UnsupportedCombinationError(
                'ClosedForm needs a GaussianPolicy(scale="constant"): a constant U makes the inner '
                "optimum's variance constant"
            )
        if not loss.estimator.unbiased:
            raise UnsupportedCombinationError(
                f"ClosedForm needs an unbiased estimator; {type(loss.estimator).__name__} moves the "
                "inner optimum: use LeaveOneOut or Analytic"
            )
        if not isinstance(problem.objective, OneStepNLL):
            raise UnsupportedCombinationError(
                "ClosedForm is the optimum of the one-step likelihood only; "
                f"got {type(problem.objective).__name__}"
            )
        return loss.reward, loss.regulariser.temperature


@dataclass(frozen=True)
class HeldOutVariance:
    """No reward to infer: fit σ to the held-out residuals once training is over (for MSE)."""

    def step(self, problem: OuterProblem, generator: torch.Generator) -> Mapping[str, float]:
        """Nothing to do during training."""
        return {}

    def finish(self, problem: OuterProblem) -> Mapping[str, float]:
        """σ² = the held-out second moment of the residual, shared by the members."""
        if not isinstance(problem.policy, GaussianPolicy):
            raise UnsupportedCombinationError("HeldOutVariance needs a GaussianPolicy")
        moment = held_out_second_moment(problem.policy, problem.held_out)
        problem.policy.set_std(moment.sqrt())
        return {"std_geometric_mean": moment.sqrt().log().mean().exp().item()}


@torch.no_grad()
def held_out_second_moment(policy: Policy, held_out: Batch, floor: float = 1e-8) -> Tensor:
    """Σ_dd = mean of (y_d − μ_d)² over the held-out rows of all members, [D].

    ``floor`` (normalised units squared) keeps U finite where a target is predicted exactly.
    """
    dist = policy.dist(held_out.x)
    if not isinstance(dist, DiagonalGaussian):
        raise UnsupportedCombinationError("a residual's second moment needs a Gaussian policy")
    squared = (held_out.y - dist.mean).square()
    if held_out.weight is None:
        moment = squared.mean((0, 1))
    else:
        moment = (squared * held_out.weight.unsqueeze(-1)).sum((0, 1)) / held_out.weight.sum()
    if not moment.isfinite().all():
        raise InvalidInputError(
            "the held-out residuals are not finite: the model diverged, lower the learning rate"
        )
    return moment.clamp_min(floor)
