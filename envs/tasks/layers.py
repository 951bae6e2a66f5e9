"""What lies between an agent and the bare task: wrappers that change what the agent meets, and those that do not."""

from __future__ import annotations

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


def acting_layers(env: Env) -> list[Env]:
    """The wrappers that may change what the agent meets, outermost first; last the bare task."""
    layers: list[Env] = []
    while isinstance(env, gym.Wrapper):
        if not is_bystander(type(env).__name__, type(env).__module__):
            layers.append(env)
        env = env.env
    return [*layers, env]
