"""The ensemble as a population: each member trains under a reward of its own, and what comes of it is compared.

Member k trains with log w + s·ε_k, then with log w − s·ε_k; its own held-out losses F⁺ and F⁻ give the gradient of
the smoothed outer objective, E[(F⁺ − F⁻)·ε]/2s (evolution strategies: Salimans et al. 2017, arXiv 1703.03864).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.inner.dimension_weights import DimensionWeights, weights_in
from mbrl_bilevel.outer.problem import (
    Hypergradient,
    Problem,
    Warm,
    outer_parameters,
    reward_loss,
)


@dataclass(frozen=True)
class Population:
    """Infers DimensionWeights from values of the objective alone: it needs no gradient of it, no curvature, and
    no inner optimum that the policy can represent.

    ``spread`` s is how far apart members are in log w. An update ends one round and begins the next, so there is
    a gradient at every second one; give the inner level time in between (``Outer.every``). What all members
    have in common, progress above all, is taken off. In the end members are drawn together (``Outer.until``).

    Raises InvalidInputError for a ``spread`` that is not positive.
    """

    spread: float = 0.5

    def __post_init__(self) -> None:
        if not self.spread > 0.0:
            raise InvalidInputError(f"Population: spread must be positive; got {self.spread}")

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError for a φ that is no DimensionWeights, or a single member."""
        loss = reward_loss(problem, "Population")
        found = weights_in(loss)
        if found is None or len(outer_parameters(loss, "Population")) != 1:
            raise UnsupportedCombinationError(
                "Population infers the DimensionWeights of a reward and nothing else: use SharedSpread with "
                "weights, or another solver"
            )
        if problem.policy.members < 2:
            raise UnsupportedCombinationError(
                "Population compares members, and there is one alone: use more members, or LookAhead"
            )

    @torch.no_grad()
    def hypergradient(
        self, problem: Problem, warm: Warm, generator: torch.Generator
    ) -> Hypergradient:
        """Zero at the end of a first round, whose losses [E, 1] are handed on in ``warm``."""
        weights = weights_in(reward_loss(problem, "Population"))
        assert weights is not None
        nothing = torch.zeros_like(weights.log_w)
        if weights.apart is None:
            weights.apart = self._drawn(problem, weights, generator)
            return Hypergradient((nothing,), {})
        losses = problem.objective(problem.policy, problem.held_out).unsqueeze(1)
        if warm.solution is None:
            weights.apart = -weights.apart
            return Hypergradient((nothing,), {}, Warm(losses))
        rise = warm.solution - losses  # F⁺ − F⁻; apart is −s·ε now
        rise = rise - rise.mean()
        gradient = (rise * -weights.apart.squeeze(1)).sum(0) / (2.0 * self.spread**2)
        weights.apart = self._drawn(problem, weights, generator)
        return Hypergradient((gradient,), {"population_rise": rise.std().item()})

    def _drawn(
        self, problem: Problem, weights: DimensionWeights, generator: torch.Generator
    ) -> torch.Tensor:
        shape = (problem.policy.members, 1, len(weights.log_w))
        return self.spread * torch.randn(shape, generator=generator, device=generator.device).to(
            weights.log_w
        )
