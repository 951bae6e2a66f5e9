"""Observations that are not the task's, appended to it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from envs import known_rules, make_env, task_dims
from envs.known.names import observation_names
from mbrl_bilevel.base.errors import InvalidInputError


@pytest.mark.filterwarnings("ignore:.*Box observation space m:UserWarning")
@pytest.mark.filterwarnings("ignore:.*different from the unwrapped:UserWarning")
@pytest.mark.parametrize("distractor", ["Reacher-v5", "noise:3", "background:4"])
def test_gymnasium_finds_nothing_wrong(distractor: str) -> None:
    env = make_env("Hopper-v5", distractor=distractor)
    check_env(env, skip_render_check=True)
    assert task_dims(env) == tuple(range(11))
    env.close()


def test_the_task_is_as_without_and_the_other_goes_its_own_way() -> None:
    plain, env = make_env("Reacher-v5"), make_env("Reacher-v5", distractor="HalfCheetah-v5")
    assert env.observation_space.shape == (10 + 17,)
    own = [e.reset(seed=3)[0][:10] for e in (plain, env)]
    np.testing.assert_array_equal(*own)
    others = []
    for _ in range(3):
        action = np.array([0.3, -0.2])
        (a, r, *_), (b, s, *_) = plain.step(action), env.step(action)
        np.testing.assert_array_equal(a, b[:10])
        assert r == s
        others.append(b[10:])
    again = make_env("Reacher-v5", distractor="HalfCheetah-v5")
    again.reset(seed=3)
    for seen in others:  # the same seed, the same distractor, whatever the task's actions
        np.testing.assert_array_equal(again.step(np.zeros(2))[0][10:], seen)
    again.reset(seed=4)
    assert not np.array_equal(again.step(np.zeros(2))[0][10:], others[0])


def test_another_episode_of_the_other_system_begins_where_its_own_ends() -> None:
    env = make_env("HalfCheetah-v5", distractor="Reacher-v5")  # 50 steps an episode
    env.reset(seed=0)
    goals = [env.step(np.zeros(6))[0][-6:-4] for _ in range(60)]  # the goal is drawn for each
    assert np.ptp(goals[:49], axis=0).max() == 0.0
    assert not np.array_equal(goals[0], goals[-1])


def test_rules_read_the_tasks_own_dimensions() -> None:
    env = make_env("Hopper-v5", distractor="noise:2")
    plain = known_rules(make_env("Hopper-v5"))
    found = known_rules(env)
    env.reset(seed=0)
    rows = torch.from_numpy(np.stack([env.step(env.action_space.sample())[0] for _ in range(30)]))
    action = torch.zeros(29, 3)
    for name in ("termination", "approximate_reward"):
        ours, theirs = getattr(found, name), getattr(plain, name)
        own = theirs(rows[:-1, :11], action, rows[1:, :11])
        assert torch.equal(ours(rows[:-1], action, rows[1:]), own), name
    assert found.reward is None


def test_dimensions_have_names() -> None:
    names = observation_names(make_env("HalfCheetah-v5", distractor="Hopper-v5"))
    assert names[:3] == ("rootz", "rooty", "bthigh")
    assert names[8] == "velocity of rootx"
    assert names[17] == "other: rootz"
    assert len(names) == 17 + 11
    assert observation_names(make_env("Reacher-v5", distractor="noise:1"))[9:] == (
        "observation 9",
        "other: channel 0",
    )
    assert len(observation_names(make_env("Ant-v5"))) == 105


@pytest.mark.parametrize(
    ("distractor", "message"),
    [
        ("noise:none", "noise:8"),
        ("background:0", "background:8"),
        ("HalfCheeta-v5", "--distractor 'HalfCheeta-v5': .* did you mean 'HalfCheetah-v5'"),
    ],
)
def test_refuses(distractor: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make_env("Reacher-v5", distractor=distractor)
