"""The three faces of a model, against the environments that Gymnasium and SB3 build themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.utils.env_checker import check_env as check_by_gymnasium
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.env_checker import check_env as check_by_sb3
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.imagination.bounds import seen_bounds
from mbrl_bilevel.imagination.environments import ImaginedEnv, ImaginedVecEnv, ImaginedVectorEnv
from mbrl_bilevel.imagination.settings import Branching
from mbrl_bilevel.models.dynamics import DynamicsModel

LinearModel = Callable[..., DynamicsModel]
Array = npt.NDArray[Any]

OBS = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
ACT = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
#: No draws at all: one start, the mean of one member. Episodes differ by their actions alone.
STILL = Branching(sample=False, penalty=0.5)
START = np.array([[0.0, 1.0]], dtype=np.float32)


def leaves(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return next_obs[..., 0].abs() > 1.0


@pytest.fixture
def model(linear_model: LinearModel) -> DynamicsModel:
    """x0 += u / 2, x1 falls by a tenth of itself, reward 1 − x1·.2; ends beyond |x0| > 1."""
    weight = torch.tensor([[[0.0, 0.0, 0.0], [0.0, -0.1, -0.2], [0.5, 0.0, 0.0]]])
    std = torch.tensor([[0.3, 0.4, 1e-3]])
    return linear_model(weight, torch.tensor([[0.0, 0.0, 1.0]]), std, 2, termination=leaves)


def single(model: DynamicsModel, branching: Branching = STILL, **more: Any) -> ImaginedEnv:
    return ImaginedEnv(model, START, OBS, ACT, horizon=4, branching=branching, **more)


def same(found: Any, expected: Any) -> None:
    """Nested containers with the same keys, arrays and numbers."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            same(found[key], expected[key])
    elif expected is None:
        assert found is None
    elif isinstance(expected, list | tuple) or np.asarray(expected).dtype.kind == "O":
        for a, b in zip(found, expected, strict=True):
            same(a, b)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


def actions(steps: int, envs: int) -> Array:
    drawn = np.random.default_rng(0).uniform(-1, 1, (steps, envs, 1)).astype(np.float32)
    drawn[:, 0] = 1.0  # the first ends in its third step, again and again
    return drawn


@pytest.mark.parametrize("branching", [STILL, Branching(), Branching("tsinf", penalty=1.0)])
def test_both_checkers_pass(model: DynamicsModel, branching: Branching) -> None:
    bounded = gym.spaces.Box(-2.0, 2.0, (2,), np.float32)
    env = ImaginedEnv(model, START, bounded, ACT, horizon=3, branching=branching)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*not having a spec.*")
        warnings.filterwarnings("ignore", message=".*render.*")
        check_by_gymnasium(env, skip_render_check=True)
        check_by_sb3(env)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP])
def test_vector_env_is_gymnasiums_own_of_single_ones(
    model: DynamicsModel, mode: AutoresetMode
) -> None:
    ours = ImaginedVectorEnv(
        model, START, OBS, ACT, num_envs=3, horizon=4, branching=STILL, autoreset_mode=mode
    )
    theirs = SyncVectorEnv([lambda: single(model)] * 3, autoreset_mode=mode)
    assert ours.metadata["autoreset_mode"] is theirs.metadata["autoreset_mode"]
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    same(ours.reset(seed=1), theirs.reset(seed=1))
    ends = np.zeros(2)
    for action in actions(12, 3):
        found, expected = ours.step(action), theirs.step(action)
        same(found, expected)
        assert found[0].dtype == expected[0].dtype == np.float64
        ends += [found[2].sum(), found[3].sum()]
    assert ends.min() >= 2  # both kinds of end were seen


