"""Known terminations of the standard MuJoCo tasks (v5), batched, and rules of the user's own.

terminated = not healthy(next_obs), with the ranges of the given instance.
Source: the ``step`` and ``is_healthy`` of gymnasium.envs.mujoco.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.humanoid_v5 import HumanoidEnv
from gymnasium.envs.mujoco.humanoidstandup_v5 import HumanoidStandupEnv
from gymnasium.envs.mujoco.inverted_double_pendulum_v5 import InvertedDoublePendulumEnv
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.envs.mujoco.pusher_v5 import PusherEnv
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from torch import Tensor

from envs.tasks.appended import for_own_dims
from envs.tasks.layers import Env, acting_layers
from envs.tasks.room import Room
from envs.tasks.user_module import import_user_module
from mbrl_bilevel.base.checks import require_entries
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Rule

# What a subclass may define anew without changing when an observation means the end of an episode.
_FREE_TO_OVERRIDE = frozenset(
    {
        "__init__",
        "reset",
        "reset_model",
        "_get_reset_info",
        "_initialize_simulation",
        "_step_mujoco_simulation",
        "do_simulation",
        "_get_rew",
        "control_cost",
        "contact_cost",
        "healthy_reward",
        "metadata",
        "render",
        "close",
    }
)

#: Hopper and Walker2d show velocities clipped to ±10 (m/s, rad/s).
SHOWN_VELOCITY = 10.0
# No healthy hopper moves a joint this fast: 21 was the most in 1500 episodes of full torques.
_UNREACHED_VELOCITY = 50.0


@for_own_dims
def termination_rule(env: Env) -> Rule | None:
    """When ``env`` terminates, as a function of the observation; None where that is not known.

    Known are the eleven MuJoCo tasks of Gymnasium, version 5, and the tasks of a ``Room``, with whatever arguments they were
    made with, bare or under wrappers that leave the observation as it is, and subclasses that only
    change the physics, the reward or the reset. Everything else gives None: the model has to learn
    it.

    The rule maps obs [..., O], action [..., A], next_obs [..., O], in raw units, to bool [...].
    It agrees with the real task exactly, but for two cases no observation shows:
    InvertedDoublePendulum looks at its tip an instant before the observation is taken, up to 2e-4 m
    lower or higher; Hopper also ends at a joint speed of 100 (by default), which it never reaches.
    """
    *wrappers, base = acting_layers(env)
    if not all(_keeps_observation(wrapper) for wrapper in wrappers):
        return None
    for task, build in _BUILDERS.items():
        if _terminates_like(type(base), task):
            return build(base)
    return None


def load_rule(spec: str, *, probability: bool = True) -> Rule:
    """The user's own rule, by its ``spec`` ``module:function``; the working directory is searched too.

    The result is checked at each call: a tensor with one entry per transition, bool or a
    probability; with ``probability`` False, of a reward, any number. Raises ``InvalidInputError``: not of this form, no such module, no such function,
    and from the rule itself where it raises, or its result has the wrong type, shape or range.
    """
    module_name, _, name = spec.partition(":")
    if not module_name or not name:
        raise InvalidInputError(
            f"rule {spec!r}: must have the form module:function, such as my_task:termination"
        )
    function = getattr(import_user_module(module_name, f"rule {spec!r}:"), name, None)
    if not callable(function):
        what = "has no" if function is None else "holds something that is not a function as"
        raise InvalidInputError(
            f"rule {spec!r}: module {module_name!r} {what} {name!r}; "
            f"define {name}(obs, action, next_obs) there"
        )

    def checked(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        try:
            found = function(obs, action, next_obs)
        except (Exception, SystemExit) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise InvalidInputError(
                f"rule {spec!r}: it raised {said}; it gets PyTorch tensors obs [..., O], "
                f"action [..., A] and next_obs [..., O], here on {next_obs.device}"
            ) from error
        result = require_entries(f"rule {spec!r}:", found, next_obs)
        if not probability:
            return result
        if result.dtype != torch.bool and not bool(((result >= 0) & (result <= 1)).all()):
            raise InvalidInputError(
                f"rule {spec!r}: must return True or False, or a probability from 0 to 1; "
                f"got {result.dtype} from {result.min().item():.4g} to {result.max().item():.4g}"
            )
        return result

    return checked


def _keeps_observation(wrapper: Env) -> bool:
    """Whether it is a plain action or reward wrapper: these pass observation and termination on."""
    step: Any = type(wrapper).step
    return step is gym.ActionWrapper.step or step is gym.RewardWrapper.step


def _terminates_like(kind: type, task: type) -> bool:
    """Whether ``kind`` is ``task``, or a subclass that leaves alone what decides on termination."""
    if not issubclass(kind, task):
        return False
    below = kind.__mro__[: kind.__mro__.index(task)]
    redefined = {name for cls in below for name in vars(cls) if hasattr(task, name)}
    harmless = {name for name in redefined if name.startswith("__")} | _FREE_TO_OVERRIDE
    return redefined <= harmless


def _never(base: Any) -> Rule:
    """For tasks without a termination."""
    return lambda obs, action, next_obs: torch.zeros(
        next_obs.shape[:-1], dtype=torch.bool, device=next_obs.device
    )


def _hopper(base: Any) -> Rule | None:
    if not base._terminate_when_unhealthy:
        return _never(base)
    low, high = base._healthy_state_range
    for limit in (-low, high):
        if SHOWN_VELOCITY < limit < _UNREACHED_VELOCITY:
            return None  # the clipped observation does not show whether the limit was passed
    hidden = int(base._exclude_current_positions_from_observation)
    upright = _walker(base)

    def rule(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        state = next_obs[..., 2 - hidden :]
        return upright(obs, action, next_obs) | ~_inside(state, (low, high)).all(-1)

    return rule


def _walker(base: Any) -> Rule:
    if not base._terminate_when_unhealthy:
        return _never(base)
    hidden = int(base._exclude_current_positions_from_observation)
    z_range, angle_range = base._healthy_z_range, base._healthy_angle_range

    def rule(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        z, angle = next_obs[..., 1 - hidden], next_obs[..., 2 - hidden]
        return ~(_inside(z, z_range) & _inside(angle, angle_range))

    return rule


def _ant(base: Any) -> Rule:
    if not base._terminate_when_unhealthy:
        return _never(base)
    hidden = 2 * int(base._exclude_current_positions_from_observation)
    low, high = map(float, base._healthy_z_range)
    states = base.model.nq + base.model.nv - hidden  # the contact forces behind them do not count

    def rule(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        z = next_obs[..., 2 - hidden]
        finite = torch.isfinite(next_obs[..., :states]).all(-1)
        return ~(finite & (low <= z) & (z <= high))

    return rule


def _humanoid(base: Any) -> Rule:
    if not base._terminate_when_unhealthy:
        return _never(base)
    hidden = 2 * int(base._exclude_current_positions_from_observation)
    z_range = base._healthy_z_range

    def rule(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return ~_inside(next_obs[..., 2 - hidden], z_range)

    return rule


def _inverted_pendulum(base: Any) -> Rule:
    return lambda obs, action, next_obs: (
        ~torch.isfinite(next_obs).all(-1) | (next_obs[..., 1].abs() > 0.2)
    )


def _inverted_double_pendulum(base: Any) -> Rule | None:
    tip = double_pendulum_tip(base.model)
    return None if tip is None else lambda obs, action, next_obs: tip(next_obs)[1] <= 1.0


def double_pendulum_tip(model: Any) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
    """Where the tip of a double pendulum is at observations [..., O]: (x, height) in metres, each [...].

    Each is w·(1, x, cos a, sin a, cos(a+b), sin(a+b)), true of every cart with two hinges that turn in
    the same plane, so w is read off the model's own kinematics at random poses. None if the model is
    something else.
    """
    if model.nq != 3 or model.nsite < 1:
        return None
    poses = np.random.default_rng(0).uniform(-2, 2, size=(32, 3))
    data = mujoco.MjData(model)
    tips = np.empty((len(poses), 2))
    for i, pose in enumerate(poses):
        data.qpos[:] = pose
        mujoco.mj_kinematics(model, data)
        tips[i] = data.site_xpos[0, [0, 2]]
    x, a, ab = poses[:, 0], poses[:, 1], poses[:, 1] + poses[:, 2]
    features = np.stack([np.ones_like(x), x, np.cos(a), np.sin(a), np.cos(ab), np.sin(ab)], axis=1)
    weights: npt.NDArray[np.float64] = np.linalg.lstsq(features, tips, rcond=None)[0]
    if not np.abs(features @ weights - tips).max() < 1e-9:
        return None

    def place(obs: Tensor) -> tuple[Tensor, Tensor]:
        x, s1, s2, c1, c2 = obs[..., :5].unbind(-1)
        shown = torch.stack(
            [torch.ones_like(x), x, c1, s1, c1 * c2 - s1 * s2, s1 * c2 + c1 * s2], dim=-1
        )
        tip = shown @ torch.from_numpy(weights).to(obs)
        return tip[..., 0], tip[..., 1]

    return place


def _inside(value: Tensor, limits: tuple[float, float]) -> Tensor:
    """Strictly between the limits; False for NaN."""
    low, high = limits
    return (low < value) & (value < high)


_BUILDERS: dict[type, Callable[[Any], Rule | None]] = {
    AntEnv: _ant,
    HalfCheetahEnv: _never,
    HopperEnv: _hopper,
    HumanoidEnv: _humanoid,
    HumanoidStandupEnv: _never,
    InvertedDoublePendulumEnv: _inverted_double_pendulum,
    InvertedPendulumEnv: _inverted_pendulum,
    PusherEnv: _never,
    ReacherEnv: _never,
    Room: _never,
    SwimmerEnv: _never,
    Walker2dEnv: _walker,
}
