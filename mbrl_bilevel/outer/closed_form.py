"""Outer solvers that know the inner optimum of a Mahalanobis reward, p*(·|x) = N(E[y|x], (λ/2) U⁻¹).

Full U* = (λ/2) Σ⁻¹, diagonal u_d = λ/(2 Σ_dd), scaled identity β = λ D/(2 tr Σ), with Σ the held-out
second moment of the residual y − μ_θ(x) (arXiv 2510.07624, the optimal reward).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import DivergedError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.inner.regularisers import Entropy
from mbrl_bilevel.inner.rewards import Mahalanobis
from mbrl_bilevel.outer.objectives import OneStepNLL
from mbrl_bilevel.outer.problem import (
    Hypergradient,
    Problem,
    Report,
    Theta,
    Warm,
    has_closed_form,
    inner_loss,
    outer_parameters,
    reward_loss,
    worst_norm,
)
from mbrl_bilevel.policies.distributions import DiagonalGaussian, Distribution, FullGaussian
from mbrl_bilevel.policies.policies import FullGaussianPolicy, GaussianPolicy, Policy

#: Keeps U finite where a target is predicted exactly (normalised units squared).
_FLOOR = 1e-8


@dataclass(frozen=True)
class ClosedForm:
    """A constant U set to its optimum. Shared by the members: Σ is pooled over all their held-out
    samples. With a diagonal policy only the diagonal of U is identified."""

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError wherever the formula is not the optimum: another
        reward, U(x), KL, a λ that is not one number, a biased estimator, another objective than
        one-step likelihood, a policy whose covariance is not constant, a full U with a diagonal
        policy."""
        loss, reward = _mahalanobis(problem, "ClosedForm")
        if reward.form == "input_dependent":
            raise UnsupportedCombinationError(
                "ClosedForm sets a constant U, but U depends on x here: use ClosedFormGradient"
            )
        _temperature(loss)
        policy = problem.policy
        if not isinstance(policy, GaussianPolicy | FullGaussianPolicy):
            raise UnsupportedCombinationError(
                f"ClosedForm needs a Gaussian policy; got {type(policy).__name__}: use FisherImplicit"
            )
        if policy.scale in ("network", "detached"):
            raise UnsupportedCombinationError(
                'ClosedForm needs scale="constant": a constant U makes the inner optimum\'s '
                "covariance constant; for a network scale use ClosedFormGradient with U(x)"
            )
        if reward.form == "full" and not isinstance(policy, FullGaussianPolicy):
            raise UnsupportedCombinationError(
                "ClosedForm: a full U with a diagonal policy has another optimum than (λ/2) Σ⁻¹ (only "
                'the diagonal of U reaches the policy): use FullGaussianPolicy, or form="diagonal"'
            )

    def step(self, problem: Problem) -> Report:
        """Set U to its optimum at the present θ."""
        loss, reward = _mahalanobis(problem, "ClosedForm")
        temperature = _temperature(loss)
        moment = held_out_second_moment(problem.policy, problem.held_out)
        if reward.form == "full":
            reward.set_matrix(_inverse(moment) * (temperature / 2.0))
        else:
            diagonal = moment.diagonal()
            if reward.form == "scaled_identity":
                diagonal = diagonal.mean().expand_as(diagonal)
            reward.set_u(temperature / (2.0 * diagonal))
        return {
            "u_geometric_mean": reward.u.log().mean().exp().item(),
            "inner_gradient_norm": _stationarity(problem, loss),
        }

    def finish(self, problem: Problem) -> Report:
        """Set U once more at the kept θ, and the policy's covariance to (λ/2) U⁻¹."""
        report = self.step(problem)
        loss, reward = _mahalanobis(problem, "ClosedForm")
        temperature = _temperature(loss)
        with torch.no_grad():
            if isinstance(problem.policy, FullGaussianPolicy):
                problem.policy.set_covariance(_inverse(reward.matrix) * (temperature / 2.0))
            elif isinstance(problem.policy, GaussianPolicy):
                problem.policy.set_std((temperature / (2.0 * reward.u)).sqrt())
        return report


