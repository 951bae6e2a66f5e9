"""Many action sequences at once through ``mujoco.rollout``: no Python runs between their steps.

For the standard tasks whose reward and termination follow from the states passed through; the
formulas are those of ``rewards.py`` and ``rules.py``, given all that the observation may leave out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mujoco
import mujoco.rollout
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.pusher_v5 import PusherEnv
from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from torch import Tensor

from envs.make import Env, acting_layers
from envs.rewards import reward_rule
from envs.rules import termination_rule
from mbrl_bilevel.types import Rule

Array = npt.NDArray[np.float64]

_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
# Numbers kept at a time: 64 MB of states.
_MOST_NUMBERS = 2**23


#: ``observe(qpos [..., nq], qvel [..., nv], places [..., P, 3]) -> [..., O]``
Observe = Callable[[Array, Array, Array], Array]


@dataclass(frozen=True)
class Judge:
    """What tells the reward of a path through the states of ``base``: its two rules, the bodies whose
    places the observation needs, and how it is put together."""

    base: Any
    reward: Rule
    termination: Rule
    bodies: tuple[str, ...]
    observe: Observe


def judge_of(env: Env) -> Judge | None:
    """None where a path does not tell the reward: there the environment itself has to be stepped.

    Known are HalfCheetah, Hopper, Walker2d, Swimmer and Pusher (v5), but no subclasses, no wrappers
    that act, and no forces applied from outside. Reacher is not: it takes its fingertip from the last
    stage of a Runge-Kutta step, which no state shows. InvertedPendulum is better stepped: most plans
    end long before their horizon.
    """
    *wrappers, base = acting_layers(env)
    task: Any = base
    if wrappers or type(base) not in _OBSERVED:
        return None
    if task.data.qfrc_applied.any() or task.data.xfrc_applied.any():
        return None
    shown = _showing_positions(base)
    reward, termination = reward_rule(shown), termination_rule(shown)
    if reward is None or termination is None:
        return None
    return Judge(shown, reward, termination, *_OBSERVED[type(base)])


class Rollouts:
    """A pool of ``threads``, which have to be more than 0; scores do not depend on their number."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        # Without a pool a rollout runs on the thread that calls.
        self._pool = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)

    def returns(self, judge: Judge, actions: Tensor) -> Tensor:
        """The sum of rewards of ``actions`` [N, H, A] up to the first termination, [N] in double."""
        steps = max(actions.shape[1] * judge.base.frame_skip, 1)
        rows = max(1, _MOST_NUMBERS // (steps * mujoco.mj_stateSize(judge.base.model, _STATE)))
        starts = range(0, len(actions), rows)
        return torch.cat([self._returns(judge, actions[i : i + rows]) for i in starts])

    def _returns(self, judge: Judge, actions: Tensor) -> Tensor:
        obs = torch.from_numpy(self._observations(judge, actions))
        path = (obs[:, :-1], actions, obs[:, 1:])
        reward, ended = judge.reward(*path).double(), judge.termination(*path)
        # A reward counts where no step before it has ended the episode.
        before = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1)
        return torch.where(before.cumsum(1) == 0, reward, 0.0).sum(1)

    def _observations(self, judge: Judge, actions: Tensor) -> Array:
        """[N, H + 1, O] from the present one on, with all positions, and velocities as they are."""
        states = self._states(judge, actions.detach().cpu().numpy())
        model, every = judge.base.model, judge.base.frame_skip
        qpos, qvel = states[:, :, 1 : 1 + model.nq], states[:, :, 1 + model.nq :][..., : model.nv]
        # Euler's method places bodies before it integrates: they are where the last but one position says.
        places = _places(judge, qpos[:, every - 1 : -1 : every])
        seen = judge.observe(qpos[:, every::every], qvel[:, every::every], places)
        now = np.broadcast_to(judge.base._get_obs(), (len(seen), 1, seen.shape[-1]))
        return np.concatenate([now, seen], axis=1)

    def _states(self, judge: Judge, actions: npt.NDArray[Any]) -> Array:
        """MuJoCo's full states at every integrator step, the present one first."""
        model, data = judge.base.model, judge.base.data
        state = np.empty(mujoco.mj_stateSize(model, _STATE))
        mujoco.mj_getState(model, data, state, _STATE)
        start = np.tile(state, (len(actions), 1))
        control = np.repeat(actions.astype(np.float64), judge.base.frame_skip, axis=1)
        if control.shape[1] == 0:
            return start[:, None]
        states, _ = self._pool.rollout(
            model,
            [mujoco.MjData(model) for _ in range(self._threads)],
            start,
            control,
            initial_warmstart=np.tile(data.qacc_warmstart, (len(actions), 1)),
        )
        return np.concatenate([start[:, None], states], axis=1)


def _showing_positions(base: Any) -> Any:
    """The same environment, as its observation would be with nothing left out; shares its data."""
    shown = object.__new__(type(base))
    shown.__dict__.update(vars(base), _exclude_current_positions_from_observation=False)
    return shown


def _places(judge: Judge, qpos: Array) -> Array:
    """Where the bodies are at positions [..., nq]: [..., P, 3]."""
    model = judge.base.model
    data = mujoco.MjData(model)
    ids = [model.body(name).id for name in judge.bodies]
    places = np.empty((*qpos.shape[:-1], len(ids), 3))
    for index in np.ndindex(*qpos.shape[:-1]) if ids else ():
        data.qpos[:] = qpos[index]
        mujoco.mj_kinematics(model, data)
        places[index] = data.xpos[ids]
    return places


def _whole_state(qpos: Array, qvel: Array, places: Array) -> Array:
    return np.concatenate([qpos, qvel], axis=-1)


def _pusher(qpos: Array, qvel: Array, places: Array) -> Array:
    flat = places.reshape(*places.shape[:-2], 9)
    return np.concatenate([qpos[..., :7], qvel[..., :7], flat], axis=-1)


_OBSERVED: dict[type, tuple[tuple[str, ...], Observe]] = {
    HalfCheetahEnv: ((), _whole_state),
    HopperEnv: ((), _whole_state),
    PusherEnv: (("tips_arm", "object", "goal"), _pusher),
    SwimmerEnv: ((), _whole_state),
    Walker2dEnv: ((), _whole_state),
}
