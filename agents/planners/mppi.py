"""Model-predictive path integral control: the mean of all candidates, weighted by their returns.

a_n = μ + σ ε_n, w_n ∝ exp(R_n / λ), μ ← Σ_n w_n a_n; Williams et al. 2017 (Information theoretic MPC
for model-based reinforcement learning, algorithm 2). The reward alone says what control costs: the
paper's term λ·μᵀΣ⁻¹ε, a pull towards zero control, is left out (γ = 0 in its later versions).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from agents.planners.actions import require
from agents.planners.base import (
    PlanInfo,
    Planner,
    PlannerState,
    Score,
    finite_scores,
    joined,
    shift,
)
from agents.planners.coloured_noise import coloured_noise
from mbrl_bilevel.base.errors import require_count


@dataclass(frozen=True)
class MPPI(Planner):
    """MPPI with a warm start.

    - ``iterations``: updates of μ per plan (the paper makes one).
    - ``temperature``: λ, in standard deviations of a start's finite returns. The paper's λ is in
      units of the return, which every task, and every stage of it, would have to tune anew.
    - ``std``: σ in half-ranges (high − low) / 2, the same at every update. Of discrete actions, the
      probability that a step is drawn uniformly instead of from μ: there a_n are one-hot, μ are the
      probabilities of each action, and μ ← Σ_n w_n a_n is the same formula.
    - ``noise_beta``: the exponent of the coloured noise; 0 is white, as in the paper.
    - ``elite_fraction``: the part of the candidates, the best, that is weighted; λ is then in standard
      deviations of these (TD-MPC, Hansen et al. 2022, arXiv 2203.04955, eq. 4). 1 weighs all.

    Raises InvalidInputError where a field is out of its range.
    """

    iterations: int = 3
    temperature: float = 0.3
    std: float = 0.5
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

    def _search(
        self,
        score: Score,
        state: PlannerState,
        generator: torch.Generator,
        proposals: Tensor | None,
    ) -> tuple[Tensor, PlannerState, PlanInfo]:
        actions, mean, nonfinite = state.actions, state.mean, 0
        for count in self.populations():
            centre, std = actions.widened(mean, self.std)
            shape = (len(mean), count, *mean.shape[1:])
            noise = coloured_noise(shape, self.noise_beta, generator)
            candidates = joined(actions.draw(centre, std, noise), proposals)
            scores, bad = finite_scores(score, candidates)
            nonfinite += bad
            weight = path_weights(self._elite(scores), self.temperature)
            any_finite = (scores > -torch.inf).any(1)[:, None, None]
            moved = actions.averaged(torch.einsum("sn,snha->sha", weight, candidates))
            mean = torch.where(any_finite, moved, mean)
        weighted = torch.where(weight > 0, weight * scores, 0.0).sum(1)
        elite_score = torch.where(any_finite[:, 0, 0], weighted, -torch.inf)
        info = PlanInfo(scores.amax(1), elite_score, nonfinite, std)
        return actions.chosen(mean[:, 0]), replace(state, mean=shift(mean)), info

    def _elite(self, scores: Tensor) -> Tensor:
        """The scores [S, N] of the best candidates; −inf for the others."""
        count = max(1, round(self.elite_fraction * scores.shape[1]))
        if count == scores.shape[1]:
            return scores
        least = scores.topk(count, dim=1).values[:, -1:]
        return torch.where(scores >= least, scores, -torch.inf)


def path_weights(scores: Tensor, temperature: float) -> Tensor:
    """w [S, N] ∝ exp(R / (λ·std R)), over the finite of the scores R; 0 for −inf.

    Uniform over all N where nothing is finite, or everything is the same.
    """
    finite = scores > -torch.inf
    count = finite.sum(1, keepdim=True).clamp(min=1)
    best = scores.amax(1, keepdim=True)
    # Differences from the best, in double: large returns must not hide small differences.
    below = torch.where(finite, scores.double() - best.double(), 0.0)
    centre = below.sum(1, keepdim=True) / count
    spread = (torch.where(finite, below - centre, 0.0).square().sum(1, keepdim=True) / count).sqrt()
    exponent = below / (temperature * spread.clamp(min=1e-30))
    none = ~finite.any(1, keepdim=True)
    return torch.where(finite | none, exponent, -torch.inf).softmax(1).to(scores.dtype)
