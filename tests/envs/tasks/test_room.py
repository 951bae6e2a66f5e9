"""The room: Gymnasium's contract, rewards by hand, each object's own physics, and data in which it moves."""

from __future__ import annotations

import math
import warnings
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from agents.common.experience import collect
from envs.known.names import observation_names
from envs.known.rules import known_rules
from envs.tasks.drawing import make_drawable
from envs.tasks.layers import wrappers_of
from envs.tasks.make import make_env
from envs.tasks.room import NAMES, OBJECTS
from envs.tasks.sequences import SEQUENCES
from mbrl_bilevel.base.errors import InvalidInputError

AT = {name: index for index, name in enumerate(NAMES)}


def alone(**joints: float) -> Any:
    """The room with the body far from everything, all at rest but ``joints``: a position "name", or "v_name"."""
    room: Any = make_env("mbrl/Room-v0").unwrapped
    room.reset(seed=0)
    room.set_state(np.zeros(room.model.nq), np.zeros(room.model.nv))
    room.data.joint("ball").qpos[:] = (2.0, -2.6, 0.2, 1.0, 0.0, 0.0, 0.0)
    for name, at in {"block_x": -1.2, "block_y": -2.0, "drawer": 0.4, **joints}.items():
        joint = room.data.joint(name.removeprefix("v_").replace("_", " "))
        (joint.qvel if name.startswith("v_") else joint.qpos)[0] = at
    mujoco.mj_forward(room.model, room.data)
    return room


def path(room: Any, joint: str, steps: int, action: Any = (0.0, 0.0, 0.0)) -> Any:
    """Position and velocity [steps, 2] of a joint's first degree of freedom."""
    found = []
    for _ in range(steps):
        room.step(np.array(action))
        state = room.data.joint(joint)
        found.append((state.qpos[0], state.qvel[0]))
    return np.array(found)


@pytest.mark.parametrize("task", OBJECTS)
def test_contract_and_determinism(task: str) -> None:
    env = make_env("mbrl/Room-v0", task=task)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unbounded observations, as for Gymnasium's own
        check_env(env.unwrapped, skip_render_check=True)
    assert observation_names(env) == NAMES

    def rollout(env: Any, seed: int) -> Any:
        env.action_space.seed(4)
        obs, ends = [env.reset(seed=seed)[0]], []
        for _ in range(50):
            step = env.step(env.action_space.sample())
            obs.append(step[0])
            ends.append(step[2:4])
        assert ends == [(False, False)] * 49 + [(False, True)]
        return np.array(obs)

    first = rollout(env, 3)
    np.testing.assert_array_equal(first, rollout(make_env("mbrl/Room-v0", task=task), 3))
    assert not np.array_equal(first, rollout(env, 4))
    # The body starts within reach of what the task is about.
    x, y = OBJECTS[task].place(first[0])
    assert 0.4 < math.hypot(first[0, 0] - x, first[0, 1] - y) < 1.5


def test_an_unknown_task_is_told_in_a_line() -> None:
    with pytest.raises(InvalidInputError, match="unknown task 'buton': did you mean 'button'") as e:
        make_env("mbrl/Room-v0", task="buton")
    assert "\n" not in str(e.value)


def test_every_task_is_drawn() -> None:
    env = make_drawable("mbrl/Room-v0", task="wheel")
    env.reset(seed=0)
    picture = env.render()
    env.close()
    colours = np.asarray(picture).reshape(-1, 3).astype(int)
    # Of the six objects, by their hue: button red, door brown, drawer green, block blue, wheel violet, ball orange.
    for hue in (
        (217, 38, 38),
        (140, 89, 51),
        (115, 153, 102),
        (77, 115, 191),
        (191, 140, 204),
        (242, 153, 26),
    ):
        share = hue / np.linalg.norm(hue)
        near = colours @ share / np.maximum(np.linalg.norm(colours, axis=1), 1.0)
        assert (near > 0.99).sum() > 20, hue


#: By task: what is observed besides zeros, and its reward under the action (.5, −1, 0): progress − .2·distance − .0125.
BY_HAND: list[tuple[str, dict[str, float], float]] = [
    ("button", {"x": -1.8, "y": 2.1, "button": 0.06}, 0.5 - 0.2 * 0.5 - 0.0125),
    ("door", {"x": 1.6, "y": 1.6, "door": 0.65}, 0.5 - 0.2 * 0.5 - 0.0125),
    ("drawer", {"x": 2.3, "y": -0.3, "drawer": 0.275}, 0.5 - 0.2 * 0.5 - 0.0125),
    ("ball", {"x": 1.3, "y": -1.8, "ball x": 1.19, "ball y": -1.8}, 0.61 / 1.22 - 0.2 * 0.11 - 0.0125),
    ("block", {"x": -1.7, "y": -1.6, "block x": -2.0, "block y": -2.0}, 1.0 - 0.2 * 0.5 - 0.0125),
    ("wheel", {"x": -1.75, "y": -1.0, "velocity of wheel": -3.0}, 0.0 - 0.2 * 1.0 - 0.0125),
]  # fmt: skip


@pytest.mark.parametrize(("task", "shown", "expected"), BY_HAND)
def test_reward_by_hand(task: str, shown: dict[str, float], expected: float) -> None:
    obs = np.zeros(len(NAMES))
    for name, value in shown.items():
        obs[AT[name]] = value
    found = OBJECTS[task].reward(np.full_like(obs, 7.0), np.array([0.5, -1.0, 0.0]), obs)
    assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("task", SEQUENCES["room"].tasks, ids=lambda task: task.name)
