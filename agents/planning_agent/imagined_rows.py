"""Short imagined branches from real states, led by the present policy, as rows for a replay buffer.

Janner et al. 2019 (arXiv 1906.08253), algorithm 2, lines 7 to 8.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agents.common.spaces import ActionSpace
from agents.planning_agent.replay import STEP, model_action
from mbrl_bilevel.branches import Branching, branch_step, draw_members
from mbrl_bilevel.dynamics import DynamicsModel

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
) -> dict[str, Tensor]:
    """The steps of a branch of ``length`` from each of ``starts`` [B, O]: columns [n, …] of ``STEP``.

    A branch ends early where the model says that the episode does. Rows where it gives NaN or infinity
    are left out, and their branches with them. A branch's last step is no end. Observations are kept
    ``within`` the lowest and highest [O], if given.
    """
    obs = starts
    member = draw_members(model, len(obs), generator)
    steps: list[tuple[Tensor, ...]] = []
    for _ in range(length):
        if branching.propagation == "ts1":
            member = draw_members(model, len(obs), generator)
        stored = act(obs)
        action = model_action(action_space, stored)
        step = branch_step(model, obs, action, member, branching, generator)
        sound = ~step.diverged
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