@dataclass(frozen=True)
class ClosedFormGradient:
    """The hypergradient in function space where p* is known: ∇_φ of the held-out likelihood of
    N(μ_θ(x), (λ(x)/2) U(x)⁻¹).

    For U(x) or λ(x) in φ: it fits λ(x)/(2 u_d(x)) to the held-out residuals, without a linear
    solve. Exact where the policy is free at each x; the mean's own dependence on φ is left out.
    """

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError as ClosedForm, but lets U and λ depend on x."""
        loss, reward = _mahalanobis(problem, "ClosedFormGradient")
        outer_parameters(loss, "ClosedFormGradient")
        _only_entropy(loss, "ClosedFormGradient").weight(problem.train.x)
        dist = problem.policy.dist(problem.held_out.x)
        _mean(dist)
        if reward.form == "full" and isinstance(dist, DiagonalGaussian):
            raise UnsupportedCombinationError(
                "ClosedFormGradient: a full U with a diagonal policy has another inner optimum than "
                '(λ/2) U⁻¹: use FullGaussianPolicy, or form="diagonal"'
            )

    def hypergradient(
        self, problem: Problem, warm: Warm, generator: torch.Generator
    ) -> Hypergradient:
        """No linear system: nothing is warm-started."""
        loss, reward = _mahalanobis(problem, "ClosedFormGradient")
        phi = outer_parameters(loss, "ClosedFormGradient")
        held_out = problem.held_out
        with torch.no_grad():
            residual = held_out.y - _mean(problem.policy.dist(held_out.x))
        weight = loss.regulariser.weight(held_out.x)
        if reward.form == "full":
            log_det = 2.0 * reward.lower.diagonal().log().sum()
        else:
            log_det = reward.diagonal(held_out.x).log().sum(-1)
        dim = held_out.y.shape[-1]
        log_prob = (
            0.5 * log_det
            - reward.quadratic(residual, held_out.x) / weight
            - 0.5 * dim * (math.pi * weight).log()
        )
        value = -held_out.mean(log_prob).sum() / dim
        gradient = torch.autograd.grad(value, phi, materialize_grads=True)
        return Hypergradient(gradient, {"inner_gradient_norm": _stationarity(problem, loss)})


@dataclass(frozen=True)
class HeldOutVariance:
    """No reward to infer: fit σ to the held-out residuals once training is over (for MSE)."""

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError for a policy without a constant σ to set."""
        policy = problem.policy
        if not isinstance(policy, GaussianPolicy) or policy.scale != "constant":
            raise UnsupportedCombinationError(
                'HeldOutVariance needs a GaussianPolicy(scale="constant"): it sets one σ per dimension'
            )

    def step(self, problem: Problem) -> Report:
        """Nothing to do during training."""
        return {}

    def finish(self, problem: Problem) -> Report:
        """σ² = the held-out second moment of the residual, shared by the members."""
        assert isinstance(problem.policy, GaussianPolicy)
        std = held_out_second_moment(problem.policy, problem.held_out).diagonal().sqrt()
        problem.policy.set_std(std)
        return {"std_geometric_mean": std.log().mean().exp().item()}


@torch.no_grad()
def held_out_second_moment(policy: Policy, held_out: Batch, floor: float = _FLOOR) -> Tensor:
    """Σ = mean of (y − μ)(y − μ)ᵀ over the held-out rows of all members, [D, D], plus floor·I.

    Raises DivergedError if a residual is not finite, UnsupportedCombinationError for a policy that
    is not Gaussian.
    """
    residual = (held_out.y - _mean(policy.dist(held_out.x))).flatten(0, 1)
    weight = held_out.weights.flatten()
    moment = (residual * weight.unsqueeze(-1)).mT @ residual / weight.sum()
    if not moment.isfinite().all():
        raise DivergedError(
            "the held-out residuals are not finite: the model diverged, lower learning_rate"
        )
    return moment + floor * torch.eye(len(moment), dtype=moment.dtype, device=moment.device)


def _mahalanobis(problem: Problem, solver: str) -> tuple[PolicyGradient, Mahalanobis]:
    loss = reward_loss(problem, solver)
    if not isinstance(loss.reward, Mahalanobis):
        raise UnsupportedCombinationError(
            f"{solver} knows the optimum of a Mahalanobis reward only; got "
            f"{type(loss.reward).__name__}: use FisherImplicit"
        )
    if not isinstance(problem.objective, OneStepNLL):
        raise UnsupportedCombinationError(
            f"{solver} is the optimum of the one-step likelihood only; got "
            f"{type(problem.objective).__name__}: use FisherImplicit, or objective=OneStepNLL()"
        )
    _only_entropy(loss, solver)
    return loss, loss.reward


def _only_entropy(loss: PolicyGradient, solver: str) -> Entropy:
    if not isinstance(loss.regulariser, Entropy):
        raise UnsupportedCombinationError(
            f"{solver} needs the regulariser Entropy alone; with {type(loss.regulariser).__name__} "
            "the inner optimum also depends on the reference: use FisherImplicit"
        )
    return loss.regulariser


def _temperature(loss: PolicyGradient) -> float:
    return _only_entropy(loss, "ClosedForm").temperature


def _mean(dist: Distribution) -> Tensor:
    if not isinstance(dist, DiagonalGaussian | FullGaussian):
        raise UnsupportedCombinationError(
            f"the residual's second moment needs a Gaussian policy; got a {type(dist).__name__}: "
            "use FisherImplicit"
        )
    return dist.mean


def _inverse(matrix: Tensor) -> Tensor:
    """In float64, symmetric to the last bit."""
    inverse: Tensor = torch.linalg.inv(matrix.double())
    return ((inverse + inverse.mT) / 2.0).to(matrix.dtype)


def _stationarity(problem: Problem, loss: PolicyGradient) -> float:
    """The worst member's inner gradient norm on the train sample; NaN if G has no closed form."""
    if not has_closed_form(problem):
        return math.nan
    theta = Theta.of(problem.policy)
    value = inner_loss(loss, problem.policy, problem.train, torch.Generator(), exact=True)
    return worst_norm(theta.grad(value.sum()))
