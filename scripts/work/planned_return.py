"""The return of planning with a model in an environment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.evaluation import evaluate_policy

from agents.mpc import MPC, MPCSettings
from envs.known.endings import termination_rule
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.models.dynamics import DynamicsModel


def planned_return(
    model: DynamicsModel, env: gym.Env[Any, Any], episodes: int, steps: int, seed: int
) -> float:
    """The mean return of ``episodes`` of at most ``steps``, at the agent's default settings."""
    rule = termination_rule(env)
    settings = MPCSettings(
        members=model.members, hidden=model.policy.hidden, imagination=Imagination(model.members)
    )
    cut = gym.wrappers.TimeLimit(env, steps)
    agent = MPC(cut, settings, termination=rule, seed=seed, device="cpu")
    agent.model = replace(model, termination=rule)
    agent.env.seed(seed)
    returns: Any
    returns, _ = evaluate_policy(
        agent, agent.env, n_eval_episodes=episodes, return_episode_rewards=True, warn=False
    )
    return float(np.mean(returns))
