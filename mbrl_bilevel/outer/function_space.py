"""The hypergradient of a policy that is free at each x: the maximum-entropy inverse-RL gradient.

dF/dφ = (1/Λ)(E_{held out}[∇_φ r̄(y, x)] − E_{ŷ~p*}[∇_φ r̄(ŷ, x)]), r̄(ŷ, x) = E_{y'|x}[r(ŷ, y', x)]
(Ziebart et al. 2008, eq. 6; p* ∝ exp(r̄/Λ) is the inner optimum of arXiv 2510.07624).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.inner.regularisers import Entropy
from mbrl_bilevel.inner.rewards import expected_reward
from mbrl_bilevel.outer.closed_form import held_out_second_moment
from mbrl_bilevel.outer.objectives import OneStepNLL
from mbrl_bilevel.outer.problem import (
    Hypergradient,
    Problem,
    Theta,
    Warm,
    has_closed_form,
    inner_loss,
    outer_parameters,
    reward_loss,
    worst_norm,
)
from mbrl_bilevel.policies.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    FullGaussian,
)
from mbrl_bilevel.policies.policies import Policy


@dataclass(frozen=True)
class FunctionSpace:
    """No linear solve: compares the reward of held-out targets with that of the policy's own draws.

    p* is read off the policy, so the inner problem must be near its optimum. y' must be independent
    of the held-out y at the same x (y' = y would send U to infinity); continuous data has no second
    y, so it is drawn from ``model``, a policy fitted by likelihood to rows that leave the held-out
    ones out. None takes N(μ_θ(x), held-out second moment), which a Gaussian policy gives by itself.
    ``samples`` (even) draws of y' a row, in pairs mirrored about their mean; classes are summed over.
    """

    model: Policy | None = None
    samples: int = 16

    def __post_init__(self) -> None:
        if self.samples < 2 or self.samples % 2:
            raise InvalidInputError(
                f"samples must be even and at least 2, for mirrored pairs; got {self.samples}"
            )

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError for a biased estimator, nothing to infer, another
        objective than one-step likelihood, a learnable KL weight, or classes without a ``model``."""
        loss = reward_loss(problem, "FunctionSpace")
        outer_parameters(loss, "FunctionSpace")
        if not isinstance(problem.objective, OneStepNLL):
            raise UnsupportedCombinationError(
                "FunctionSpace is the gradient of the one-step likelihood only; got "
                f"{type(problem.objective).__name__}: use FisherImplicit"
            )
        regulariser = loss.regulariser
        if not isinstance(regulariser, Entropy) and isinstance(regulariser, torch.nn.Module):
            learnable = any(p.requires_grad for p in regulariser.parameters())
            if learnable:
                raise UnsupportedCombinationError(
                    "FunctionSpace cannot infer the weight of a KL term: fix it (learnable=False), "
                    "or use FisherImplicit"
                )
        regulariser.weight(problem.train.x)
        with torch.no_grad():
            self._other(problem)

    def hypergradient(
        self, problem: Problem, warm: Warm, generator: torch.Generator
    ) -> Hypergradient:
        """The gradient of −(r̄(y) − E_p[r̄(ŷ)])/(Λ·D), with the draws held fixed."""
        loss = reward_loss(problem, "FunctionSpace")
        phi = outer_parameters(loss, "FunctionSpace")
        held_out = problem.held_out
        with torch.no_grad():
            dist = problem.policy.dist(held_out.x)
            other, share = _second_targets(self._other(problem), self.samples, generator)
        # K targets y' a row stand side by side in the batch: [E, K·B, ·].
        count = len(other)
        y, x = _fold(other), held_out.x.repeat(1, count, 1)
        data = loss.reward(held_out.y.repeat(1, count, 1).unsqueeze(0), y, x)[0]
        own = _mean_reward(loss, dist, count, y, x, generator)
        gap = ((data - own).reshape(len(y), count, -1) * share.movedim(0, 1)).sum(1)
        weight = loss.regulariser.weight(held_out.x)
        value = -held_out.mean(gap / weight).sum() / held_out.y.shape[-1]
        gradient = torch.autograd.grad(value, phi, materialize_grads=True)
        return Hypergradient(gradient, {"inner_gradient_norm": _stationarity(problem, generator)})

    def _other(self, problem: Problem) -> Distribution:
        """The distribution of y' at the held-out inputs."""
        held_out = problem.held_out
        if self.model is not None:
            return self.model.dist(held_out.x)
        dist = problem.policy.dist(held_out.x)
        if not isinstance(dist, DiagonalGaussian | FullGaussian):
            raise UnsupportedCombinationError(
                f"FunctionSpace cannot guess how targets scatter at one x from a "
                f"{type(dist).__name__}: pass model, a policy fitted by NLL to other folds"
            )
        factor = torch.linalg.cholesky(held_out_second_moment(problem.policy, held_out))
        return FullGaussian(dist.mean, factor.expand(*dist.mean.shape, -1))


def _second_targets(
    dist: Distribution, samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """y' [K, E, B, D] and their weights [K, E, B]: all classes, or mirrored draws, weighed alike."""
    if isinstance(dist, Categorical):
        classes = torch.arange(dist.logits.shape[-1], device=dist.logits.device)
        draws = classes.to(dist.logits.dtype).reshape(-1, 1, 1, 1)
        return draws.expand(-1, *dist.logits.shape[:-1], 1), dist.probs.movedim(-1, 0)
    if isinstance(dist, DiagonalGaussian | FullGaussian):
        half = dist.sample(samples // 2, generator)
        draws = torch.cat([half, 2.0 * dist.mean - half])
    else:
        draws = dist.sample(samples, generator)
    return draws, draws.new_full(draws.shape[:-1], 1.0 / len(draws))


def _mean_reward(
    loss: PolicyGradient,
    dist: Distribution,
    count: int,
    y: Tensor,
    x: Tensor,
    generator: torch.Generator,
) -> Tensor:
    """E_{ŷ~dist}[r(ŷ, y', x)], [E, K·B]: in closed form where there is one, else one draw each."""
    try:
        repeated = tuple(p.repeat(1, count, *[1] * (p.ndim - 2)) for p in dist.params)
        return expected_reward(loss.reward, dist.from_params(repeated), y, x)
    except UnsupportedCombinationError:
        draws = dist.sample(count, generator)
        return loss.reward(_fold(draws).unsqueeze(0), y, x)[0]


def _fold(draws: Tensor) -> Tensor:
    """[K, E, B, D] -> [E, K·B, D]."""
    return draws.movedim(0, 1).flatten(1, 2)


def _stationarity(problem: Problem, generator: torch.Generator) -> float:
    loss, theta = problem.loss, Theta.of(problem.policy)
    assert isinstance(loss, PolicyGradient)
    exact = has_closed_form(problem)
    value = inner_loss(loss, problem.policy, problem.train, generator, exact)
    return worst_norm(theta.grad(value.sum()))
