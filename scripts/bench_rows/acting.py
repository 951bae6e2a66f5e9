"""The rows of bench on acting: by plan and by policy alone, at the preset of HalfCheetah-v5."""

from __future__ import annotations

import warnings
from typing import Any

from stable_baselines3 import SAC

from agents.learners.fast_sac import FastSAC
from agents.planning_agent.agent import PlanningAgent
from agents.planning_agent.settings import PlanningSettings
from agents.presets import preset_for
from agents.presets.preset import learner_defaults, merged, with_values
from bench_rows.pair import Pair, Sizes
from envs.known.endings import termination_rule
from envs.known.rewards import approximate_reward_rule
from envs.tasks.make import make_env

#: Actions of one timed call, each from one observation, as in an episode.
_ACTIONS = 20
#: What a plan a step should at least reach.
_LIMIT = 100.0


def act_by_plan(sizes: Sizes, seed: int) -> Pair:
    """Plans of the preset, one a step; beside a limit of 100 steps a second."""
    agent, observation = preset_agent(seed)
    state: Any = None

    def ours() -> None:
        nonlocal state
        for _ in range(_ACTIONS):
            _, state = agent.predict(observation, state, deterministic=True)

    return Pair(
        ours,
        bool,
        lambda: None,
        peer_name=f"a limit of {_LIMIT:.0f} steps a second",
        amount=float(_ACTIONS),
        unit="steps/s",
        peer_seconds=_ACTIONS / _LIMIT,
    )


def act_by_policy(sizes: Sizes, seed: int) -> Pair:
    """The policy alone, beside SB3's SAC with networks as wide."""
    agent, observation = preset_agent(seed)
    layers = agent.algorithm_kwargs["policy_kwargs"]["net_arch"]
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": layers}, "buffer_size": 1}
    peer = SAC("MlpPolicy", agent.env, seed=seed, device="cpu", **kwargs)

    def ours() -> None:
        for _ in range(_ACTIONS):
            agent.predict(observation, deterministic=True, plan=False)

    def theirs() -> None:
        for _ in range(_ACTIONS):
            peer.predict(observation, deterministic=True)

    return Pair(
        ours,
        theirs,
        lambda: None,
        peer_name="Stable-Baselines3's SAC.predict",
        amount=float(_ACTIONS),
        unit="steps/s",
    )


def preset_agent(
    seed: int, updates: int = 1, policy: tuple[int, ...] = (256, 256), **more: Any
) -> tuple[PlanningAgent, Any]:
    """An agent of the preset's sizes that has hardly learned, and an observation; it makes so many ``updates`` a step.
    ``policy``: units of the learner's hidden layers; ``more``: other values of its settings."""
    env = make_env("HalfCheetah-v5")
    preset = preset_for(env)
    settings = with_values(PlanningSettings(), preset.settings)
    short = {"schedule": {"steps": 1}, "learning_starts": 120, "updates_per_step": updates, **more}
    agent = PlanningAgent(
        env,
        with_values(settings, short),
        algorithm_kwargs=merged(
            learner_defaults(FastSAC, preset), {"policy_kwargs": {"net_arch": list(policy)}}
        ),
        termination=termination_rule(env),
        reward=approximate_reward_rule(env),
        seed=seed,
        device="cpu",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one gradient step makes no model to be trusted
        agent.learn(121)
    return agent, env.reset(seed=seed)[0]
