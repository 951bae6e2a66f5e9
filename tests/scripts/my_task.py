"""An environment of a user's own, for the tests of --import-module: a point on a line."""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv


class Line(gym.Env[Any, Any]):
    """x' = x + 0.1·a, reward −x², ends beyond |x| > 2. With ``sick`` it returns NaN at step 5.

    With ``after`` it does ``fault`` at that step of its life: "raise" or "hang".
    """

    def __init__(
        self, sick: bool = False, actions: str = "box", fault: str = "", after: int = 0
    ) -> None:
        self.observation_space = gym.spaces.Box(-10.0, 10.0, (2,), np.float64)
        self.action_space = {
            "box": gym.spaces.Box(-1.0, 1.0, (1,), np.float32),
            "choice": gym.spaces.Discrete(3, start=-1),
            "bits": gym.spaces.MultiBinary(2),
        }[actions]
        self.sick, self.x, self.t = sick, 0.0, 0
        self.fault, self.left = fault, after

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.uniform(-1.0, 1.0)), 0
        return self._obs(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.left -= 1
        if self.left == 0 and self.fault == "raise":
            raise ValueError("wheel lost")
        while self.left == 0 and self.fault == "hang":
            time.sleep(0.01)
        self.x += 0.1 * float(np.reshape(action, -1)[0])
        if self.sick and self.t == 5:
            return np.array([np.nan, 0.0]), 0.0, False, False, {}
        return self._obs(), -(self.x**2), abs(self.x) > 2.0, False, {}

    def _obs(self) -> Any:
        return np.array([self.x, np.sin(self.x)])


class SlowReacher(ReacherEnv):
    """Reacher-v5 whose steps take four milliseconds; its ending, that there is none, is still known."""

    def _get_rew(self, action: Any) -> Any:
        time.sleep(0.004)
        return super()._get_rew(action)


gym.register("SlowReacher-v0", entry_point=SlowReacher, max_episode_steps=50)
gym.register("Line-v0", entry_point=Line, max_episode_steps=20)
gym.register("EndlessLine-v0", entry_point=Line)
gym.register("SickLine-v0", entry_point=Line, max_episode_steps=20, kwargs={"sick": True})
gym.register("ChoiceLine-v0", entry_point=Line, max_episode_steps=20, kwargs={"actions": "choice"})
gym.register("BitsLine-v0", entry_point=Line, max_episode_steps=20, kwargs={"actions": "bits"})
for name, fault in (("RaisingLine-v0", "raise"), ("HangingLine-v0", "hang")):
    gym.register(
        name, entry_point=Line, max_episode_steps=20, kwargs={"fault": fault, "after": 100}
    )


def off(obs: Any, action: Any, next_obs: Any) -> Any:
    """The rule of its termination."""
    return next_obs[..., 0].abs() > 2.0
