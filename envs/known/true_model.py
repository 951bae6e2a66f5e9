"""The true simulator behind a learned model's ``step()``: imagination and planning without model error.

observation → (qpos, qvel) → the integrator's steps → the task's own next observation, reward and end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import mujoco
import numpy as np
import torch
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.inverted_double_pendulum_v5 import InvertedDoublePendulumEnv
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from gymnasium.envs.mujoco.swimmer_v5 import SwimmerEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from torch import Tensor

from envs.known.endings import SHOWN_VELOCITY
from envs.known.rollouts import Array, Judge, Rollouts, judge_of, starts_at, twin
from envs.tasks.layers import Env, acting_layers
from mbrl_bilevel.base.checks import require_floating, require_rows
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Step

#: ``state_of(obs [N, O]) -> (qpos [N, nq], qvel [N, nv])``
StateOf = Callable[[Array], tuple[Array, Array]]
#: ``advance(qpos [N, nq], qvel [N, nv], action [N, A]) -> (next_obs [N, O], reward [N], terminated [N])``
_Advance = Callable[[Array, Array, Array], tuple[Array, Array, Array]]


class TrueModel:
    """What a learned model would say if it had no error: one member, no chance, no gradients.

    For HalfCheetah, Hopper, Walker2d, Swimmer, InvertedPendulum, InvertedDoublePendulum and Reacher
    (v5), whose observation tells the state but for where the robot is, which neither physics nor
    reward depend on. It is nearly so in three places:

    - Hopper, Walker2d and InvertedDoublePendulum show velocities clipped to ±10, and it goes on from
      these. Under random actions Hopper never moves faster, but Walker2d does in most steps (77 %):
      there ``Oracle`` is right and this is not.
    - Reacher's elbow, pushed past half a turn against its limit of 3 rad, is taken for one at the other
      limit.
    - The solver starts from nothing, the real task from the step before. So they agree to the solver's
      tolerance (1e-8), not to the bit: observations differed by 3e-10 of their size at most.

    Runners and Swimmer go through ``mujoco.rollout``, all rows at once; the others, and those whose
    reward no state tells (``rollouts.judge_of``), are stepped one by one, at the speed of Python.
    """

    members = 1
    noise_width = 0
    device = torch.device("cpu")

    def __init__(self, env: Env, *, threads: int | None = None) -> None:
        """``env``: bare, or under wrappers that only watch it. It is never stepped; its model's
        numbers are read at each step, forces from outside are those of now.

        ``threads`` of ``mujoco.rollout``: None takes one a core, at most 4; results do not depend on
        it. Raises ``InvalidInputError`` for any other environment, or less than one thread.
        """
        found = told_state(env)
        if found is None:
            *wrappers, base = acting_layers(env)
            layers = " under ".join(type(layer).__name__ for layer in (base, *wrappers[::-1]))
            raise InvalidInputError(
                f"TrueModel: env must be {', '.join(kind.__name__ for kind in _STATES)} (v5), no "
                "subclass, without wrappers that act: of others the observation does not tell the "
                f"state; got {layers}. envs.known.oracle.Oracle scores plans in any MuJoCo task"
            )
        base, self._state_of = found
        rollouts, judge = Rollouts(threads), judge_of(base)
        self.obs_dim, self.action_dim = base.observation_space.shape[0], base.model.nu
        self._advance = _stepped(base) if judge is None else _rolled_out(base, judge, rollouts)

    def frozen(
        self, device: torch.device | str | None = None, precision: str = "float32"
    ) -> TrueModel:
        """Itself: there is nothing to make ready."""
        return self

    def only(self, members: Sequence[int]) -> TrueModel:
        """Itself: there is one."""
        return self

    def step(self, obs: Tensor, action: Tensor, noise: Tensor | None = None) -> Step:
        """The next state of each row: obs [1, …, B, O] or [B, O], action likewise, in raw units.

        In double; the result has the type and device of ``obs``. ``noise`` means nothing
        here. Rows that hold NaN, or in which MuJoCo diverges, give NaN. Raises
        InvalidInputError for other shapes, or a type that is not floating.
        """
        require_floating("obs", obs)
        require_floating("action", action)
        require_rows(obs, action, self.obs_dim, self.action_dim)
        rows = obs.shape[:-1]
        given = torch.cat([v.detach().cpu().double() for v in (obs, action)], -1).flatten(0, -2)
        states, actions = np.split(given.numpy(), [self.obs_dim], axis=1)
        # MuJoCo would put such a state back to the start without a word.
        sound = (given.abs() < mujoco.mjMAXVAL).all(1).numpy()
        next_obs, reward = np.full_like(states, np.nan), np.full(len(states), np.nan)
        ended = np.zeros(len(states))
        if sound.any():
            found = self._advance(*self._state_of(states[sound]), actions[sound])
            next_obs[sound], reward[sound], ended[sound] = found
            ended[np.isnan(reward)] = 0.0  # not healthy, a rule would say
        lead = rows if len(rows) > 1 else (1, *rows)
        parts = (torch.from_numpy(part).to(obs) for part in (next_obs, reward, ended))
        return Step(*(part.reshape(*lead, *part.shape[1:]) for part in parts))


def told_state(env: Env) -> tuple[Any, StateOf] | None:
    """The bare task of ``env``, and what reads its state off an observation; None where that does not tell it."""
    *wrappers, base = acting_layers(env)
    return None if wrappers or type(base) not in _STATES else (base, _STATES[type(base)](base))


def _rolled_out(base: Any, judge: Judge, rollouts: Rollouts) -> _Advance:
    """All rows at once; the observation is positions but for the hidden ones, and velocities."""
    model, hidden = base.model, hidden_positions(base)
    limit = SHOWN_VELOCITY if isinstance(base, HopperEnv | Walker2dEnv) else np.inf

    def advance(qpos: Array, qvel: Array, actions: Array) -> tuple[Array, Array, Array]:
        starts = starts_at(judge, qpos, qvel)
        whole, reward, ended = rollouts.step(judge, starts, torch.from_numpy(actions))
        shown, moving = whole[:, hidden : model.nq], whole[:, model.nq :]
        return np.concatenate([shown, moving.clip(-limit, limit)], axis=1), reward, ended

    return advance


def _stepped(base: Any) -> _Advance:
    """Row by row by the task's own ``step``, in data of our own."""
    before, data = mujoco.MjData(base.model), mujoco.MjData(base.model)
    mujoco.mj_copyData(before, base.model, base.data)
    before.time = 1.0
    own = twin(base, data=data, render_mode=None)

    def advance(qpos: Array, qvel: Array, actions: Array) -> tuple[Array, Array, Array]:
        next_obs = np.empty((len(actions), *base.observation_space.shape))
        reward, ended = np.empty(len(actions)), np.empty(len(actions))
        for i, action in enumerate(actions):
            # Nothing of the row before, where the solver stood say, may show in this one.
            mujoco.mj_copyData(data, base.model, before)
            own.set_state(qpos[i], qvel[i])
            next_obs[i], reward[i], ended[i], _, _ = own.step(action)
            if data.time < before.time:
                # It diverged: MuJoCo put it back to the start, time 0, without a word.
                next_obs[i], reward[i] = np.nan, np.nan
        return next_obs, reward, ended

    return advance


