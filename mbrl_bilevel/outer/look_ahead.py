"""Hypergradients by looking one step ahead: where does a step of the inner level lead the outer objective?

θ' = θ − η∇_θL(θ, φ), so d F(θ')/dφ = −η⟨∇_θF, ∇²_θφ L⟩ (Ren et al. 2018, arXiv 1803.09050).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mbrl_bilevel.outer.implicit import cross_term
from mbrl_bilevel.outer.problem import (
    Hypergradient,
    Problem,
    Theta,
    Warm,
    objective_gradient,
    outer_parameters,
    reward_loss,
    worst_norm,
)

#: Below this a gradient is taken to be zero.
_LEAST = 1e-12


@dataclass(frozen=True)
class LookAhead:
    """One step of gradient descent ahead: the implicit formula with the identity in the place of the inverse
    curvature.

    Its size means nothing, its direction is what matters. So ∇_θF has unit length for each member, lest one whose
    rollouts run away decide alone, and what comes out has a root mean square of one: early in training both
    are large, and an optimiser that remembers sizes (Adam) would hardly move later. Held-out rows are compared with training rows, so it needs no inner optimum. ``samples`` as for
    FisherImplicit.
    """

    samples: int = 64

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError for a biased estimator, or nothing to infer."""
        outer_parameters(reward_loss(problem, "LookAhead"), "LookAhead")
        Theta.of(problem.policy)

    def hypergradient(
        self, problem: Problem, warm: Warm, generator: torch.Generator
    ) -> Hypergradient:
        """Of all members together."""
        loss = reward_loss(problem, "LookAhead")
        phi, theta = outer_parameters(loss, "LookAhead"), Theta.of(problem.policy)
        ahead = objective_gradient(problem, theta)
        ahead = ahead / ahead.norm(dim=1, keepdim=True).clamp(min=_LEAST)
        cross, gradient = cross_term(problem, theta, phi, ahead, self.samples, generator)
        size = torch.cat([c.flatten() for c in cross]).square().mean().sqrt().clamp(min=_LEAST)
        report = {"inner_gradient_norm": worst_norm(gradient)}
        return Hypergradient(tuple(-c / size for c in cross), report)
