"""What a policy earns: episodes side by side, from starts that training never sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from mbrl_bilevel.base.errors import InvalidInputError


class PolicyAlone:
    """An agent that also plans, acting by its policy."""

    def __init__(self, agent: Any) -> None:
        self._agent = agent

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        """As the agent's, without a plan."""
        return self._agent.predict(*args, **kwargs, plan=False)


def episode_returns(
    policy: Any, make: Callable[[], gym.Env[Any, Any]], episodes: int, seed: int, env_id: str
) -> dict[str, Any]:
    """``mean``, ``std`` and all ``returns`` of a policy in as many environments as ``make`` gives.

    Raises InvalidInputError for a return that is not finite.
    """
    envs = DummyVecEnv([lambda: Monitor(make()) for _ in range(episodes)])
    envs.seed(seed + 1_000_000)
    found: Any
    found, _ = evaluate_policy(policy, envs, episodes, return_episode_rewards=True)
    envs.close()
    if not np.isfinite(found).all():
        raise InvalidInputError(
            f"--env-id {env_id!r}: an evaluation returned {found}; mend the environment's reward"
        )
    return {"mean": float(np.mean(found)), "std": float(np.std(found)), "returns": list(found)}
