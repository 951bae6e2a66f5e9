"""Random shooting: try uniform action sequences, execute the first step of the best.

Nagabandi et al. 2017 (arXiv 1708.02596, §IV.C). What every other planner has to beat.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agents.planners.base import PlanInfo, Planner, PlannerState, Score

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class RandomShooting(Planner):
    """The best of ``population`` uniform sequences; every plan starts from nothing.

    The state's μ is the last plan, used only where no score is finite.
    """

    def search(
        self,
        score: Score,
        state: PlannerState,
        generator: torch.Generator,
        proposals: Tensor | None,
    ) -> tuple[Tensor, PlannerState, PlanInfo]:
        import torch

        from agents.planners.candidates import finite_scores, joined, shift

        actions = state.actions
        shape = (len(state.mean), self.population, self.horizon)
        candidates = joined(actions.uniform(shape, generator), proposals)
        scores, nonfinite = finite_scores(score, candidates)
        best_score, best = scores.max(1)
        found = (best_score > -torch.inf)[:, None, None]
        mean = torch.where(found, candidates[torch.arange(len(best)), best], state.mean)
        info = PlanInfo(best_score, best_score.clone(), nonfinite, candidates.std(1, correction=0))
        return actions.chosen(mean[:, 0]), replace(state, mean=shift(mean)), info
