"""Arrays that an environment hands over, kept as they were then: it may write into them later.

``OwnArrays`` stands around an environment, ``RawEnds`` inside a VecNormalize.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnvWrapper

#: Where ``RawEnds`` puts, in an info, the observation that an episode ended with.
RAW_END = "raw_terminal_observation"


class OwnArrays(gym.Wrapper[Any, Any, Any, Any]):
    """Hands the environment a copy of each action, and hands on copies of its observations.

    An environment may scale the action in place, or return one array again and again: then SB3's DummyVecEnv
    would keep, as what an episode ended with, what ``reset`` has written there since.
    """

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As of the environment."""
        obs, info = self.env.reset(seed=seed, options=options)
        return np.array(obs), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As of the environment."""
        obs, reward, terminated, truncated, info = self.env.step(copy(action))
        return np.array(obs), reward, terminated, truncated, info


class RawEnds(VecEnvWrapper):
    """Keeps in the infos, as ``RAW_END``, what episodes ended with, before a VecNormalize around it clips it.

    What ends an episode is often an observation like no other, so that it is just this one that is clipped.
    """

    def reset(self) -> Any:
        """As of the environment."""
        return self.venv.reset()

    def step_wait(self) -> Any:
        """As of the environment."""
        obs, rewards, dones, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info[RAW_END] = info["terminal_observation"]
        return obs, rewards, dones, infos
