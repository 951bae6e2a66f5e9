"""The true model's steps against the real tasks', and imagination in it against the oracle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.mujoco_env import MujocoEnv

from agents.mpc import MPC, MPCSettings
from agents.planners import ICEM
from envs.known.oracle import Oracle
from envs.known.rollouts import judge_of
from envs.known.true_model import TrueModel
from envs.tasks.layers import Env
from envs.tasks.make import make_env
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.imagination.environments import ImaginedEnv
from mbrl_bilevel.imagination.particles import imagined_returns, imagined_trajectories
from mbrl_bilevel.imagination.settings import Branching, Imagination

Array = npt.NDArray[Any]

ENDING = {"Hopper-v5", "InvertedDoublePendulum-v5", "InvertedPendulum-v5", "Walker2d-v5"}
TASKS = sorted(ENDING | {"HalfCheetah-v5", "Reacher-v5", "Swimmer-v5"})
#: Of the size of an observation: MuJoCo's solver stops at 1e-8. 3e-10 was the most that was seen.
TOLERANCE = 1e-8


@dataclass(frozen=True)
class Steps:
    """Real steps, N of them; ``told`` where the observation tells the state."""

    obs: Array
    action: Array
    next_obs: Array
    reward: Array
    ended: Array
    told: Array


def real_steps(env: Env, episodes: int = 4, length: int = 80, force: float = 1.0) -> Steps:
    """Random actions, times ``force``, from reset to the end or ``length``."""
    base: Any = env.unwrapped
    assert isinstance(env.action_space, gym.spaces.Box)
    draws, rows = np.random.default_rng(0), []
    for episode in range(episodes):
        obs, _ = env.reset(seed=episode)
        for _ in range(length):
            action = force * draws.uniform(env.action_space.low, env.action_space.high)
            told = tells(base)
            next_obs, reward, ended, _, _ = env.step(action)
            rows.append((obs, action, next_obs, reward, ended, told))
            obs = next_obs
            if ended:
                break
    return Steps(*(np.array(column) for column in zip(*rows, strict=True)))


def tells(base: Any) -> bool:
    """Whether no velocity is clipped, and no elbow turned by more than half a turn."""
    if type(base).__name__ in ("HopperEnv", "Walker2dEnv", "InvertedDoublePendulumEnv"):
        return bool((np.abs(base.data.qvel) <= 10).all())
    return type(base).__name__ != "ReacherEnv" or abs(base.data.qpos[1]) < np.pi


def assert_steps_agree(model: TrueModel, steps: Steps, which: Array) -> None:
    found = model.step(*(torch.from_numpy(v[which])[None] for v in (steps.obs, steps.action)))
    close: Callable[..., None] = np.testing.assert_allclose
    close(found.next_obs[0], steps.next_obs[which], rtol=TOLERANCE, atol=TOLERANCE)
    close(found.reward[0], steps.reward[which], rtol=TOLERANCE, atol=TOLERANCE)
    np.testing.assert_array_equal(found.terminated[0], steps.ended[which])


@pytest.mark.parametrize("name", TASKS)
def test_a_step_is_the_real_one(name: str) -> None:
    env = make_env(name)
    # Of full force Walker2d's joints are nearly always faster than it shows.
    steps = real_steps(env, force=0.3 if name == "Walker2d-v5" else 1.0)
    assert steps.told.sum() > 20
    assert steps.ended[steps.told].any() == (name in ENDING)
    assert_steps_agree(TrueModel(env), steps, steps.told)


@pytest.mark.parametrize("name", ["Walker2d-v5", "Reacher-v5"])
def test_where_the_state_is_not_told_it_goes_on_from_what_is(name: str) -> None:
    """From clipped velocities, and from angles within half a turn."""
    env, other = make_env(name), make_env(name)
    steps, base = real_steps(env), cast_base(other)
    hidden = np.flatnonzero(~steps.told)
    assert len(hidden) > 0
    other.reset(seed=0)
    for row in hidden[:20]:
        obs = steps.obs[row]
        if name == "Reacher-v5":
            qpos = [np.arctan2(obs[2], obs[0]), np.arctan2(obs[3], obs[1]), *obs[4:6]]
            qvel = [*obs[6:8], 0, 0]
        else:
            qpos, qvel = [0, *obs[:8]], obs[8:]
        base.set_state(np.array(qpos), np.array(qvel))
        next_obs, reward, ended, _, _ = base.step(steps.action[row])
        given = (torch.from_numpy(v[[row]]) for v in (steps.obs, steps.action))
        found = TrueModel(env).step(*given)
        np.testing.assert_allclose(found.next_obs[0, 0], next_obs, rtol=1e-7, atol=1e-7)
        assert found.reward.item() == pytest.approx(reward, rel=1e-7)
        assert found.terminated.item() == ended


def cast_base(env: Env) -> Any:
    assert isinstance(env.unwrapped, MujocoEnv)
    return env.unwrapped


@pytest.mark.parametrize(
    ("name", "options", "push", "rolled_out"),
    [
        ("HalfCheetah-v5", {"exclude_current_positions_from_observation": False}, 0.0, True),
        ("Swimmer-v5", {"forward_reward_weight": 3.0, "ctrl_cost_weight": 0.2}, 0.0, True),
        ("Hopper-v5", {"healthy_reward": 2.0, "frame_skip": 3}, 0.0, True),
        ("Hopper-v5", {"terminate_when_unhealthy": False}, 0.0, False),
        ("HalfCheetah-v5", {}, 5.0, False),
    ],
)
def test_arguments_of_the_instance_and_forces_from_outside_count(
    name: str, options: dict[str, Any], push: float, rolled_out: bool
) -> None:
    env = make_env(name, **options)
    env.reset(seed=0)
    cast_base(env).data.qfrc_applied[2] = push
    model = TrueModel(env)
    assert (judge_of(env) is not None) == rolled_out
    # A reset wipes the force out, so it is put back before the steps that are compared.
    base = cast_base(env)
    base.reset_model = with_push(base, push)
    steps = real_steps(env, episodes=2, length=40)
    assert_steps_agree(model, steps, steps.told)


def with_push(base: Any, push: float) -> Callable[[], Any]:
    plain = base.reset_model

    def reset_model() -> Any:
        obs = plain()
        base.data.qfrc_applied[2] = push
        return obs

    return reset_model


def test_the_environment_is_left_alone_and_its_model_is_read_at_each_step() -> None:
    for name in ("HalfCheetah-v5", "InvertedDoublePendulum-v5"):
        env = make_env(name)
        base, (obs, _) = cast_base(env), env.reset(seed=0)
        model, action = TrueModel(env), torch.full((1, base.model.nu), 0.5)
        before = model.step(torch.from_numpy(obs)[None], action)
        assert np.array_equal(base._get_obs(), obs)
        base.model.opt.gravity[2] = -5.0
        after = model.step(torch.from_numpy(obs)[None], action)
        real = env.step(action[0].numpy())
        assert not torch.allclose(before.next_obs, after.next_obs, atol=1e-3)
        np.testing.assert_allclose(after.next_obs[0, 0], real[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["Hopper-v5", "Reacher-v5"])
def test_shapes_types_and_threads(name: str) -> None:
    env = make_env(name)
    steps = real_steps(env, episodes=2)
    obs, action = (torch.from_numpy(v[:12]) for v in (steps.obs, steps.action))
    model = TrueModel(env, threads=1)
    whole = model.step(obs, action)
    assert whole.next_obs.shape == (1, 12, obs.shape[1])
    assert whole.reward.shape == whole.terminated.shape == (1, 12)
    for lead in [(1, 12), (1, 1, 12), (1, 3, 4), (1, 2, 3, 2)]:
        found = TrueModel(env, threads=3).step(obs.view(*lead, -1), action.view(*lead, -1))
        assert found.next_obs.shape == (*lead, obs.shape[1])
        assert found.reward.shape == found.terminated.shape == lead
        assert torch.equal(found.next_obs.reshape(12, -1), whole.next_obs[0])
        assert torch.equal(found.reward.flatten(), whole.reward[0])
    # No row affects another.
    assert torch.equal(model.step(obs[5:6], action[5:6]).next_obs[0, 0], whole.next_obs[0, 5])
    short = model.step(obs.float().requires_grad_(), action.float())
    assert short.next_obs.dtype == short.reward.dtype == short.terminated.dtype == torch.float32
    torch.testing.assert_close(short.next_obs, whole.next_obs.float(), rtol=1e-4, atol=1e-4)
    assert model.step(obs[:0], action[:0]).reward.shape == (1, 0)


def candidates(env: Env, n: int, horizon: int) -> torch.Tensor:
    assert isinstance(env.action_space, gym.spaces.Box)
    low, high = env.action_space.low, env.action_space.high
    draws = np.random.default_rng(1).uniform(low, high, (1, n, horizon, len(low)))
    return torch.from_numpy(draws)


def warmed_up(name: str, steps: int) -> tuple[Env, torch.Tensor]:
    """The task after some gentle steps, and what it shows."""
    env = make_env(name)
    obs, _ = env.reset(seed=3)
    env.action_space.seed(3)
    for _ in range(steps):
        obs, *_ = env.step(0.1 * env.action_space.sample())
    return env, torch.from_numpy(obs)[None]


@pytest.mark.parametrize(
    ("name", "steps", "horizon"),
    [
        ("HalfCheetah-v5", 30, 8),
        ("Hopper-v5", 5, 40),
        ("InvertedDoublePendulum-v5", 3, 12),
        ("Swimmer-v5", 30, 8),
    ],
)
@pytest.mark.parametrize("propagation", ["ts1", "tsinf"])
def test_imagined_returns_are_the_oracles(
    name: str, steps: int, horizon: int, propagation: Any
) -> None:
    env, obs = warmed_up(name, steps)
    actions = candidates(env, 12, horizon)
    imagination = Imagination(particles=2, propagation=propagation)
    score = imagined_returns(TrueModel(env), obs, actions, imagination, torch.Generator())
    assert len(set(score[0].tolist())) == 12
    # Errors of the solver grow along the way.
    torch.testing.assert_close(score, Oracle(env).score(actions), rtol=1e-6, atol=1e-6)
    single = imagined_returns(
        TrueModel(env), obs.float(), actions.float(), imagination, torch.Generator()
    )
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, score.float(), rtol=1e-3, atol=1e-3)


def test_imagined_trajectories_are_the_real_ones() -> None:
    env, obs = warmed_up("Swimmer-v5", 20)
    actions = candidates(env, 1, 15)[0]
    arguments = (obs, actions, Imagination(particles=3), torch.Generator())
    states, rewards = imagined_trajectories(TrueModel(env), *arguments)
    assert states.shape == (3, 1, 15, 8)
    for t, action in enumerate(actions[0].numpy()):
        real, reward, *_ = env.step(action)
        np.testing.assert_allclose(states[:, 0, t], np.tile(real, (3, 1)), rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(rewards[:, 0, t], [reward] * 3, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["Hopper-v5", "InvertedPendulum-v5"])
@pytest.mark.parametrize("bad", [torch.nan, -torch.inf, 1e11])
def test_rows_that_are_no_states_give_nan_and_leave_the_others_alone(name: str, bad: float) -> None:
    env, obs = warmed_up(name, 3)
    model, actions = TrueModel(env), candidates(env, 4, 3)
    rows, first = obs.repeat(4, 1), actions[0, :, 0].clone()
    whole = model.step(rows, first)
    rows[1, 2], first[3, 0] = bad, bad
    found = model.step(rows, first)
    assert found.next_obs[0].isnan().all(1).tolist() == [False, True, False, True]
    assert found.reward[0].isnan().tolist() == [False, True, False, True]
    assert torch.equal(found.next_obs[0, ::2], whole.next_obs[0, ::2])
    actions[0, 2, 1, 0] = bad
    score = imagined_returns(model, obs, actions, Imagination(1), torch.Generator())
    assert score.isnan().tolist() == [[False, False, True, False]]
    assert model.step(rows[1:2], first[1:2]).terminated.item() == 0.0


@pytest.mark.parametrize("name", ["Hopper-v5", "HalfCheetah-v5", "InvertedPendulum-v5"])
@pytest.mark.parametrize(
    "speed", [1e5, 1e7]
)  # diverges in a later step of the integrator, in the first
def test_where_mujoco_diverges_within_a_step_there_is_nan_not_the_start(
    name: str, speed: float
) -> None:
    env, obs = warmed_up(name, 3)
    model, actions = TrueModel(env), candidates(env, 3, 1)[0, :, 0]
    rows = obs.repeat(3, 1)
    whole = model.step(rows, actions)
    rows[1, -1] = speed
    found = model.step(rows, actions)
    assert found.next_obs[0].isnan().all(1).tolist() == [False, True, False]
    assert found.reward[0].isnan().tolist() == [False, True, False]
    assert found.terminated[0, 1] == 0.0
    assert torch.equal(found.next_obs[0, ::2], whole.next_obs[0, ::2])
    # The task itself says nothing: it goes on from its start.
    qpos, qvel = cast_base(env).data.qpos.copy(), cast_base(env).data.qvel.copy()
    qvel[-1] = speed
    cast_base(env).set_state(qpos, qvel)
    assert np.abs(env.step(env.action_space.sample())[0]).max() < 10.0


def test_only_floating_types_are_taken() -> None:
    model = TrueModel(make_env("Hopper-v5"))
    whole, complexes = torch.zeros(4, 11, dtype=torch.int64), torch.zeros(4, 3, dtype=torch.cfloat)
    for name, pair in {
        "obs": (whole, torch.zeros(4, 3)),
        "action": (torch.zeros(4, 11), complexes),
    }.items():
        with pytest.raises(InvalidInputError, match=f"{name} must be of a floating type; got"):
            model.step(*pair)


def test_wrong_shapes_are_named() -> None:
    model = TrueModel(make_env("Hopper-v5"))
    for obs, action in [((4, 12), (4, 3)), ((4, 11), (4, 2)), ((4, 11), (3, 3)), ((11,), (3,))]:
        with pytest.raises(InvalidInputError, match=r"obs must be \[\.\.\., 11\].*got \("):
            model.step(torch.zeros(obs), torch.zeros(action))


class OwnHopper(HopperEnv):
    """Could do anything."""


def test_other_environments_are_refused_with_the_list() -> None:
    wrapped = gym.wrappers.RescaleAction(make_env("Hopper-v5"), np.float32(-2), np.float32(2))
    for env, told in [
        (make_env("Pusher-v5"), "PusherEnv"),
        (make_env("Ant-v5"), "AntEnv"),
        (make_env("Pendulum-v1"), "PendulumEnv"),
        (OwnHopper(), "OwnHopper"),
        (wrapped, "HopperEnv under RescaleAction"),
    ]:
        with pytest.raises(InvalidInputError, match=rf"HalfCheetahEnv, .*Walker2dEnv.*got {told}"):
            TrueModel(env)
    with pytest.raises(InvalidInputError, match="threads must be an int from 1"):
        TrueModel(make_env("Hopper-v5"), threads=0)


def test_the_agent_plans_in_it(tmp_path: Path) -> None:
    env = make_env("InvertedPendulum-v5", max_episode_steps=60)
    planner = ICEM(horizon=8, population=24, iterations=2)
    agent = MPC(env, MPCSettings(members=1, planner=planner, imagination=Imagination(1)))
    agent.model = TrueModel(make_env("InvertedPendulum-v5"))
    total, state = 0.0, None
    obs, _ = env.reset(seed=0)
    for _ in range(60):
        action, state = agent.predict(obs, state, deterministic=True)
        obs, reward, terminated, _, _ = env.step(action)
        total += float(reward)
        if terminated:
            break
    assert total == 60.0  # random actions fall within ten steps
    with pytest.raises(InvalidInputError, match="save: model is a TrueModel"):
        agent.save(tmp_path / "agent.safetensors")


def test_imagined_episodes_are_the_real_ones() -> None:
    env, obs = warmed_up("Hopper-v5", 4)
    spaces = (env.observation_space, env.action_space)
    assert isinstance(spaces[0], gym.spaces.Box)
    assert isinstance(spaces[1], gym.spaces.Box)
    model, starts = TrueModel(env), obs.float().numpy()
    imagined = ImaginedEnv(model, starts, *spaces, horizon=50)
    imagined.reset(seed=0)
    ended = []
    for action in candidates(env, 1, 50)[0, 0].float().numpy():
        found, real = imagined.step(action), env.step(action)
        np.testing.assert_allclose(found[0], real[0], rtol=1e-3, atol=1e-3)
        assert found[1] == pytest.approx(real[1], abs=1e-3)
        assert found[2] == real[2]
        ended.append(real[2])
        if real[2]:
            break
    assert ended[-1]
    assert 3 < len(ended) < 50
    wary = ImaginedEnv(model, starts, *spaces, horizon=50, branching=Branching(penalty=1.0))
    wary.reset(seed=0)
    with pytest.raises(InvalidInputError, match="penalty must be 0 for TrueModel"):
        wary.step(np.zeros(3, dtype=np.float32))
