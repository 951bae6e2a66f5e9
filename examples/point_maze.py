"""A task of another package, made flat: a point mass in a U-shaped maze of gymnasium-robotics.

    PYTHONPATH=examples python scripts/train.py --import-module point_maze --env-id FlatPointMaze-v0

The ball is to be pushed round the wall to a goal that changes; the reward of a step is exp(−distance to the
goal), an episode has 300 steps.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import gymnasium_robotics
from gymnasium.wrappers import FlattenObservation


def flat_point_maze(**kwargs: Any) -> gym.Env[Any, Any]:
    """The task with its goal, place and velocity in one observation vector [8]."""
    return FlattenObservation(gym.make("PointMaze_UMazeDense-v3", **kwargs))


gym.register_envs(gymnasium_robotics)
gym.register("FlatPointMaze-v0", entry_point=flat_point_maze, max_episode_steps=300)
