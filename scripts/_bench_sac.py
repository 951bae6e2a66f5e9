"""The row of bench on what MBPO spends its time with: updates of SAC."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from _bench_pair import ACTION, OBS, Pair, Sizes
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure

from agents.mbpo import MBPO

#: Updates of one timed call.
_UPDATES = 20


class Shapes(gym.Env[Any, Any]):
    """The spaces of HalfCheetah-v5, and nothing in them."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (ACTION,), np.float32)


def sac_updates(sizes: Sizes, seed: int) -> Pair:
    """The held agent's updates on real and imagined rows, beside SB3's SAC as it comes."""
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [256, 256]}}
    ours = MBPO(Shapes(), algorithm_kwargs=kwargs, seed=seed)
    peer = SAC("MlpPolicy", Shapes(), seed=seed, device="cpu", buffer_size=sizes.rows, **kwargs)
    peer.set_logger(configure(None, []))
    random = np.random.default_rng(seed)
    for _ in range(sizes.rows):
        obs, next_obs = random.standard_normal((2, 1, OBS))
        action, reward = random.uniform(-1.0, 1.0, (1, ACTION)), random.standard_normal(1)
        step: Any = (obs, next_obs, action, reward, np.zeros(1, dtype=np.bool_), [{}])
        ours.experience.add(*step)
        assert peer.replay_buffer is not None
        peer.replay_buffer.add(*step)
    ours.experience.imagined.add(ours.experience.real.stored())

    def check() -> None:
        peer.policy.load_state_dict(ours.algorithm.policy.state_dict())
        batch = ours.experience.sample(sizes.batch_size)
        for agent in (ours.algorithm, peer):
            assert agent.replay_buffer is not None
            sample = agent.replay_buffer.sample
            agent.replay_buffer.sample = lambda *given, **more: batch  # type: ignore[method-assign]
            torch.manual_seed(seed)
            agent.train(1, sizes.batch_size)
            agent.replay_buffer.sample = sample  # type: ignore[method-assign]
        expected = peer.policy.state_dict()
        for name, value in ours.algorithm.policy.state_dict().items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)

    return Pair(
        lambda: ours.algorithm.train(_UPDATES, sizes.batch_size),
        lambda: peer.train(_UPDATES, sizes.batch_size),
        check,
        peer_name="Stable-Baselines3's SAC with its own networks and replay buffer",
        amount=float(_UPDATES),
        unit="updates/s",
    )