def test_without_autoreset_the_ended_are_reset_by_mask(model: DynamicsModel) -> None:
    settings: Any = {"branching": STILL, "autoreset_mode": AutoresetMode.DISABLED}
    ours = ImaginedVectorEnv(model, START, OBS, ACT, num_envs=2, horizon=4, **settings)
    ours.reset(seed=0)
    for _ in range(3):
        obs, _, terminated, _, _ = ours.step(np.array([[1.0], [0.0]]))
    assert terminated.tolist() == [True, False]
    with pytest.raises(InvalidInputError, match="reset_mask"):
        ours.step(np.zeros((2, 1)))
    fresh, _ = ours.reset(options={"reset_mask": terminated})
    assert fresh[0].tolist() == START[0].tolist()
    assert fresh[1].tolist() == obs[1].tolist()
    assert ours.step(np.zeros((2, 1)))[3].tolist() == [False, True]  # its fourth step


def test_vec_env_is_sb3s_own_of_single_ones(model: DynamicsModel) -> None:
    ours = ImaginedVecEnv(model, START, OBS, ACT, num_envs=3, horizon=4, branching=STILL)
    theirs = DummyVecEnv([lambda: single(model)] * 3)
    same(ours.reset(), theirs.reset())
    kinds = set()
    for action in actions(12, 3):
        found, expected = ours.step(action), theirs.step(action)
        same(found, expected)
        for a, b in zip(found[:3], expected[:3], strict=True):
            assert a.dtype == b.dtype
        kinds |= {
            info["TimeLimit.truncated"] for info in found[3] if "terminal_observation" in info
        }
    assert kinds == {True, False}


def test_an_end_in_the_last_step_is_terminated_and_not_cut(model: DynamicsModel) -> None:
    env = ImaginedVecEnv(model, START, OBS, ACT, num_envs=1, horizon=3, branching=STILL)
    env.reset()
    for _ in range(3):
        _, _, done, infos = env.step(np.ones((1, 1)))
    assert done.tolist() == [True]
    assert infos[0]["TimeLimit.truncated"] is False
    assert infos[0]["terminal_observation"][0] == 1.5


def faces(model: DynamicsModel, starts: Any, branching: Branching) -> list[Callable[[int], Array]]:
    """Seed -> the observations, rewards and ends of ten steps of each face."""
    many: Any = {"num_envs": 2, "horizon": 4, "branching": branching}
    env = ImaginedEnv(model, starts, OBS, ACT, horizon=4, branching=branching)
    vector = ImaginedVectorEnv(model, starts, OBS, ACT, **many)
    vec = ImaginedVecEnv(model, starts, OBS, ACT, **many)

    def of_one(seed: int) -> Array:
        env.reset(seed=seed)
        rows = []
        for _ in range(10):
            obs, reward, ended, cut, _ = env.step(np.full(1, 0.1))
            if ended or cut:
                obs, _ = env.reset()
            rows.append([*obs, reward, ended, cut])
        return np.array(rows)

    def of_vector(seed: int) -> Array:
        vector.reset(seed=seed)
        return np.array([np.column_stack(vector.step(np.full((2, 1), 0.1))[:4]) for _ in range(10)])

    def of_vec(seed: int) -> Array:
        vec.seed(seed)
        vec.reset()
        return np.array([np.column_stack(vec.step(np.full((2, 1), 0.1))[:3]) for _ in range(10)])

    return [of_one, of_vector, of_vec]


def test_a_seed_decides_everything(model: DynamicsModel) -> None:
    starts = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    for face in faces(model, starts, Branching()):
        first, again, other = face(3), face(3), face(4)
        np.testing.assert_array_equal(first, again)
        assert np.abs(first - other).max() > 0.1


