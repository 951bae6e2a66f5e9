"""A planner of your own: one method, ``search``. This one climbs: it keeps a plan and tries small changes of it.

python examples/my_planner.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from agents import MPC, Planner, register_planner
from agents.planners.base import PlanInfo, PlannerState, Score
from agents.planners.candidates import finite_scores, joined, shift
from envs import make_env


@dataclass(frozen=True)
class Climber(Planner):
    """The best of ``population`` changes of the last plan, ``rounds`` times over."""

    rounds: int = 4
    """How often the plan is changed before a step of it is taken."""
    step: float = 0.3
    """The size of a change, in half-ranges of the actions."""

    def search(
        self,
        score: Score,
        state: PlannerState,
        generator: torch.Generator,
        proposals: Tensor | None,
    ) -> tuple[Tensor, PlannerState, PlanInfo]:
        """The plan [S, H, A] that is left after all rounds; its first action is executed."""
        plan, unusable, starts = state.mean, 0, torch.arange(len(state.mean))
        for _ in range(self.rounds):
            shape = (len(plan), self.population, *plan.shape[1:])
            mean, std = state.actions.widened(plan, self.step)
            candidates = state.actions.draw(mean, std, torch.randn(shape, generator=generator))
            candidates[:, 0] = state.actions.chosen(plan)  # to stay is an option
            candidates = joined(candidates, proposals)
            scores, bad = finite_scores(score, candidates)
            best_score, best = scores.max(1)
            plan, unusable = candidates[starts, best], unusable + bad
        info = PlanInfo(best_score, best_score, unusable, candidates.std(1, correction=0))
        return state.actions.chosen(plan[:, 0]), replace(state, mean=shift(plan)), info


register_planner("climber", Climber)


def trained(steps: int = 1000) -> MPC:
    """An agent that plans by it; its file can be loaded wherever this module was imported."""
    planner = Climber(horizon=15, population=24)
    return MPC(make_env("InvertedPendulum-v5"), planner=planner, seed=0).learn(steps)


if __name__ == "__main__":
    agent = trained()
    agent.save("climber.safetensors")
