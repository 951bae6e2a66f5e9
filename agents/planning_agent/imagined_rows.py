"""Short imagined branches from real states, led by the present policy, as rows for a replay buffer.

Janner et al. 2019 (arXiv 1906.08253), algorithm 2, lines 7 to 8; cut where the model is unsure, after
Frauenknecht et al. 2024 (MACURA, arXiv 2405.19014, §4.2).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agents.common.spaces import ActionSpace
from agents.planning_agent.replay import STEP, model_action
from mbrl_bilevel.imagination.branches import branch_step, draw_members
from mbrl_bilevel.imagination.settings import Branching
from mbrl_bilevel.models.dynamics import DynamicsModel

#: ``act(obs [B, O]) -> stored actions [B, ·]``, as a replay buffer keeps them.
Act = Callable[[Tensor], Tensor]


def imagine(
    model: DynamicsModel,
    starts: Tensor,
    act: Act,
    action_space: ActionSpace,
    length: int,
    branching: Branching,
    generator: torch.Generator,
    within: tuple[Tensor, Tensor] | None = None,
    cut: float | None = None,
) -> dict[str, Tensor]:
    """The steps of a branch of ``length`` from each of ``starts`` [B, O]: columns [n, …] of ``STEP``.

    A branch ends early where the model says that the episode does. Rows where it gives NaN or infinity
    are left out, and their branches with them. A branch's last step is no end. Observations are kept
    ``within`` the lowest and highest [O], if given.

    With ``cut``, a quantile from 0 to 1, a branch ends before the first step at which the members
    disagree more than at that quantile of all first steps; those first steps above it are left out too.
    """
    obs, model = starts, model.frozen()
    member = draw_members(model, len(obs), generator)
    steps: list[tuple[Tensor, ...]] = []
    most: Tensor | None = None
    for _ in range(length):
        if branching.propagation == "ts1":
            member = draw_members(model, len(obs), generator)
        stored = act(obs)
        action = model_action(action_space, stored)
        step = branch_step(model, obs, action, member, branching, generator)
        sound = ~step.diverged
        if cut is not None:
            doubt = disagreement(model, obs, action)
            most = doubt.quantile(cut) if most is None else most
            sound &= doubt <= most
        next_obs = step.next_obs if within is None else step.next_obs.clamp(*within)
        columns = (obs, stored, next_obs, step.reward, step.terminated.float())
        steps.append(tuple(column[sound] for column in columns))
        alive = sound & ~step.terminated
        obs, member = next_obs[alive], member[alive]
        if not len(obs):
            break
    return {
        name: torch.cat(parts) for name, parts in zip(STEP, zip(*steps, strict=True), strict=True)
    }


@torch.inference_mode()
def disagreement(model: DynamicsModel, obs: Tensor, action: Tensor) -> Tensor:
    """How far the members' means are apart at obs [B, O] and action [B, A], [B]: the mean over the targets that
    they are meant to predict of their variance, in units of the training targets' own."""
    mean = model.dist(obs, action).marginals()[0]
    scale = model.targets.scale[model.active]
    found: Tensor = (mean / scale)[..., model.meant].var(0, correction=0).mean(-1)
    return found
