"""Every known reward against the real task on random rollouts, and None where nothing shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv

from envs.known.endings import load_rule
from envs.known.rewards import approximate_reward_rule, reward_rule
from envs.tasks.make import make_env
from envs.tasks.perturbed import Pusher
from mbrl_bilevel.base.errors import InvalidInputError

SHOWN: dict[str, Any] = {"exclude_current_positions_from_observation": False}
KNOWN: list[tuple[str, dict[str, Any]]] = [
    ("InvertedPendulum-v5", {}),
    ("Reacher-v5", {}),
    ("Reacher-v5", {"reward_dist_weight": 2.0, "reward_control_weight": 0.3}),
    ("Pusher-v5", {}),
    ("Pusher-v5", {"reward_near_weight": 1.5, "reward_control_weight": 0.7}),
    ("HumanoidStandup-v5", {}),
    ("HumanoidStandup-v5", SHOWN | {"ctrl_cost_weight": 3.0, "impact_cost_weight": 1e-4}),
    ("HalfCheetah-v5", SHOWN),
    ("Swimmer-v5", SHOWN | {"forward_reward_weight": 3.0}),
    ("Hopper-v5", SHOWN | {"healthy_reward": 0.4}),
    ("Walker2d-v5", SHOWN | {"ctrl_cost_weight": 0.2}),
    ("mbrl/InvertedPendulum-v0", {"gravity": 2.0, "strength": -1.0}),
    ("mbrl/Pusher-v0", {"goal_x": 0.1, "mass": 2.0}),
    ("mbrl/HalfCheetah-v0", SHOWN | {"length": {"bshin": 1.3}}),
]


#: The error of the approximate reward on random actions, as a share of the reward's spread.
APPROXIMATE: list[tuple[str, dict[str, Any], float]] = [
    ("HalfCheetah-v5", {"ctrl_cost_weight": 0.3}, 0.3),
    ("Swimmer-v5", {"forward_reward_weight": 3.0}, 0.15),
    ("Hopper-v5", {"healthy_reward": 0.4}, 0.05),
    ("Walker2d-v5", {"ctrl_cost_weight": 0.2}, 0.1),
    ("InvertedDoublePendulum-v5", {"healthy_reward": 5.0}, 0.02),
    ("mbrl/InvertedDoublePendulum-v0", {"strength": 2.0, "gravity": 0.5}, 0.02),
    ("mbrl/HalfCheetah-v0", {"strength": {"bthigh": 0.0}, "wind": 20.0}, 0.3),
]


@pytest.mark.parametrize(("name", "kwargs"), KNOWN)
def test_rule_is_the_real_reward(name: str, kwargs: dict[str, Any]) -> None:
    env = make_env(name, **kwargs)
    rule = reward_rule(env)
    assert rule is not None
    # Beyond the end as well: more of the unhealthy states.
    columns, expected = _random_steps(env, episodes=4, steps=40, beyond_the_end=True)
    # In units of how much the reward varies; Pusher and Reacher read poses as old as the observation.
    assert expected.std() > 1e-3
    found = rule(*columns)
    assert (found - expected).abs().max() < 1e-6 * expected.abs().max()


@pytest.mark.parametrize(("name", "kwargs", "share"), APPROXIMATE)
def test_the_approximate_reward_is_near(name: str, kwargs: dict[str, Any], share: float) -> None:
    env = make_env(name, **kwargs)
    rule = approximate_reward_rule(env)
    assert reward_rule(env) is None
    assert rule is not None
    columns, expected = _random_steps(env, episodes=10, steps=60)
    error = rule(*columns) - expected
    assert error.square().mean().sqrt() < share * expected.std()
    # It leans to neither side.
    assert error.mean().abs() < 0.05 * expected.std()


def test_the_exact_reward_goes_before_the_approximate_one() -> None:
    env = make_env("HalfCheetah-v5", **SHOWN)
    rule = approximate_reward_rule(env)
    assert rule is not None
    columns, expected = _random_steps(env, episodes=1, steps=20)
    torch.testing.assert_close(rule(*columns), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["Ant-v5", "Humanoid-v5", "Pendulum-v1"])
def test_not_even_approximately(name: str) -> None:
    assert approximate_reward_rule(make_env(name)) is None


def test_no_approximation_of_what_may_have_changed() -> None:
    env = make_env("HalfCheetah-v5")
    assert approximate_reward_rule(gym.wrappers.ClipReward(env, -1.0, 0.0)) is None


def _random_steps(
    env: Any, episodes: int, steps: int, beyond_the_end: bool = False
) -> tuple[list[torch.Tensor], torch.Tensor]:
    env.action_space.seed(0)
    rows, rewards = [], []
    for seed in range(episodes):
        obs, _ = env.reset(seed=seed)
        for _ in range(steps):
            action = env.action_space.sample()
            next_obs, reward, terminated, _, _ = env.unwrapped.step(action)
            rows.append((obs, action.astype(np.float64), next_obs))
            rewards.append(float(reward))
            obs = next_obs
            if terminated and not beyond_the_end:
                break
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
    return columns, torch.tensor(rewards, dtype=torch.float64)


@pytest.mark.parametrize(
    "name",
    [
        *("HalfCheetah-v5", "Swimmer-v5", "Hopper-v5", "Walker2d-v5"),
        *("Ant-v5", "Humanoid-v5", "InvertedDoublePendulum-v5", "Pendulum-v1"),
    ],
)
def test_none_where_the_observation_does_not_show_it(name: str) -> None:
    assert reward_rule(make_env(name)) is None


def test_none_for_what_may_have_changed_it() -> None:
    env = make_env("Reacher-v5")
    assert reward_rule(gym.wrappers.ClipReward(env, -1.0, 0.0)) is None
    assert reward_rule(gym.wrappers.RescaleAction(env, np.float32(-2), np.float32(2))) is None
    assert reward_rule(gym.wrappers.RecordEpisodeStatistics(env)) is not None

    class Other(ReacherEnv):
        pass

    assert reward_rule(Other()) is None
    for varied in ({"direction": -1}, {"target_speed": 2.0, "mass": 1.5}):
        assert reward_rule(make_env("mbrl/Hopper-v0", **SHOWN, **varied)) is None

    class OtherVaried(Pusher):
        pass

    assert reward_rule(OtherVaried()) is None
    assert (
        reward_rule(make_env("HumanoidStandup-v5", include_cfrc_ext_in_observation=False)) is None
    )
    assert reward_rule(make_env("Hopper-v5", terminate_when_unhealthy=False, **SHOWN)) is None


def test_a_reward_of_ones_own_may_be_any_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "def pays(obs, action, next_obs):\n    return -7.0 * next_obs[..., 0]\n"
    (tmp_path / "own_reward_rule.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    row = torch.full((2, 3), 2.0)
    rule = load_rule("own_reward_rule:pays", probability=False)
    assert rule(row, row, row).tolist() == [-14.0, -14.0]
    with pytest.raises(InvalidInputError, match="probability from 0 to 1"):
        load_rule("own_reward_rule:pays")(row, row, row)
