"""What lies between an agent and the bare task: wrappers that change what the agent meets, and those that do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym

Env = gym.Env[Any, Any]

# Wrappers that watch, show or cut an episode, but change neither what is observed nor what is done.
_BYSTANDERS = frozenset(
    {
        "agents.OwnArrays",
        "envs.Guard",
        "gymnasium.Autoreset",
        "gymnasium.HumanRendering",
        "gymnasium.OrderEnforcing",
        "gymnasium.PassiveEnvChecker",
        "gymnasium.RecordEpisodeStatistics",
        "gymnasium.RecordVideo",
        "gymnasium.RenderCollection",
        "gymnasium.TimeLimit",
        "stable_baselines3.Monitor",
    }
)


def is_bystander(class_name: str, module: str) -> bool:
    """Whether this wrapper class leaves observation, action, reward and termination as they are."""
    return f"{module.partition('.')[0]}.{class_name}" in _BYSTANDERS


def wrappers_of(env: Env) -> Iterator[gym.Wrapper[Any, Any, Any, Any]]:
    """All wrappers around the bare task, outermost first."""
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


def acting_layers(env: Env) -> list[Env]:
    """The wrappers that may change what the agent meets, outermost first; last the bare task."""
    around = list(wrappers_of(env))
    acting = [w for w in around if not is_bystander(type(w).__name__, type(w).__module__)]
    return [*acting, around[-1].env if around else env]
