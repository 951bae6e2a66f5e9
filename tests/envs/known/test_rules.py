"""What an environment of make_env says is known of it: the rules of its task, inside all of its wrappers."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import pytest
import torch
from gymnasium.wrappers import RecordEpisodeStatistics, TransformObservation, TransformReward

from envs import known_rules, make_env
from mbrl_bilevel import KnownRules


def asked(env: gym.Env[Any, Any]) -> KnownRules:
    """As an agent asks: the method is found through wrappers and called with the outermost one."""
    found: KnownRules = env.get_wrapper_attr("known_rules")(env)
    return found


def test_the_rules_are_those_of_the_task() -> None:
    env = RecordEpisodeStatistics(make_env("Hopper-v5", healthy_z_range=(0.9, 2.0)))
    found = asked(env)
    obs = torch.zeros(3, 11)
    obs[:, 0], obs[:, 5] = torch.tensor([0.8, 1.0, 1.2]), 1.5
    assert found.termination is not None
    assert found.termination(obs, torch.zeros(3, 3), obs).tolist() == [True, False, False]
    assert found.reward is None
    assert found.approximate_reward is not None
    # 1.5 m/s at both ends of the step, and 1 for those who stand.
    pays = found.approximate_reward(obs, torch.zeros(3, 3), obs)
    assert pays.tolist() == pytest.approx([1.5, 2.5, 2.5])


@pytest.mark.parametrize(
    ("wrap", "ending", "reward"),
    [
        (lambda env: env, True, True),
        (lambda env: TransformReward(env, float), True, False),
        (lambda env: TransformObservation(env, lambda obs: 2 * obs, None), False, False),
    ],
)
def test_a_wrapper_outside_of_make_env_is_not_missed(wrap: Any, ending: bool, reward: bool) -> None:
    env = wrap(make_env("Reacher-v5"))
    found = asked(env)
    assert (found.termination is not None) is ending
    assert (found.reward is not None) is reward
    assert (found.approximate_reward is not None) is reward
    assert known_rules(env.unwrapped).reward is not None


def test_of_another_task_nothing_is_known() -> None:
    assert asked(make_env("Pendulum-v1")) == KnownRules()
