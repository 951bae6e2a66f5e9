"""How an agent plans: its planner in its model, beside its policy's proposals, its critics behind.

Planning with a policy and a learned value: LOOP (Sikchi et al. 2020, arXiv 2008.10066, §4) and TD-MPC
(Hansen et al. 2022, arXiv 2203.04955, algorithm 1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.common.device import Moved
from agents.planners.actions import ActionSet
from agents.planners.base import PlannerState, Score
from agents.planners.replanning import replan
from agents.planning_agent.policy import HeldPolicy
from agents.planning_agent.settings import PlanningSettings
from agents.planning_agent.terminal_value import Value
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.imagination.particles import StepModel, imagined_returns
from mbrl_bilevel.policies.precision import Precision

#: What the planner remembers from step to step, as arrays: its μ [S, H, A], kept elites and which of them
#: hold something, the age of each plan [S], and the state of the random generator.
Memory = tuple[npt.NDArray[Any], ...]


class Plans:
    """Plans actions of one kind on one device; made once, asked at every step."""

    def __init__(self, actions: ActionSet, policy: HeldPolicy, device: torch.device) -> None:
        self.actions, self._policy, self._device = actions, policy, device
        self._moved: Moved | None = None

    def fresh(self, settings: PlanningSettings, starts: int, seed: int) -> Memory:
        """The memory of ``starts`` new episodes."""
        assert settings.planner is not None
        memory = settings.planner.initial_state(starts, self.actions)
        age = torch.zeros(starts, dtype=torch.int64)
        return _as_arrays(memory, age, torch.Generator().manual_seed(seed))

    def act(
        self,
        settings: PlanningSettings,
        model: StepModel | None,
        value: Value | None,
        obs: Tensor,
        memory: Memory,
        starting: npt.NDArray[np.bool_] | None,
        explore: bool,
    ) -> tuple[Tensor, Memory]:
        """Action vectors [S, A] at raw obs [S, O], and the memory for the next step.

        Rows where ``starting`` [S] is set begin anew. Without a ``model``, actions are uniform. With
        ``explore``, the exploration of ``settings`` is added.
        """
        planner = settings.planner
        assert planner is not None
        mean, elites, valid, age, random = (torch.from_numpy(part) for part in memory)
        if len(mean) != len(obs):
            raise InvalidInputError(
                f"state is of {len(mean)} observations but {len(obs)} came; "
                "pass the state that predict returned for them, or None"
            )
        state = PlannerState(mean, elites, valid, self.actions)
        generator = torch.Generator()
        generator.set_state(random)
        if starting is not None:
            mask = np.atleast_1d(np.asarray(starting, dtype=np.bool_))
            state = planner.reset(state, mask)
            age = torch.where(torch.from_numpy(mask), 0, age)
        if model is None:
            action = self.actions.uniform((len(obs),), generator)
        else:
            precision = settings.imagination.chosen_precision
            there, fitted = self.on_device(model, value, precision)
            task = self._task(settings, there, fitted, obs, generator)
            every = settings.replan_every
            action, state, age = replan(planner, every, task, state, age, generator)
        if explore:
            action = self.actions.explored(action, settings.exploration, generator)
        return action, _as_arrays(state, age, generator)

    def on_device(
        self, model: StepModel, value: Value | None, precision: Precision = "float32"
    ) -> tuple[StepModel, Value | None]:
        """Model and value where plans are imagined, frozen; made anew when one of them is another."""
        if self._moved is None or not self._moved.is_of(model, value, precision):
            self._moved = Moved.to(self._device, model, value, precision)
        return self._moved.there

    def _task(
        self,
        settings: PlanningSettings,
        there: StepModel,
        fitted: Value | None,
        obs: Tensor,
        generator: torch.Generator,
    ) -> Callable[[Tensor], tuple[Score, Tensor | None]]:
        """Of some of the starts: how their plans are scored, and the policy's proposals for them."""
        critic = settings.value == "critic" and self._policy.exists
        behind = self._policy.value if critic else fitted
        discount = self._policy.discount if critic else 1.0
        imagination, horizon = settings.imagination, settings.planner.horizon  # type: ignore[union-attr]

        def task(rows: Tensor) -> tuple[Score, Tensor | None]:
            here = obs[rows]

            def score(actions: Tensor) -> Tensor:
                return imagined_returns(
                    there, here, actions, imagination, generator, behind, discount
                )

            if not settings.proposals or not self._policy.exists:
                return score, None
            count = settings.proposals
            assert self._moved is not None
            model = self._moved.in_full
            return score, propose(model, self._policy, here, count, horizon, generator)

        return task


@torch.inference_mode()
def propose(
    model: StepModel,
    policy: HeldPolicy,
    obs: Tensor,
    count: int,
    horizon: int,
    generator: torch.Generator,
) -> Tensor:
    """Action sequences [S, count, H, A] that the policy takes from obs [S, O], in the members' mean.

    The first of each start is the policy's best guess throughout, the others are drawn.
    """
    starts, device = len(obs), model.device
    state = obs.repeat_interleave(count, 0)
    first = torch.arange(len(state)) % count == 0
    taken = []
    rows = (model.members, -1, -1)
    model = model.frozen()
    for _ in range(horizon):
        action = policy.act(state, generator)
        action[first] = policy.act(state[first])
        taken.append(action)
        here, taking = (part.to(device).expand(rows) for part in (state, action))
        state = model.step(here, taking).next_obs.mean(0).to(obs.device)
    return torch.stack(taken, dim=1).reshape(starts, count, horizon, -1)


def _as_arrays(memory: PlannerState, age: Tensor, generator: torch.Generator) -> Memory:
    parts = (memory.mean, memory.elites, memory.elite_valid, age, generator.get_state())
    return tuple(part.numpy() for part in parts)
