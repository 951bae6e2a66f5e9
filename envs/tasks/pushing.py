"""A noisy way to the object of a room's task and against it, mixed with gaits: data in which the object moves.

a = (1 − m)·steering + m·gait, with m drawn for each episode and a new point to steer to every ten steps.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from envs.tasks.gaits import Gaits
from envs.tasks.layers import Env
from envs.tasks.room import Room

#: Steps for which the body steers to one point; how often that lies behind the object, and how far (m).
_EVERY, _OFTEN, _BEHIND = 10, 0.8, 0.4


class Pushing:
    """``pushing(obs, t) -> action`` in ``env``, a Room under any wrappers that append to its observation only."""

    def __init__(self, env: Env, generator: np.random.Generator) -> None:
        room, space = env.unwrapped, env.action_space
        assert isinstance(room, Room)
        assert isinstance(space, gym.spaces.Box)
        self._object, self._generator = room.object, generator
        self._gaits = Gaits(space, generator)
        way = np.subtract(room.object.touch, room.object.start)
        self._ahead = way / np.linalg.norm(way)

    def __call__(self, obs: npt.NDArray[Any], t: int) -> npt.NDArray[Any]:
        if t == 0:
            self._mixed = self._generator.uniform(0.1, 0.7)
        if t % _EVERY == 0:
            pushes = self._generator.random() < _OFTEN
            ahead = _BEHIND if pushes else self._generator.uniform(-0.8, -0.3)
            self._offset = ahead * self._ahead + self._generator.normal(0.0, 0.2, 2)
        dx, dy = np.array(self._object.place(obs)) + self._offset - obs[:2]
        cos, sin = obs[2], obs[3]
        # In the body's own axes; it turns to where it goes, by the sine of what is left.
        ahead, left = 3.0 * (cos * dx + sin * dy), 3.0 * (cos * dy - sin * dx)
        steering = np.clip([ahead, left, np.sin(np.arctan2(left, ahead))], -1.0, 1.0)
        gait = self._gaits(obs, t)
        action = (1.0 - self._mixed) * steering + self._mixed * gait
        found: npt.NDArray[Any] = action.astype(gait.dtype)
        return found
