"""The MPC agent where actions are discrete: it learns, explores, records one-hot, and comes back."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy

from agents.mpc import MPC, MPCSettings
from agents.planners import ICEM
from mbrl_bilevel.base.errors import CheckpointError
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.training.settings import Schedule

TINY = MPCSettings(
    method="mse",
    planner=ICEM(horizon=5, population=30, iterations=2, elite_fraction=0.2),
    imagination=Imagination(particles=2),
    members=2,
    hidden=(32,),
    schedule=Schedule(steps=400, learning_rate=1e-2, batch_size=64),
    learning_starts=120,
    refit_every=60,
    value=None,
)


class Track(gym.Env[Any, Any]):
    """x' = x + 0.2·move, reward −x'², from ±1; the choices ``start``, ``start`` + 1, ``start`` + 2 move by
    0, +1, −1, so that their order says nothing. Five steps to the middle, then rest, is optimal."""

    def __init__(self, start: int = 3) -> None:
        self.observation_space = gym.spaces.Box(-10.0, 10.0, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(3, start=start)
        self.x, self.t = 0.0, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.choice([-1.0, 1.0])), 0
        return np.array([self.x], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.x += 0.2 * (0.0, 1.0, -1.0)[int(action - self.action_space.start)]
        self.t += 1
        return np.array([self.x], np.float32), -(self.x**2), False, self.t >= 10, {}


OPTIMUM = -(0.8**2 + 0.6**2 + 0.4**2 + 0.2**2)


@pytest.fixture(scope="module")
def trained() -> MPC:
    return MPC(Track(), replace(TINY, exploration=0.3), seed=1).learn(240)


def test_learns_the_known_optimum(trained: MPC) -> None:
    env = Track()
    returns = []
    for seed in range(4):
        obs, _ = env.reset(seed=seed)
        total, state, over = 0.0, None, False
        while not over:
            action, state = trained.predict(obs, state, deterministic=True)
            obs, reward, _, over, _ = env.step(action)
            total += reward
        returns.append(total)
    assert max(returns) <= OPTIMUM + 1e-5  # the optimum is the optimum
    assert np.mean(returns) > OPTIMUM - 0.4  # resting costs 8.8 more


def test_experience_is_one_hot_and_explored(trained: MPC) -> None:
    rows = trained.experience.transitions()
    assert rows.action.shape == (240, 3)
    assert rows.action.sum(1).tolist() == [1.0] * 240
    moved = np.array([0.0, 0.2, -0.2])[rows.action.argmax(1)]
    np.testing.assert_allclose(rows.next_obs - rows.obs, moved[:, None], atol=1e-6)
    # Of 400 rows planned alike, a choice is another one with probability .3 · 2/3.
    obs = np.full((400, 1), 1.0, np.float32)
    _, state = trained.predict(obs)
    plain, _ = trained.predict(obs, state, None, True)
    bold, _ = trained.predict(obs, state, None, False)
    assert set(plain.tolist()) <= {3, 4, 5}
    assert np.mean(plain != bold) == pytest.approx(0.2, abs=0.07)


def test_comes_back_for_the_same_choices_alone(trained: MPC, tmp_path: Path) -> None:
    path = tmp_path / "agent.safetensors"
    trained.save(path)
    loaded = MPC.load(path, Track())
    obs = np.linspace(-1, 1, 20, dtype=np.float32)[:, None]
    expected, _ = trained.predict(obs, deterministic=True)
    assert loaded.predict(obs, deterministic=True)[0].tolist() == expected.tolist()
    assert torch.equal(
        torch.from_numpy(loaded.experience.transitions().action),
        torch.from_numpy(trained.experience.transitions().action),
    )
    with pytest.raises(CheckpointError, match="first_action is 3, this env has 0"):
        MPC.load(path, Track(start=0))
    box = Track()
    box.action_space = gym.spaces.Box(0.0, 1.0, (3,), np.float32)  # type: ignore[assignment]
    with pytest.raises(CheckpointError, match="first_action is 3, this env has None"):
        MPC.load(path, box)


def test_runs_on_cartpole_with_what_sb3_brings() -> None:
    settings = replace(TINY, hidden=(16,), schedule=Schedule(steps=60), learning_starts=60)
    agent = MPC(gym.make("CartPole-v1"), settings).learn(90)
    returns, lengths = evaluate_policy(
        agent, agent.get_env(), n_eval_episodes=1, return_episode_rewards=True, warn=False
    )
    assert returns == lengths
    assert agent.experience.transitions().terminated.any()
