"""Plan anew every k-th step only; in between, the plan goes on as it was made.

The plan is the planner's μ, already shifted to the present step; k = 1 is model-predictive control.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from agents.planners.base import Planner, PlannerState, Score
from agents.planners.candidates import shift


def replan(
    planner: Planner,
    every: int,
    task_of: Callable[[Tensor], tuple[Score, Tensor | None]],
    state: PlannerState,
    age: Tensor,
    generator: torch.Generator,
) -> tuple[Tensor, PlannerState, Tensor]:
    """The actions [S, A], the state and the plans' age for the next time step.

    ``age`` [S] int64 counts the steps acted since a start's last plan: at 0 there is none, at
    ``every`` a new one is due. ``task_of(rows)`` scores plans of the starts in ``rows`` [S'] alone, and
    gives the proposals [S', M, H, A] for them, if any; a first plan is searched around the first of these.
    """
    due = (age == 0) | (age >= every)
    action = state.actions.chosen(state.mean[:, 0]).clone()
    mean = shift(state.mean)
    elites, valid = shift(state.elites), state.elite_valid.clone()
    rows = due.nonzero()[:, 0]
    if len(rows):
        score, proposals = task_of(rows)
        around = state.mean[rows]
        if proposals is not None:
            around = torch.where((age[rows] == 0)[:, None, None], proposals[:, 0], around)
        part = PlannerState(around, state.elites[rows], state.elite_valid[rows], state.actions)
        action[rows], planned, _ = planner.plan(score, part, generator, proposals)
        mean[rows], elites[rows], valid[rows] = planned.mean, planned.elites, planned.elite_valid
    new_state = replace(state, mean=mean, elites=elites, elite_valid=valid)
    return action, new_state, torch.where(due, 1, age + 1)