def hidden_positions(base: Any) -> int:
    """How many positions the observation leaves out: the first ones, which say where the robot is."""
    hidden: int = base.model.nq + base.model.nv - base.observation_space.shape[0]
    return hidden


def _shown(base: Any) -> StateOf:
    """Positions and velocities as they are, hidden positions 0."""
    hidden, positions = hidden_positions(base), base.model.nq

    def state_of(obs: Array) -> tuple[Array, Array]:
        whole = np.pad(obs, ((0, 0), (hidden, 0)))
        return whole[:, :positions], whole[:, positions:]

    return state_of


def _double_pendulum(base: Any) -> StateOf:
    """From x, the sines and cosines of two angles, three velocities and a force."""

    def state_of(obs: Array) -> tuple[Array, Array]:
        angles = np.arctan2(obs[:, 1:3], obs[:, 3:5])
        return np.concatenate([obs[:, :1], angles], axis=1), obs[:, 5:8]

    return state_of


def _reacher(base: Any) -> StateOf:
    """From the cosines and sines of two angles, the target, which stays, and two velocities."""

    def state_of(obs: Array) -> tuple[Array, Array]:
        angles = np.arctan2(obs[:, 2:4], obs[:, :2])
        return np.concatenate([angles, obs[:, 4:6]], axis=1), np.pad(obs[:, 6:8], ((0, 0), (0, 2)))

    return state_of


_STATES: dict[type, Callable[[Any], StateOf]] = {
    HalfCheetahEnv: _shown,
    HopperEnv: _shown,
    InvertedDoublePendulumEnv: _double_pendulum,
    InvertedPendulumEnv: _shown,
    ReacherEnv: _reacher,
    SwimmerEnv: _shown,
    Walker2dEnv: _shown,
}
