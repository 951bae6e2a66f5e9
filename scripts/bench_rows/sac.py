"""The rows of bench on what MBPO spends its time with: updates of SAC.

Ours and Stable-Baselines3's learn from replay buffers of its own kind, with the same rows in them.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure
from torch import Tensor

from agents.learners.critics import EnsembleCritic
from agents.learners.fast_sac import FastSAC
from bench_rows.pair import ACTION, OBS, Pair, Sizes

#: Updates of one timed call.
_UPDATES = 20


class Shapes(gym.Env[Any, Any]):
    """The spaces of HalfCheetah-v5, and nothing in them."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (ACTION,), np.float32)


def sac_updates(sizes: Sizes, seed: int) -> Pair:
    """The same update as SB3's SAC, in less time."""
    ours, peer = _agent(FastSAC, sizes, seed), _agent(SAC, sizes, seed)

    def check() -> None:
        for agent in (ours, peer):
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002 (SB3's replay buffer draws from there)
            agent.train(2, sizes.batch_size)
        # They started from the same draws: the same weights.
        torch.testing.assert_close(_parameters(ours), _parameters(peer), rtol=1e-3, atol=1e-5)

    return _pair(ours, peer, sizes, check)


def sac_updates_fast(sizes: Sizes, seed: int) -> Pair:
    """Critics with LayerNorm, and the actor at every fourth update."""
    ours = _agent(FastSAC, sizes, seed, actor_every=4, policy_kwargs={"layer_norm": True})
    # Two learners: they are not to agree.
    return _pair(ours, _agent(SAC, sizes, seed), sizes, check=lambda: None)


def _pair(ours: SAC, peer: SAC, sizes: Sizes, check: Any) -> Pair:
    return Pair(
        lambda: ours.train(_UPDATES, sizes.batch_size),
        lambda: peer.train(_UPDATES, sizes.batch_size),
        check,
        peer_name="Stable-Baselines3's SAC",
        amount=float(_UPDATES),
        unit="updates/s",
    )


def _agent(kind: type[SAC], sizes: Sizes, seed: int, **kwargs: Any) -> SAC:
    """One with ``sizes.rows`` random rows in its replay buffer, the same ones for every kind."""
    kwargs["policy_kwargs"] = {"net_arch": [256, 256], **kwargs.get("policy_kwargs", {})}
    agent = kind("MlpPolicy", Shapes(), seed=seed, device="cpu", buffer_size=sizes.rows, **kwargs)
    agent.set_logger(configure(None, []))
    assert agent.replay_buffer is not None
    random = np.random.default_rng(seed)
    for _ in range(sizes.rows):
        obs, next_obs = random.standard_normal((2, 1, OBS))
        action, reward = random.uniform(-1.0, 1.0, (1, ACTION)), random.standard_normal(1)
        agent.replay_buffer.add(obs, next_obs, action, reward, np.zeros(1, np.bool_), [{}])
    return agent


def _parameters(agent: SAC) -> list[Tensor]:
    """Of the actor, the critics and their targets, in the order and the shapes of SB3's."""
    found: list[Tensor] = list(agent.actor.parameters())
    for critic in (agent.critic, agent.critic_target):
        if not isinstance(critic, EnsembleCritic):
            found += critic.parameters()
            continue
        for index in range(critic.n_critics):
            for weight, bias in zip(critic.weights, critic.biases, strict=True):
                found += [weight[index].T, bias[index, 0]]
    return found
