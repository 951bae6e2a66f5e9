"""The oracle promises what the real environment then gives, to the last bit, and leaves it alone."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.envs.mujoco.reacher_v5 import ReacherEnv
from torch import Tensor

from envs.known import rollouts
from envs.known.oracle import Oracle
from envs.known.rollouts import judge_of
from envs.tasks.make import make_env
from mbrl_bilevel.base.errors import InvalidInputError

TASKS = [
    "Ant-v5",
    "HalfCheetah-v5",
    "Hopper-v5",
    "Humanoid-v5",
    "HumanoidStandup-v5",
    "InvertedDoublePendulum-v5",
    "InvertedPendulum-v5",
    "Pusher-v5",
    "Reacher-v5",
    "Swimmer-v5",
    "Walker2d-v5",
]


# Whose reward follows from MuJoCo's states.
ROLLED_OUT = {"HalfCheetah", "Hopper", "Pusher", "Swimmer", "Walker2d"}


def warmed_up(env: gym.Env[Any, Any], steps: int = 4, seed: int = 0) -> gym.Env[Any, Any]:
    """``env`` in the midst of an episode."""
    env.reset(seed=seed)
    env.action_space.seed(seed)
    for _ in range(steps):  # gently: InvertedPendulum falls within three steps of full force
        env.step(0.1 * env.action_space.sample())
    return env


def candidates(env: gym.Env[Any, Any], n: int, horizon: int, seed: int = 0) -> Tensor:
    """Random sequences [1, N, H, A] within the action bounds."""
    box = env.action_space
    assert isinstance(box, gym.spaces.Box)
    draws = np.random.default_rng(seed).uniform(size=(1, n, horizon, *box.shape))
    return torch.from_numpy((box.low + draws * (box.high - box.low)).astype(np.float32))


def really(env: gym.Env[Any, Any], actions: npt.NDArray[Any]) -> tuple[float, int]:
    """What ``env`` gives for ``actions`` [H, A] until it terminates, and after how many steps."""
    total = 0.0
    for step, action in enumerate(actions, start=1):
        _, reward, terminated, _, _ = env.step(action)
        total += float(reward)
        if terminated:
            return total, step
    return total, len(actions)


@pytest.mark.parametrize("name", TASKS)
def test_promises_exactly_what_the_real_environment_gives(name: str) -> None:
    env = warmed_up(make_env(name))
    oracle = Oracle(env, threads=2, exact=True)
    actions = candidates(env, n=8, horizon=20).double()
    promised = oracle.score(actions)
    # Not the first: a rollout must not see what an earlier one left in the copy.
    given, _ = really(env, actions[0, 3].numpy())
    assert promised.shape == (1, 8)
    different = len(set(promised[0].tolist()))
    assert different > (1 if name == "InvertedPendulum-v5" else 7)  # which counts whole steps
    assert promised[0, 3].item() == given
    # And again from the state reached, with what the simulator keeps from the steps before.
    again = candidates(env, n=3, horizon=5, seed=1).double()
    promised = oracle.score(again)
    assert promised[0, 2].item() == really(env, again[0, 2].numpy())[0]


@pytest.mark.parametrize("name", TASKS)
def test_mujocos_own_rollouts_agree_to_round_off(name: str) -> None:
    env = warmed_up(make_env(name))
    actions = candidates(env, n=12, horizon=30)
    if name in ("Hopper-v5", "Walker2d-v5"):
        actions = actions.sign()  # until it falls
    exact = Oracle(env, threads=1, exact=True).score(actions.double())
    fast = Oracle(env, threads=2)
    np.testing.assert_allclose(fast.score(actions.double()), exact, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fast.score(actions), exact, rtol=1e-4, atol=1e-5)
    known = judge_of(env) is not None
    assert known == (name.partition("-")[0] in ROLLED_OUT)


@pytest.mark.parametrize("rows", [1, 5])
def test_rollouts_in_parts_are_those_at_once(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    env = warmed_up(make_env("HalfCheetah-v5"))
    actions = candidates(env, n=7, horizon=4)
    whole = Oracle(env, threads=1).score(actions)
    monkeypatch.setattr(rollouts, "MOST_NUMBERS", rows * 4 * 5 * 19)
    assert torch.equal(Oracle(env, threads=2).score(actions), whole)


def test_weights_of_the_instance_and_forces_from_outside_count() -> None:
    env = warmed_up(make_env("Pusher-v5", reward_near_weight=2.0, reward_control_weight=0.3))
    base: Any = env.unwrapped
    actions = candidates(env, n=3, horizon=6).double()
    assert judge_of(env) is not None
    for push in (0.0, 2.0):
        base.data.qfrc_applied[:] = push
        promised = Oracle(env).score(actions)
        assert (judge_of(env) is None) == (push > 0)
        exact = Oracle(env, exact=True).score(actions)
        np.testing.assert_allclose(promised, exact, rtol=1e-9)


@pytest.mark.parametrize("exact", [True, False])
def test_no_reward_counts_after_termination(exact: bool) -> None:
    env = warmed_up(make_env("Hopper-v5"), steps=2)
    actions = torch.ones(1, 1, 200, 3, dtype=torch.float64)
    promised = Oracle(env, exact=exact).score(actions)
    given, steps = really(env, actions[0, 0].numpy())
    assert steps < 100
    assert promised.item() == pytest.approx(given, rel=1e-9)


@pytest.mark.parametrize("exact", [True, False])
def test_time_limits_are_ignored(exact: bool) -> None:
    env = warmed_up(make_env("HalfCheetah-v5", max_episode_steps=6), steps=4)
    actions = candidates(env, n=1, horizon=12).double()
    promised = Oracle(env, exact=exact).score(actions)
    given, _ = really(env.unwrapped, actions[0, 0].numpy())
    assert promised.item() == pytest.approx(given, rel=1e-9)


def test_the_real_environment_is_left_alone() -> None:
    env = warmed_up(make_env("Ant-v5"))
    base: Any = env.unwrapped
    signature = mujoco.mjtState.mjSTATE_INTEGRATION
    size = mujoco.mj_stateSize(base.model, signature)

    def snapshot() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], Any]:
        state = np.empty(size)
        mujoco.mj_getState(base.model, base.data, state, signature)
        return state, base.data.xpos.copy(), base.np_random.bit_generator.state

    before = snapshot()
    Oracle(env).score(candidates(env, n=4, horizon=5))
    after = snapshot()
    assert np.array_equal(before[0], after[0])
    assert np.array_equal(before[1], after[1])
    assert before[2] == after[2]


def test_several_environments_and_any_number_of_threads() -> None:
    envs = [warmed_up(make_env("Walker2d-v5"), seed=seed) for seed in range(3)]
    actions = candidates(envs[0], n=7, horizon=10).expand(3, -1, -1, -1)
    single = Oracle(envs, threads=1).score(actions)
    assert single.shape == (3, 7)
    assert single.dtype == torch.float32
    assert len(set(single.flatten().tolist())) == 21
    assert torch.equal(single, Oracle(envs, threads=3).score(actions))
    for s, env in enumerate(envs):
        assert torch.equal(single[s], Oracle(env, threads=2).score(actions[s : s + 1])[0])


def test_wrappers_on_actions_and_rewards_take_part() -> None:
    bare = make_env("HalfCheetah-v5", render_mode="rgb_array")
    wrapped = gym.wrappers.ClipReward(
        gym.wrappers.RescaleAction(bare, np.float32(-3), np.float32(3)), -0.1, 0.1
    )
    env = gym.wrappers.RecordEpisodeStatistics(wrapped)
    warmed_up(env)
    actions = candidates(env, n=2, horizon=10).double()
    promised = Oracle(env).score(actions)
    assert promised[0, 1].item() == really(env, actions[0, 1].numpy())[0]


class Halving(gym.ActionWrapper[Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Halves the action, in the array that it was given."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        gym.utils.RecordConstructorArgs.__init__(self)
        gym.ActionWrapper.__init__(self, env)

    def action(self, action: Any) -> Any:
        action *= 0.5
        return action


def test_plans_are_not_changed_by_what_takes_them() -> None:
    env = warmed_up(Halving(gym.make("InvertedPendulum-v5")))
    plans = candidates(env, 3, 5)
    before = plans.clone()
    Oracle(env, threads=1).score(plans)
    assert torch.equal(plans, before)


def test_the_state_of_a_wrapper_is_taken_over() -> None:
    """NormalizeReward divides by a running deviation, which the copies have to know."""
    env = warmed_up(gym.wrappers.NormalizeReward(make_env("HalfCheetah-v5")), steps=30)
    actions = candidates(env, n=3, horizon=10).double()
    promised = Oracle(env).score(actions)
    assert promised[0, 2].item() == really(env, actions[0, 2].numpy())[0]


class MovingGoal(ReacherEnv):
    """Keeps in Python what no MuJoCo state holds: a counter, its history, and random rewards."""

    def __init__(self, **kwargs: Any) -> None:
        self.count = 0
        self.history: list[float] = []
        super().__init__(**kwargs)

    def step(self, action: npt.NDArray[np.float32]) -> Any:
        self.count += 1
        obs, reward, terminated, truncated, info = super().step(action)  # type: ignore[no-untyped-call]
        self.history.append(float(reward))
        extra = 0.1 * self.count + sum(self.history) + self.np_random.normal()
        return obs, reward + extra, terminated, truncated, info


@pytest.fixture
def moving_goal() -> Any:
    gym.register("MovingGoal-v0", MovingGoal, max_episode_steps=100)
    yield "MovingGoal-v0"
    del gym.registry["MovingGoal-v0"]


def test_python_state_is_taken_over(moving_goal: str) -> None:
    env = warmed_up(make_env(moving_goal))
    base: Any = env.unwrapped
    actions = candidates(env, n=4, horizon=8).double()
    promised = Oracle(env, threads=2).score(actions)
    assert base.count == len(base.history) == 4
    assert promised[0, 3].item() == really(env, actions[0, 3].numpy())[0]


def test_a_model_perturbed_after_it_was_made_is_taken_over() -> None:
    env = make_env("HalfCheetah-v5")
    base: Any = env.unwrapped
    oracle = Oracle(env)
    warmed_up(env)
    actions = candidates(env, n=2, horizon=10).double()
    standard = oracle.score(actions)
    base.model.body_mass[:] *= 1.7
    base.model.opt.gravity[2] = -6.0
    base.model.opt.timestep = 0.008
    promised = oracle.score(actions)
    assert not torch.equal(promised, standard)
    given, _ = really(env, actions[0, 1].numpy())
    assert promised[0, 1].item() == pytest.approx(given, rel=1e-9)


def test_actions_are_checked() -> None:
    env = warmed_up(make_env("Reacher-v5"))
    oracle = Oracle(env)
    for shape in [(1, 4, 5), (2, 4, 5, 2), (1, 4, 5, 3)]:
        with pytest.raises(InvalidInputError, match=r"S = 1 and A = 2; got \("):
            oracle.score(torch.zeros(shape))
    with pytest.raises(
        InvalidInputError, match=r"actions must be of a floating type; got torch\.int64"
    ):
        oracle.score(torch.ones(1, 4, 5, 2, dtype=torch.int64))
    assert oracle.score(torch.zeros(1, 4, 0, 2)).tolist() == [[0.0] * 4]


def test_a_plan_in_which_mujoco_diverges_is_worth_nan() -> None:
    env = warmed_up(make_env("HalfCheetah-v5"))
    base: Any = env.unwrapped
    actions = candidates(env, 2, 3)
    assert Oracle(env).score(actions).isfinite().all()
    qvel = base.data.qvel.copy()
    qvel[-1] = 1e6
    base.set_state(base.data.qpos.copy(), qvel)
    assert Oracle(env).score(actions).isnan().all()


@pytest.mark.parametrize("name", ["Reacher-v5", "HalfCheetah-v5"])  # stepped, and rolled out
def test_no_sequences_have_no_scores(name: str) -> None:
    env = make_env(name)
    env.reset(seed=0)
    shape = (1, 0, 5, *(env.action_space.shape or ()))
    found = Oracle(env, threads=1).score(torch.zeros(shape, dtype=torch.float64))
    assert (found.shape, found.dtype) == ((1, 0), torch.float64)


def test_what_cannot_be_copied_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"must be a MuJoCo environment.*PendulumEnv"):
        Oracle(make_env("Pendulum-v1"))
    with pytest.raises(InvalidInputError, match="has no spec"):
        Oracle(ReacherEnv())
    with pytest.raises(InvalidInputError, match="at least one"):
        Oracle([])
    for threads in (0, 1.5, "2", True):
        with pytest.raises(InvalidInputError, match=rf"threads must be an int .* got {threads!r}"):
            Oracle(make_env("Reacher-v5"), threads=threads)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="of one kind"):
        Oracle([make_env("Reacher-v5"), make_env("Pusher-v5")])
    with pytest.raises(InvalidInputError, match="RecordConstructorArgs"):
        Oracle(Unrecorded(make_env("Reacher-v5")))


class Unrecorded(gym.Wrapper[Any, Any, Any, Any]):
    """A wrapper Gymnasium cannot make again."""


def test_a_lock_in_the_environment_is_named(moving_goal: str) -> None:
    env = warmed_up(make_env(moving_goal))
    base: Any = env.unwrapped
    base.lock = Uncopiable()
    with pytest.raises(InvalidInputError, match="'lock' in MovingGoal"):
        Oracle(env).score(candidates(env, n=1, horizon=1))


class Uncopiable:
    """Stands for an open file or a lock."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(iter_generator())


def iter_generator() -> Any:
    """A generator: Python refuses to copy it."""
    yield 0