def test_planners_know_the_reward_and_data_move_the_object(task: Any) -> None:
    env = task.make()
    steps = collect(env, task.behaviour(env, np.random.default_rng(1)), 200, seed=1)
    rules = known_rules(env)
    assert rules.reward is not None
    assert rules.termination is not None
    columns = [torch.from_numpy(np.asarray(c)).double() for c in (steps.obs, steps.action, steps.next_obs)]  # fmt: skip
    found = rules.reward(*columns).numpy()
    assert steps.reward.std() > 0.05
    np.testing.assert_allclose(found, steps.reward, atol=2e-6)  # stored in single precision
    assert not rules.termination(*columns).any()
    success = OBJECTS[task.name].progress(steps.next_obs)
    assert success.max() > success[0] + 0.15


def test_success_is_told() -> None:
    room = alone(door=1.4)
    room.object = OBJECTS["door"]
    assert room.step(np.zeros(3))[4]["success"] is True
    room = alone(door=1.0)
    room.object = OBJECTS["door"]
    assert room.step(np.zeros(3))[4]["success"] is False


def test_the_button_springs_back() -> None:
    """ẍ = −(k/m)x − (c/m)ẋ with k = 100, m = .5, c = 2: from .1 m back at 0 after a quarter of 2π/√(200 − 4)."""
    room = alone(button=0.1)
    at, speed = path(room, "button", 60)[:, 0], path(alone(button=0.1), "button", 1)[0, 1]
    decay, rate = 2.0, math.sqrt(200.0 - 4.0)
    first = (
        0.1
        * math.exp(-decay * 0.05)
        * (math.cos(rate * 0.05) + decay / rate * math.sin(rate * 0.05))
    )
    assert at[0] == pytest.approx(first, abs=0.012)  # an integrator of first order, 12.5 ms a step
    assert speed < -0.5
    assert abs(at[-1]) < 0.005


@pytest.mark.parametrize(
    ("joint", "speed", "rate", "share"),
    [
        ("drawer", -0.3, 12.0 / 3.0, 0.02),  # damping over mass
        ("door", 0.3, 1.0 / (4.0 * (0.9**2 + 0.06**2) / 12.0 + 4.0 * 0.45**2), 0.02),  # over inertia
        ("wheel", 2.0, 1.0 / 2.04, 0.05),  # two bars of 8 kg, 1.2 m and their caps
    ],
)  # fmt: skip
def test_what_turns_or_slides_decays_at_its_rate(
    joint: str, speed: float, rate: float, share: float
) -> None:
    """v(t) = v(0)·exp(−c/m·t): the drawer has lost most of it after half a second, the wheel goes on."""
    room = alone(**{f"v_{joint}": speed, "door": 0.3})
    after = path(room, joint, 8)[:, 1]
    times = 0.05 * np.arange(1, 9)
    np.testing.assert_allclose(after / speed, np.exp(-rate * times), atol=share)


def test_the_door_turns_about_its_hinge() -> None:
    room = alone(door=0.2, v_door=0.8)
    edges = []
    for _ in range(10):
        room.step(np.zeros(3))
        mujoco.mj_kinematics(room.model, room.data)  # poses are as old as the last integrator step
        frame, door = room.data.body("door"), room.data.joint("door").qpos[0]
        edge = frame.xpos + frame.xmat.reshape(3, 3) @ (0.9, 0.0, 0.0)
        np.testing.assert_allclose(
            edge[:2], (1.2 + 0.9 * math.cos(door), 2.0 + 0.9 * math.sin(door))
        )
        edges.append(edge)
    assert np.linalg.norm(edges[-1] - edges[0]) > 0.2


def test_the_ball_rolls_on_and_a_block_does_not() -> None:
    """The same second of pushing by the same body; then the ball goes on, at v = ω·r, and the block stops."""
    moved, after = {}, {}
    for name, joints in {
        "ball": {"x": 0.6, "y": 0.0},
        "block x": {"x": 0.6, "y": 0.0, "block_x": 1.1, "block_y": 0.0},
    }.items():
        room = alone(**joints)
        if name == "ball":
            room.data.joint("ball").qpos[:2] = (1.05, 0.0)
        start = room.data.joint(name).qpos[0]
        moved[name] = path(room, name, 10, (1.0, 0.0, 0.0))[-1, 0] - start
        after[name] = path(room, name, 10, (-1.0, 0.0, 0.0))[:, 1]
        if name == "ball":
            spin = room.data.joint("ball").qvel
            assert spin[4] * 0.2 == pytest.approx(spin[0], rel=0.1)
    assert moved["ball"] > 3.0 * moved["block x"] > 0.0
    assert after["ball"][-1] > 0.85 * after["ball"][5] > 0.5
    assert abs(after["block x"][-1]) < 0.02


def test_spaces_and_dynamics_are_those_of_every_task() -> None:
    SEQUENCES["room"].check()
    rooms: list[Any] = [make_env("mbrl/Room-v0", task=task).unwrapped for task in OBJECTS]
    rooms[0].reset(seed=5)
    state, seen = (rooms[0].data.qpos.copy(), rooms[0].data.qvel.copy()), []
    for room in rooms:
        room.reset(seed=1)
        room.set_state(*state)
        room.data.qacc_warmstart[:] = 0.0
        seen.append(room.step(np.array([0.5, -0.2, 1.0]))[0])
        assert isinstance(room.action_space, gym.spaces.Box)
    for other in seen[1:]:
        np.testing.assert_allclose(other, seen[0], atol=1e-9)


def test_a_time_limit_cuts_its_episodes() -> None:
    env = make_env("mbrl/Room-v0")
    assert any(isinstance(layer, gym.wrappers.TimeLimit) for layer in wrappers_of(env))
