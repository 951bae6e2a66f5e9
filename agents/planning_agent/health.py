"""How the agent is: its model on steps that it has not seen, its critics against what came, its pace.

Looked at before each fit, on the steps since the last one, and logged under ``health/`` and ``time/``.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.planning_agent.base_agent import AgentParts
from agents.planning_agent.replay import PLAN, stored_action
from agents.planning_agent.terminal_value import returns_to_go
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.models.dynamics import DynamicsModel

#: Steps at most that are looked at: more tell no more.
_MOST = 2000
#: Steps at most by which the spread of returns is told.
_MOST_SO_FAR = 20_000
#: Steps ahead over which imagined and real rewards are added up.
_AHEAD = 10

BoolArray = npt.NDArray[np.bool_]
Part = Literal["acting", "fitting", "updating"]


class Clock:
    """Seconds spent on acting, fitting and updating since ``start``."""

    def __init__(self) -> None:
        self.seconds: dict[Part, float] = {"acting": 0.0, "fitting": 0.0, "updating": 0.0}
        self._last = time.perf_counter()

    def start(self) -> None:
        """Begin anew: time before now is not counted."""
        self.seconds = dict.fromkeys(self.seconds, 0.0)
        self._last = time.perf_counter()

    def lap(self, part: Part) -> None:
        """The time since the last call was spent on ``part``."""
        now = time.perf_counter()
        self.seconds[part] += now - self._last
        self._last = now


def look(agent: AgentParts, clock: Clock | None) -> dict[str, float]:
    """Log how ``agent`` is, and by its ``clock`` how fast; warn where its model should not be planned with."""
    # Before the first fit there were random steps alone, which say nothing of the pace to come.
    found = {} if agent.model is None or clock is None else pace(agent, clock)
    new = len(agent.experience) - agent.progress.fitted_on
    count = min(_MOST, new, len(agent.experience.real))
    model = agent.model
    if isinstance(model, DynamicsModel) and count > 0:
        model = model.to("cpu")  # it is little work
        since, who = agent.experience.newest(count)
        so_far, _ = agent.experience.newest(min(_MOST_SO_FAR, len(agent.experience.real)))
        found |= of_the_model(model, since, so_far)
        if agent.held.exists:
            found |= of_the_critics(agent, model, since, who == PLAN)
        _warn(agent, found)
    for name, value in found.items():
        agent.logger.record(name, value)
    agent.progress = agent.progress.with_health(found)
    return found


def pace(agent: AgentParts, clock: Clock) -> dict[str, float]:
    """Steps and updates a second, the part of the time that fits take, and the seconds left to the last
    step that ``learn`` knows of."""
    algorithm, spent = agent.algorithm, clock.seconds
    whole = sum(spent.values())
    steps = algorithm.num_timesteps - algorithm._num_timesteps_at_start
    if whole <= 0.0 or steps <= 0:
        return {}
    made = agent.settings.updates_per_step * steps
    found = {
        "time/steps_per_second": steps / whole,
        "time/acting_per_second": steps / max(spent["acting"], 1e-9),
        "time/fitting_share": spent["fitting"] / whole,
        "time/left": (algorithm._total_timesteps - algorithm.num_timesteps) * whole / steps,
    }
    if agent.held.exists and spent["updating"] > 0.0:
        found["time/updates_per_second"] = made / spent["updating"]
    return found


@torch.inference_mode()
def of_the_model(
    model: DynamicsModel, since: Transitions, so_far: Transitions | None = None
) -> dict[str, float]:
    """One step ahead: RMSE in spreads of the training targets and coverage of the 90 % interval, over what the model
    is meant to predict; and over ten steps under the recorded actions, imagined against real rewards.

    ``return_error`` is in spreads of the ten-step returns of ``so_far``, all that has been seen (None:
    ``since``): where an agent has come to act well, those of its latest steps are all alike.
    """
    obs, action = torch.from_numpy(since.obs), torch.from_numpy(since.action)
    said = model.predict(obs, action, 0.9)
    active = model.active.nonzero().squeeze(1)[model.meant]
    truth = model.target_values(since)[:, model.meant]
    error = (said.mean[:, active] - truth) / model.targets.scale[active]
    inside = (said.low[:, active] <= truth) & (truth <= said.high[:, active])
    found = {
        "health/model_rmse": float(error.square().mean().sqrt()),
        "health/model_coverage": float(inside.float().mean()),
    }
    starts = _stretches(since, _AHEAD)
    if len(starts):
        imagined, real = _open_loop(model, since, starts)
        found["health/imagined_return"] = float(imagined.mean())
        found["health/real_return"] = float(real.mean())
        spread = float(_returns(since if so_far is None else so_far).std(correction=0))
        if spread > 0.0:
            found["health/return_error"] = float((imagined - real).square().mean().sqrt()) / spread
    return found


@torch.inference_mode()
def of_the_critics(
    agent: AgentParts, model: DynamicsModel, since: Transitions, planned: BoolArray
) -> dict[str, float]:
    """Q against what came; what the actions of ``planned`` steps [N] gain on the policy's own, by Q; and how
    far the model's targets are off.

    ``target_error``: root mean square of (r̂ + γ V(ŝ′)) − (r + γ V(s′)), model against data, over that of
    the temporal-difference error of the data itself: below 1 an imagined row is as good as a real one.
    """
    held, gamma = agent.held, agent.held.discount
    obs, next_obs = torch.from_numpy(since.obs), torch.from_numpy(since.next_obs)
    action = torch.from_numpy(since.action)
    going = 1.0 - torch.from_numpy(since.terminated).float()
    q = held.action_value(obs, stored_action(agent.action_space, action))
    target = torch.from_numpy(since.reward) + gamma * going * held.value(next_obs)
    rows = (model.members, -1, -1)
    step = model.step(obs.expand(rows), action.expand(rows))
    imagined = step.reward + gamma * (1.0 - step.terminated) * held.value(step.next_obs)
    off = (imagined - target).square().mean().sqrt()
    own = (q - target).square().mean().sqrt()
    returns = returns_to_go(since, held.value(next_obs).double().numpy(), gamma)
    found = {
        "health/q": float(q.mean()),
        "health/return_to_go": float(returns.mean()),
        "health/target_error": float(off / own.clamp(min=1e-12)),
    }
    if planned.any():
        found["health/plan_gain"] = float((q - held.value(obs))[torch.from_numpy(planned)].mean())
    return found


def imagined_share(target_error: float) -> float:
    """The share of imagined rows that a model of this ``target_error`` ρ deserves: 1 / (1 + ρ²).

    Rows are weighed as measurements are, by the inverse of their variance: 1 that of a real target, ρ²
    what the model's error adds. None where the error is not finite.
    """
    return 1.0 / (1.0 + target_error**2) if math.isfinite(target_error) else 0.0


def doubtful(health: Mapping[str, float]) -> bool:
    """Whether the model should not be planned with: off by more than the spread of its own targets, or
    sure of what does not happen."""
    rmse, coverage = (health.get(f"health/model_{name}") for name in ("rmse", "coverage"))
    return rmse is not None and coverage is not None and not (rmse <= 1.0 and coverage >= 0.5)


def _warn(agent: AgentParts, found: Mapping[str, float]) -> None:
    """Once, until the model is sound again."""
    if not doubtful(found) or doubtful(dict(agent.progress.health)):
        return
    rmse, coverage = found["health/model_rmse"], found["health/model_coverage"]
    use = "plans" if agent.settings.planner is not None else "imagined rows"
    warnings.warn(
        f"after {agent.num_timesteps} steps the model is off by {rmse:.2f} standard deviations on new "
        f"steps and its 90 % intervals hold {100 * coverage:.0f} % of them: do not trust {use} of it; give "
        "it more data (learning_starts), longer fits (schedule), or more of the policy (plan_share)",
        stacklevel=2,
    )


def _returns(record: Transitions) -> Tensor:
    """Sums of rewards over each ten steps in a row, one after another."""
    index = np.asarray(_stretches(record, _AHEAD), dtype=np.int64)
    return torch.from_numpy(record.reward[index[:, None] + np.arange(_AHEAD)]).sum(1)


def _stretches(since: Transitions, length: int) -> list[int]:
    """Rows that begin ``length`` consecutive steps of an episode, one after another."""
    starts, row = [], 0
    while row + length <= len(since):
        last = row + length - 1
        whole = (
            since.episode[row] == since.episode[last] and since.t[last] - since.t[row] == length - 1
        )
        starts += [row] if whole else []
        row += length if whole else 1
    return starts


def _open_loop(
    model: DynamicsModel, since: Transitions, starts: list[int]
) -> tuple[Tensor, Tensor]:
    """Sums of rewards over each stretch, by the members' mean and in truth, each [S]."""
    index = np.asarray(starts)
    state = torch.from_numpy(since.obs[index]).expand(model.members, -1, -1)
    total = torch.zeros(len(index))
    for k in range(_AHEAD):
        action = torch.from_numpy(since.action[index + k]).expand(model.members, -1, -1)
        step = model.step(state, action)
        state, total = step.next_obs, total + step.reward.mean(0)
    return total, _returns(since)