def test_a_member_leads_a_step_or_an_episode(linear_model: LinearModel) -> None:
    """Members add +1 and −1: an episode of one member goes straight, else most turn."""
    bias = torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    model = linear_model(torch.zeros(2, 3, 3), bias, torch.ones(2, 3), 2)

    def distances(propagation: Any) -> Array:
        branching = Branching(propagation, sample=False)
        env = ImaginedVecEnv(
            model, START * 0, OBS, ACT, num_envs=400, horizon=9, branching=branching
        )
        env.reset()
        for _ in range(8):
            obs, *_ = env.step(np.zeros((400, 1)))
        return np.asarray(obs)[:, 0]

    straight, walk = distances("tsinf"), distances("ts1")
    assert set(straight) == {8.0, -8.0}
    assert abs((straight > 0).mean() - 0.5) < 0.125  # five standard deviations
    assert (walk**2).mean() == pytest.approx(8.0, rel=0.35)  # a random walk's variance


def test_starts_are_real_states_and_a_state_may_be_asked_for(model: DynamicsModel) -> None:
    g = np.random.default_rng(1)
    obs = g.uniform(-0.5, 0.5, (20, 2)).astype(np.float32)
    flags, numbers = np.zeros(20, dtype=np.bool_), np.arange(20, dtype=np.int64)
    real = Transitions(
        obs, obs[:, :1], obs[:, 0], obs, flags, flags, np.zeros_like(numbers), numbers
    )
    env = ImaginedEnv(model, real, OBS, ACT, horizon=3)
    seen = {tuple(env.reset(seed=seed)[0]) for seed in range(200)}
    assert seen == {tuple(row) for row in obs.astype(np.float64)}
    found, _ = env.reset(options={"state": np.array([0.25, -0.75])})
    assert found.tolist() == [0.25, -0.75]


def test_starts_are_copied(model: DynamicsModel) -> None:
    start = START.copy()
    env = ImaginedEnv(model, start, OBS, ACT, horizon=4, branching=STILL)
    start[:] = 9.0
    assert env.reset(seed=0)[0].tolist() == START[0].tolist()


def test_what_the_model_says_beyond_bounds_is_kept_within(model: DynamicsModel) -> None:
    tight = gym.spaces.Box(-0.75, 0.75, (2,), np.float32)
    env = ImaginedEnv(model, START * 0, tight, ACT, horizon=9, branching=STILL)
    env.reset(seed=0)
    obs, *_ = env.step(np.array([50.0]))  # an action beyond its bounds counts as the bound
    assert obs.tolist() == [0.5, 0.0]
    assert env.step(np.array([1.0]))[0].tolist() == [0.75, 0.0]


def test_a_model_that_breaks_down_cuts_the_episode(model: DynamicsModel) -> None:
    broken = replace(model, reward=lambda obs, action, next_obs: next_obs[..., 0] / 0.0)
    env = ImaginedEnv(broken, START, OBS, ACT, horizon=9, branching=STILL)
    env.reset(seed=0)
    obs, reward, terminated, truncated, _ = env.step(np.array([1.0]))
    assert (obs.tolist(), reward, terminated, truncated) == ([0.0, 1.0], 0.0, False, True)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (PPO, {"n_steps": 16, "batch_size": 16, "n_epochs": 1}),
        (A2C, {"n_steps": 8}),
        (SAC, {"learning_starts": 16, "batch_size": 8}),
        (TD3, {"learning_starts": 16, "batch_size": 8}),
        ("TQC", {"learning_starts": 16, "batch_size": 8}),
    ],
)
def test_any_algorithm_of_sb3_trains_inside(
    model: DynamicsModel, kind: type[BaseAlgorithm] | str, more: dict[str, Any]
) -> None:
    if isinstance(kind, str):
        kind = getattr(pytest.importorskip("sb3_contrib"), kind)
    env = VecMonitor(ImaginedVecEnv(model, START, OBS, ACT, num_envs=2, horizon=4))
    policy = {"net_arch": [8]}
    agent: Any = kind("MlpPolicy", env, seed=0, device="cpu", policy_kwargs=policy, **more)  # type: ignore[operator]
    before = {name: value.clone() for name, value in agent.policy.state_dict().items()}
    agent.learn(64)
    assert len(agent.ep_info_buffer) >= 8  # VecMonitor saw whole episodes
    assert {info["l"] for info in agent.ep_info_buffer} <= {1, 2, 3, 4}
    assert any((before[name] != value).any() for name, value in agent.policy.state_dict().items())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"horizon": 0}, "horizon"),
        ({"starts": np.zeros((0, 2))}, "starts"),
        ({"starts": np.zeros((3, 5))}, "starts"),
        ({"starts": np.array([[np.nan, 0.0]])}, "starts holds NaN"),
        ({"observation_space": gym.spaces.Box(-1, 1, (3,))}, "observation_space"),
    ],
)
def test_parts_that_do_not_fit_are_named(
    model: DynamicsModel, change: dict[str, Any], words: str
) -> None:
    parts = {"starts": START, "observation_space": OBS, "action_space": ACT, "horizon": 3}
    with pytest.raises(InvalidInputError, match=words):
        ImaginedEnv(model, **(parts | change))


