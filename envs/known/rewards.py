"""Known rewards of standard MuJoCo tasks (v5), batched, where the observation shows them.

Source: the ``step`` and ``_get_rew`` of gymnasium.envs.mujoco, with the weights of the given instance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.humanoidstandup_v5 import HumanoidStandupEnv
from gymnasium.envs.mujoco.inverted_double_pendulum_v5 import InvertedDoublePendulumEnv
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.envs.mujoco.pusher_v5 import PusherEnv
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from torch import Tensor

from envs.known.endings import double_pendulum_tip, termination_rule
from envs.tasks.appended import for_own_dims
from envs.tasks.layers import Env, acting_layers
from envs.tasks.room import Room
from mbrl_bilevel.base.records import Rule


@for_own_dims
def reward_rule(env: Env) -> Rule | None:
    """The reward of ``env`` as a function of (obs, action, next_obs); None where it is not shown.

    Always known: InvertedPendulum, Reacher, Pusher, a Room, and HumanoidStandup with contact forces in its
    observation. Known with ``exclude_current_positions_from_observation=False`` alone: HalfCheetah,
    Swimmer, Hopper, Walker2d, which pay for the mean velocity of a step, (x' − x) / dt, where their
    observation shows the velocity at its end. Never: Ant and Humanoid, whose velocities are taken
    from body positions an integrator step old, and InvertedDoublePendulum, whose reward reads
    joint speeds that its observation clips.

    The robots of ``envs.tasks.variations`` count as Gymnasium's unless their reward itself is varied. Other
    subclasses, and wrappers that act on actions, observations or rewards, give None.
    """
    *wrappers, base = acting_layers(env)
    build = _BUILDERS.get(_paid_as(base))
    return None if wrappers or build is None else build(base)


@for_own_dims
def approximate_reward_rule(env: Env) -> Rule | None:
    """Nearly the reward of ``env``, from what its observation shows; None where not even that is known.

    ``reward_rule`` where there is one. Else, of HalfCheetah, Swimmer, Hopper and Walker2d, the mean
    velocity of a step is taken to be the mean of those at its two ends (the trapezoidal rule); of
    InvertedDoublePendulum, joint speeds beyond ±10 rad/s count as 10, and the tip is where it is at
    the end of the step, an instant later than the task looks. To plan with, not to evaluate with.

    Subclasses (but those that ``reward_rule`` knows), wrappers that act on actions, observations or rewards, and Hopper
    and Walker2d that do not terminate when unhealthy, give None.
    """
    exact = reward_rule(env)
    if exact is not None:
        return exact
    *wrappers, base = acting_layers(env)
    build = _APPROXIMATE.get(_paid_as(base))
    return None if wrappers or build is None else build(base)


def _paid_as(base: Any) -> type:
    """The class whose reward ``base`` pays; a subclass may say that it is its parent's (``paid_as``)."""
    found: type = getattr(base, "paid_as", type(base))
    return found


def _reacher(base: Any) -> Rule:
    near, control = float(base._reward_dist_weight), float(base._reward_control_weight)

    def rule(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        # Fingertip and target are at one height: the two coordinates shown are all of it.
        return -near * _norm(next_obs[..., 8:10]) - control * action.square().sum(-1)

    return rule


def _pusher(base: Any) -> Rule:
    near, far = float(base._reward_near_weight), float(base._reward_dist_weight)
    control = float(base._reward_control_weight)

    def rule(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        tip, thing, goal = (next_obs[..., i : i + 3] for i in (14, 17, 20))
        reach = near * _norm(thing - tip) + far * _norm(thing - goal)
        return -reach - control * action.square().sum(-1)

    return rule


def _inverted_pendulum(base: Any) -> Rule | None:
    ended = termination_rule(base)
    if ended is None:
        return None
    return lambda obs, action, next_obs: (~ended(obs, action, next_obs)).to(next_obs.dtype)


def _humanoid_standup(base: Any) -> Rule | None:
    if not base._include_cfrc_ext_in_observation:
        return None
    height = 0 if base._exclude_current_positions_from_observation else 2
    forces = 6 * (base.model.nbody - 1)  # the last of the observation; the world body feels none
    step, control = float(base.model.opt.timestep), float(base._ctrl_cost_weight)
    impact, impact_range = float(base._impact_cost_weight), base._impact_cost_range

    def rule(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        pushed = (impact * next_obs[..., -forces:].square().sum(-1)).clamp(*impact_range)
        lifted = next_obs[..., height] / step
        return lifted - control * action.square().sum(-1) - pushed + 1.0

    return rule


def _forward(base: Any) -> Rule | None:
    """Forward velocity less control cost."""
    if base._exclude_current_positions_from_observation:
        return None
    seconds = float(base.dt)
    return _moving(base, lambda obs, next_obs: (next_obs[..., 0] - obs[..., 0]) / seconds)


def _nearly_forward(base: Any) -> Rule:
    """The same by the velocities at both ends of the step; a swimmer hides two positions, others one."""
    hidden = 2 if isinstance(base, SwimmerEnv) else 1
    first = int(base.model.nq) - hidden  # velocities follow the positions that are shown
    return _moving(base, lambda obs, next_obs: (obs[..., first] + next_obs[..., first]) / 2.0)


def _moving(base: Any, velocity: Callable[[Tensor, Tensor], Tensor]) -> Rule:
    forward, control = float(base._forward_reward_weight), float(base._ctrl_cost_weight)
    return lambda obs, action, next_obs: (
        forward * velocity(obs, next_obs) - control * action.square().sum(-1)
    )


def _forward_alive(base: Any) -> Rule | None:
    return _while_healthy(base, _forward(base))


def _nearly_forward_alive(base: Any) -> Rule | None:
    return _while_healthy(base, _nearly_forward(base))


def _while_healthy(base: Any, moving: Rule | None) -> Rule | None:
    """``moving`` and a bonus while healthy; where being unhealthy ends nothing, it is not known."""
    ended = termination_rule(base)
    if moving is None or ended is None or not base._terminate_when_unhealthy:
        return None
    bonus = float(base._healthy_reward)

    def rule(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        alive = ~ended(obs, action, next_obs)
        return moving(obs, action, next_obs) + bonus * alive.to(next_obs.dtype)

    return rule


def _inverted_double_pendulum(base: Any) -> Rule | None:
    tip = double_pendulum_tip(base.model)
    if tip is None:
        return None
    bonus = float(base._healthy_reward)

    def rule(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        x, y = tip(next_obs)
        v1, v2 = next_obs[..., 6], next_obs[..., 7]
        alive = (y > 1.0).to(next_obs.dtype)
        away = 0.01 * x.square() + (y - 2.0).square()
        return bonus * alive - away - 1e-3 * v1.square() - 5e-3 * v2.square()

    return rule


def _norm(vector: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(vector, dim=-1)
    return norm


_BUILDERS: dict[type, Callable[[Any], Rule | None]] = {
    HalfCheetahEnv: _forward,
    HopperEnv: _forward_alive,
    HumanoidStandupEnv: _humanoid_standup,
    InvertedPendulumEnv: _inverted_pendulum,
    PusherEnv: _pusher,
    ReacherEnv: _reacher,
    Room: lambda room: room.object.reward,
    SwimmerEnv: _forward,
    Walker2dEnv: _forward_alive,
}

_APPROXIMATE: dict[type, Callable[[Any], Rule | None]] = {
    HalfCheetahEnv: _nearly_forward,
    HopperEnv: _nearly_forward_alive,
    InvertedDoublePendulumEnv: _inverted_double_pendulum,
    SwimmerEnv: _nearly_forward,
    Walker2dEnv: _nearly_forward_alive,
}
