"""The returns of planning with a model in an environment."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from agents.mpc import MPC, MPCSettings
from mbrl_bilevel.base.records import Rule
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.models.dynamics import DynamicsModel


def planned_returns(
    model: DynamicsModel, termination: Rule | None, envs: VecEnv, episodes: int, seed: int
) -> list[float]:
    """The return of each of ``episodes`` in ``envs``, at the agent's default settings.

    ``termination``: the rule that ``model`` goes by. ``seed``: of the episodes' starts and of the plans.
    """
    settings = MPCSettings(
        members=model.members, hidden=model.policy.hidden, imagination=Imagination(model.members)
    )
    agent = MPC(envs, settings, termination=termination, seed=seed, device="cpu")
    agent.model = model
    envs.seed(seed)
    returns: Any
    returns, _ = evaluate_policy(agent, envs, episodes, return_episode_rewards=True, warn=False)
    return [float(value) for value in returns]