@pytest.mark.parametrize("action", [np.zeros(2), np.array([np.nan])])
def test_a_wrong_action_is_refused(model: DynamicsModel, action: Array) -> None:
    env = single(model)
    env.reset(seed=0)
    with pytest.raises(InvalidInputError, match="action"):
        env.step(action)


@pytest.fixture
def choosing(linear_model: LinearModel) -> DynamicsModel:
    """x += −1, 0 or 2 by the choice, reward 10, 20 or 30; the three choices are one-hot."""
    weight = torch.tensor([[[0.0, 0.0], [-1.0, 10.0], [0.0, 20.0], [2.0, 30.0]]])
    return linear_model(weight, torch.zeros(1, 2), torch.full((1, 2), 1e-3), 1)


@pytest.mark.parametrize("first", [0, -1])
def test_choices_are_one_hot_to_the_model(choosing: DynamicsModel, first: int) -> None:
    line, choices = gym.spaces.Box(-np.inf, np.inf, (1,)), gym.spaces.Discrete(3, start=first)
    env = ImaginedEnv(choosing, np.zeros((1, 1)), line, choices, horizon=3, branching=STILL)
    env.reset(seed=0)
    found = [env.step(choice) for choice in (first, first + 2, np.int64(first + 1))]
    np.testing.assert_allclose([obs[0] for obs, *_ in found], [-1.0, 1.0, 1.0], atol=1e-6)
    np.testing.assert_allclose([reward for _, reward, *_ in found], [10, 30, 20], rtol=1e-3)
    both = ImaginedVectorEnv(
        choosing, np.zeros((1, 1)), line, choices, num_envs=2, horizon=3, branching=STILL
    )
    both.reset(seed=0)
    assert both.action_space.contains(np.array([first, first + 2]))
    np.testing.assert_allclose(both.step(np.array([first, first + 2]))[1], [10, 30], rtol=1e-3)
    for wrong in (first - 1, first + 3, float(first)):
        with pytest.raises(InvalidInputError, match=r"action must be a choice of Discrete\(3"):
            env.step(wrong)
    for other in (gym.spaces.Discrete(2), gym.spaces.MultiDiscrete([3])):
        with pytest.raises(
            InvalidInputError, match=r"or be Discrete\(3\) of actions; got .*iscrete"
        ):
            ImaginedEnv(choosing, np.zeros((1, 1)), line, other, horizon=3)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [DQN, PPO])
