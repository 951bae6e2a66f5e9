"""Model-predictive path integral control: the mean of all candidates, weighted by their returns.

a_n = μ + σ ε_n, w_n ∝ exp(R_n / λ), μ ← Σ_n w_n a_n; Williams et al. 2017 (Information theoretic MPC
for model-based reinforcement learning, algorithm 2). The reward alone says what control costs: the
paper's term λ·μᵀΣ⁻¹ε, a pull towards zero control, is left out (γ = 0 in its later versions).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agents.planners.base import PlanInfo, Planner, PlannerState, Score
from agents.planners.checks import require
from mbrl_bilevel.base.errors import require_count

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class MPPI(Planner):
    """MPPI with a warm start.

    λ is in standard deviations of a start's finite returns: the paper's is in units of the return, which every
    task, and every stage of it, would have to tune anew. Of discrete actions a_n are one-hot, μ are the
    probabilities of each action, and μ ← Σ_n w_n a_n is the same formula. ``elite_fraction`` as in TD-MPC
    (Hansen et al. 2022, arXiv 2203.04955, eq. 4): λ is then in standard deviations of the best; 1 weighs all.
    ``iterations`` and ``noise_beta`` are those of ``CEM``.

    Raises InvalidInputError where a field is out of its range.
    """

    iterations: int = 3  # the paper makes one
    temperature: float = 0.3
    """λ of mppi: how far below the best a return still counts, in standard deviations of the returns."""
    std: float = 0.5
    """Spread of mppi's candidates in half-ranges of the actions, the same at every iteration; of discrete
    actions, the probability that a step is drawn uniformly."""
    noise_beta: float = 0.0
    elite_fraction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("iterations", self.iterations, 10_000)
        for name in ("temperature", "std"):
            value = getattr(self, name)
            require(0 < value < math.inf, name, value, "finite and more than 0")
        ok = 0 <= self.noise_beta < math.inf
        require(ok, "noise_beta", self.noise_beta, "finite and at least 0")
        ok = 0 < self.elite_fraction <= 1
        require(ok, "elite_fraction", self.elite_fraction, "more than 0 and at most 1")

    def populations(self) -> tuple[int, ...]:
        """As many candidates in each iteration."""
        return (self.population,) * self.iterations

    def search(
        self,
        score: Score,
        state: PlannerState,
        generator: torch.Generator,
        proposals: Tensor | None,
    ) -> tuple[Tensor, PlannerState, PlanInfo]:
        import torch

        from agents.planners.candidates import (
            best_alone,
            finite_scores,
            joined,
            path_weights,
            shift,
        )
        from agents.planners.coloured_noise import coloured_noise

        actions, mean, nonfinite = state.actions, state.mean, 0
        for count in self.populations():
            centre, std = actions.widened(mean, self.std)
            shape = (len(mean), count, *mean.shape[1:])
            noise = coloured_noise(shape, self.noise_beta, generator)
            candidates = joined(actions.draw(centre, std, noise), proposals)
            scores, bad = finite_scores(score, candidates)
            nonfinite += bad
            weight = path_weights(best_alone(scores, self.elite_fraction), self.temperature)
            any_finite = (scores > -torch.inf).any(1)[:, None, None]
            moved = actions.averaged(torch.einsum("sn,snha->sha", weight, candidates))
            mean = torch.where(any_finite, moved, mean)
        weighted = torch.where(weight > 0, weight * scores, 0.0).sum(1)
        elite_score = torch.where(any_finite[:, 0, 0], weighted, -torch.inf)
        info = PlanInfo(scores.amax(1), elite_score, nonfinite, std)
        return actions.chosen(mean[:, 0]), replace(state, mean=shift(mean)), info
