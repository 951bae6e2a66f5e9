"""Many action sequences at once through ``mujoco.rollout``: no Python runs between their steps.

For the standard tasks whose reward and termination follow from the states passed through; the
formulas are those of ``rewards.py`` and ``endings.py``, given all that the observation may leave out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
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

from envs.known.endings import termination_rule
from envs.known.rewards import reward_rule
from envs.tasks.layers import Env, acting_layers
from mbrl_bilevel.base.errors import require_count
from mbrl_bilevel.base.records import Rule

Array = npt.NDArray[np.float64]

_STATE = mujoco.mjtState.mjSTATE_FULLPHYSICS
# Numbers kept at a time: 64 MB of states.
MOST_NUMBERS = 2**23


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


@dataclass(frozen=True)
class Starts:
    """Where N rollouts begin: MuJoCo's full states [N, ·], what is observed there [N, O], and the
    acceleration from which the solver starts [N, nv]."""

    states: Array
    obs: Array
    warm: Array

    def __len__(self) -> int:
        return len(self.states)

    def __getitem__(self, rows: slice) -> Starts:
        return Starts(self.states[rows], self.obs[rows], self.warm[rows])


class Rollouts:
    """A pool of ``threads``, None for one a core and at most 4; results do not depend on their number.

    Raises ``InvalidInputError`` unless it is a count, of 1024 at most.
    """

    def __init__(self, threads: int | None) -> None:
        if threads is None:
            threads = min(os.cpu_count() or 1, 4)
        require_count("threads", threads, 1024)
        self.threads = threads
        # Without a pool a rollout runs on the thread that calls.
        self._pool = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)

    def returns(self, judge: Judge, actions: Tensor) -> Tensor:
        """The sum of rewards of ``actions`` [N, H, A] up to the first termination, [N] in double.

        From the present state of the judge's environment."""
        starts, returns = _present(judge, len(actions)), []
        for _, reward, ended in self._judged(judge, starts, actions):
            # A reward counts where no step before it has ended the episode.
            before = torch.cat([torch.zeros_like(ended[:, :1]), ended[:, :-1]], dim=1)
            returns.append(torch.where(before.cumsum(1) == 0, reward, 0.0).sum(1))
        return torch.cat(returns)

    def step(self, judge: Judge, starts: Starts, action: Tensor) -> tuple[Array, Array, Array]:
        """The observations [N, O] that ``action`` [N, A] leads to, with all positions, and velocities
        as they are; the rewards [N]; and whether it terminates [N]."""
        found = list(self._judged(judge, starts, action.unsqueeze(1)))
        obs, reward, ended = (torch.cat(part)[:, 0].numpy() for part in zip(*found, strict=True))
        return obs, reward, ended

    def _judged(
        self, judge: Judge, starts: Starts, actions: Tensor
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """What is observed after each of ``actions`` [N, H, A], [N, H, O], what it is paid for in
        double and whether it terminates, [N, H]: some rows at a time."""
        steps = max(actions.shape[1] * judge.base.frame_skip, 1)
        rows = max(1, MOST_NUMBERS // (steps * mujoco.mj_stateSize(judge.base.model, _STATE)))
        for part in (slice(i, i + rows) for i in range(0, len(actions), rows)):
            obs = torch.from_numpy(self._observations(judge, starts[part], actions[part]))
            path = (obs[:, :-1], actions[part], obs[:, 1:])
            yield obs[:, 1:], judge.reward(*path).double(), judge.termination(*path)

    def _observations(self, judge: Judge, starts: Starts, actions: Tensor) -> Array:
        """[N, H + 1, O] from the first one on."""
        states = self._states(judge, starts, actions.detach().cpu().numpy())
        model, every = judge.base.model, judge.base.frame_skip
        qpos, qvel = states[:, :, 1 : 1 + model.nq], states[:, :, 1 + model.nq :][..., : model.nv]
        # Euler's method places bodies before it integrates: they are where the last but one position says.
        places = _places(judge, qpos[:, every - 1 : -1 : every])
        seen = judge.observe(qpos[:, every::every], qvel[:, every::every], places)
        return np.concatenate([starts.obs[:, None], seen], axis=1)

    def _states(self, judge: Judge, starts: Starts, actions: npt.NDArray[Any]) -> Array:
        """MuJoCo's full states at every integrator step, the first one first; NaN from divergence on."""
        model = judge.base.model
        control = np.repeat(actions.astype(np.float64), judge.base.frame_skip, axis=1)
        if control.shape[1] == 0:
            return starts.states[:, None]
        states, _ = self._pool.rollout(
            model,
            [mujoco.MjData(model) for _ in range(self.threads)],
            starts.states,
            control,
            initial_warmstart=starts.warm,
        )
        # A state that diverges is put back to the start, time 0, without a word, and stays there.
        steps = np.arange(1, states.shape[1] + 1)
        due = starts.states[:, :1] + steps * model.opt.timestep
        states[np.abs(states[..., 0] - due) > 0.5 * model.opt.timestep] = np.nan
        return np.concatenate([starts.states[:, None], states], axis=1)


def starts_at(judge: Judge, qpos: Array, qvel: Array) -> Starts:
    """Starts at positions [N, nq] and velocities [N, nv], at time 1, of a robot without muscles.

    For judges that need the places of no body."""
    model, rows = judge.base.model, len(qpos)
    states = np.zeros((rows, mujoco.mj_stateSize(model, _STATE)))
    states[:, 0] = 1.0  # so that a state put back to time 0 in its first step shows
    states[:, 1 : 1 + model.nq + model.nv] = np.concatenate([qpos, qvel], axis=1)
    obs = judge.observe(qpos, qvel, np.empty((rows, 0, 3)))
    return Starts(states, obs, np.zeros((rows, model.nv)))


def _present(judge: Judge, rows: int) -> Starts:
    """Where the judge's environment is now, ``rows`` times."""
    base = judge.base
    state = np.empty(mujoco.mj_stateSize(base.model, _STATE))
    mujoco.mj_getState(base.model, base.data, state, _STATE)
    parts = (state, base._get_obs(), base.data.qacc_warmstart)
    return Starts(*(np.broadcast_to(part, (rows, len(part))) for part in parts))


def _showing_positions(base: Any) -> Any:
    """The same environment, as its observation would be with nothing left out; shares its data."""
    return twin(base, _exclude_current_positions_from_observation=False)


def twin(base: Any, **attributes: Any) -> Any:
    """The same environment but for these attributes; all others are shared, not copied."""
    other = object.__new__(type(base))
    other.__dict__.update(vars(base), **attributes)
    return other


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