def test_algorithms_of_discrete_actions_train_inside(
    choosing: DynamicsModel, kind: type[BaseAlgorithm]
) -> None:
    line = gym.spaces.Box(-np.inf, np.inf, (1,))

    def env(choices: gym.spaces.Discrete) -> ImaginedVecEnv:
        return ImaginedVecEnv(choosing, np.zeros((1, 1)), line, choices, num_envs=4, horizon=2)

    policy = {"net_arch": [16]}
    more: dict[str, Any] = {"gamma": 0.5, "learning_rate": 1e-2}
    more |= {"learning_starts": 50} if kind is DQN else {"n_steps": 32, "batch_size": 32}
    agent: Any = kind(
        "MlpPolicy", env(gym.spaces.Discrete(3)), seed=0, policy_kwargs=policy, **more
    )
    agent.learn(1500)
    assert agent.predict(np.zeros((1, 1), np.float32), deterministic=True)[0] == 2  # pays most
    with pytest.raises(InvalidInputError, match=r"from 0; .* give Discrete\(3\)"):
        env(gym.spaces.Discrete(3, start=1))


def test_observations_of_integers_are_rounded_and_not_cut(linear_model: LinearModel) -> None:
    """s' = s + a + .7 of integers from 0 to 9, from 0 by actions 1, 1, 2: 1.7, 3.4, 6.1, then beyond."""
    weight, bias = torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]), torch.tensor([[0.7, 1.0]])
    model = linear_model(weight, bias, torch.tensor([[0.3, 0.3]]), 1)
    spaces = (gym.spaces.Box(0, 9, (1,), np.uint8), gym.spaces.Box(0, 2, (1,), np.int64))
    start = np.zeros((1, 1))
    env = ImaginedEnv(model, start, *spaces, horizon=9, branching=Branching(sample=False))
    obs, _ = env.reset(seed=0)
    found = [int(obs[0])]
    for action in (1, 1, 2.0, 2, 2):
        obs, *_ = env.step(np.array([action]))
        assert env.observation_space.contains(obs)
        found.append(int(obs[0]))
    assert found == [0, 2, 3, 6, 9, 9]
    # What a policy of floats means by an action of integers is the nearest one.
    env.reset(seed=0)
    obs, *_ = env.step(np.array([0.6]))
    assert obs.tolist() == [2]


def test_what_was_seen_is_believed_over_the_declared_space(model: DynamicsModel) -> None:
    """The space says at most 1, real observations went up to 3 in x1: so do imagined ones, and it is told."""
    declared = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    n, never = 3, np.zeros(3, dtype=np.bool_)
    obs = np.array([[0.0, 2.0], [0.5, 0.5], [0.5, -0.5]], dtype=np.float32)
    after = np.array([[0.0, 3.0], [0.5, 0.5], [0.5, -0.5]], dtype=np.float32)
    numbers = np.arange(n, dtype=np.int64)
    reward, action = np.zeros(n, np.float32), np.zeros((n, 1), np.float32)
    real = Transitions(obs, action, reward, after, never, never, numbers, numbers)
    with pytest.warns(UserWarning, match=r"leave the observation space Box.* dimensions \[1\]"):
        env = ImaginedEnv(model, real, declared, ACT, horizon=4, branching=STILL)
    found, _ = env.reset(options={"state": np.array([0.0, 2.5])})
    assert found.tolist() == [0.0, 2.5]
    found, *_ = env.step(np.zeros(1))
    assert found.tolist() == pytest.approx([0.0, 2.25])
    # x0 stayed inside, and is kept there; x1 in what was seen.
    env.reset(options={"state": np.array([0.9, 2.0])})
    found, *_ = env.step(np.ones(1))
    assert found.tolist() == pytest.approx([1.0, 1.8])
    with pytest.raises(InvalidInputError, match="must lie in"):
        env.reset(options={"state": np.array([0.0, 3.5])})


def test_bounds_that_hold_are_kept_silently() -> None:
    declared = gym.spaces.Box(np.array([-0.1, -np.inf]), np.array([0.1, np.inf]), dtype=np.float64)
    seen = np.array([[0.1, 5.0], [-0.1, -7.0]], dtype=np.float32)  # of the bounds, but for rounding
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        low, high = seen_bounds(declared, seen)
    assert (low.tolist(), high.tolist()) == (declared.low.tolist(), declared.high.tolist())
