"""What is recorded is what happened then, whatever is written later into the arrays that were handed over."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from agents import MPC
from agents.common.experience import collect
from mbrl_bilevel.base.records import Transitions

Array = npt.NDArray[Any]


class OneArray(gym.Env[Array, Array]):
    """x' = x + a / 20 for four steps, with a mark in the last observation; it writes every observation into one
    array, and into the action that it is given."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.seen, self.t = np.zeros(2, np.float32), 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.seen[:], self.t = (5.0, 0.0), 0
        return self.seen, {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        action *= 0.05
        self.t += 1
        self.seen += np.array([action[0], 100.0 if self.t == 4 else 0.0])
        return self.seen, 0.0, self.t == 4, False, {}


def require_true(rows: Transitions, ends: float = 100.0) -> None:
    moved = rows.next_obs - rows.obs
    np.testing.assert_allclose(moved[:, 0], 0.05 * rows.action[:, 0], atol=1e-5)
    np.testing.assert_array_equal(rows.next_obs[:, 1], np.where(rows.terminated, ends, 0.0))
    assert rows.action.std() > 0.1
    assert rows.terminated.sum() >= 5


def unready(env: Any) -> MPC:
    return MPC(env, members=1, learning_starts=100)


@pytest.mark.filterwarnings("ignore:learn")
@pytest.mark.parametrize("wrapped", [lambda env: env, gym.wrappers.RecordEpisodeStatistics])
def test_an_environment_of_one_array_is_recorded_as_it_was(wrapped: Any) -> None:
    require_true(unready(wrapped(OneArray())).learn(24).experience.transitions())


def test_collect_keeps_what_was_done_and_seen() -> None:
    random = np.random.default_rng(0)

    def behave(obs: Array, t: int) -> Array:
        obs += 7.0  # its own affair
        return random.uniform(-1.0, 1.0, 1).astype(np.float32)

    require_true(collect(OneArray(), behave, 24, seed=0))


@pytest.mark.filterwarnings("ignore:learn")
def test_ends_that_a_vec_env_has_lost_are_told_once() -> None:
    with pytest.warns(UserWarning, match=r"first 3 episodes ended .* let it return a copy"):
        agent = unready(DummyVecEnv([OneArray, OneArray])).learn(24)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="each of the first")
        agent.learn(24)
        unready(DummyVecEnv([lambda: gym.make("CartPole-v1")])).learn(60)


@pytest.mark.filterwarnings("ignore:learn")
def test_ends_are_raw_around_a_vec_normalize() -> None:
    """The mark is ten times what the VecNormalize lets through."""

    class Copying(OneArray):
        def step(self, action: Array) -> Any:
            obs, *rest = super().step(action)
            return obs.copy(), *rest

    env = VecNormalize(DummyVecEnv([Copying, Copying]), clip_obs=1.0)
    agent = unready(env).learn(48)
    require_true(agent.experience.transitions())
    with pytest.warns(UserWarning, match=r"clipped an observation at 1: .* larger clip_obs"):
        agent.predict(env.normalize_obs(np.array([5.0, 100.0])))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent.predict(np.array([0.1, -0.9]))
