"""What an agent needs of an environment, whether it comes single or as a vector environment."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from mbrl_bilevel.errors import InvalidInputError


def vector_env(env: gym.Env[Any, Any] | VecEnv) -> VecEnv:
    """The environment as SB3 steps it, watched by a Monitor."""
    if isinstance(env, VecEnv):
        return env
    watched = env if is_wrapped(env, Monitor) else Monitor(env)
    return DummyVecEnv([lambda: watched])


def require_box(space: gym.Space[Any], what: str) -> gym.spaces.Box:
    """``space`` itself. Raises InvalidInputError unless it is a one-dimensional Box, and a bounded one
    if ``what`` is "action"."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise InvalidInputError(
            f"the {what} space must be a one-dimensional Box; got {space}: "
            "wrap the environment, for example with gymnasium.wrappers.FlattenObservation"
        )
    if what == "action" and not space.is_bounded():
        raise InvalidInputError(
            f"the action space must have finite bounds; got {space}: "
            "wrap the environment with gymnasium.wrappers.TransformAction, giving it a bounded action_space"
        )
    return space
