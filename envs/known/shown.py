"""A task drawn where an observation puts it: what an imagined future looks like.

Of TrueModel's tasks, whose observation tells the state but for where the robot is; that follows from its velocity.
"""

from __future__ import annotations

import numpy as np

from envs.known.rollouts import Array
from envs.known.true_model import hidden_positions, told_state
from envs.tasks.drawing import Picture, picture_of
from envs.tasks.layers import Env


class Shown:
    """Draws in an environment of its own, which is used up by that."""

    def __init__(self, env: Env) -> None:
        """``env``: made by ``make_drawable``. ``knows`` says whether its observations tell the state."""
        self._env, self._told = env, told_state(env)

    @property
    def knows(self) -> bool:
        """Whether ``pictures`` may be asked for."""
        return self._told is not None

    def pictures(self, path: Array, place: Array) -> list[Picture]:
        """The states along ``path`` [H, O], of which the first comes a step after ``place`` (qpos). A state that is
        not finite looks like the one before."""
        assert self._told is not None
        base, state_of = self._told
        hidden = max(hidden_positions(base), 0)
        here, found = np.array(place[:hidden]), []
        for qpos, qvel in zip(*state_of(path.astype(np.float64)), strict=True):
            if np.isfinite(qpos).all() and np.isfinite(qvel).all():
                here = here + base.dt * qvel[:hidden]
                base.set_state(np.concatenate([here, qpos[hidden:]]), qvel)
            found.append(picture_of(self._env))
        return found
