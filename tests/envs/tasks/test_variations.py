"""Variations of the MuJoCo tasks: each changes the field it names and nothing else, with the physical
effect that it should have; the environments keep Gymnasium's contract."""

from __future__ import annotations

import pickle
import warnings
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from envs.known.endings import termination_rule
from envs.tasks.make import make_env
from envs.tasks.variations import ROBOTS, RUNNERS, VARIATIONS
from mbrl_bilevel.base.errors import InvalidInputError

#: Of MuJoCo's model: what a variation may change beside the fields it names, since it follows from them.
_FOLLOWS = {
    "mass": {"body_subtreemass", "body_invweight0", "dof_invweight0", "dof_M0"}
    | {"actuator_acc0", "stat.meanmass", "stat.meaninertia"}
    | {"cam_poscom0", "light_poscom0"},
    "wind": {"opt.density"},
    "strength": {"actuator_acc0", "actuator_length0"},
}


def base(env_id: str, **kwargs: Any) -> Any:
    return make_env(env_id, **kwargs).unwrapped


def numbers(model: mujoco.MjModel) -> dict[str, Any]:
    """All the numbers of a model, by name."""
    found = {n: getattr(model, n) for n in dir(model) if not n.startswith(("_", "name", "text"))}
    found = {n: np.array(v) for n, v in found.items() if isinstance(v, np.ndarray | float | int)}
    parts = ("opt", "stat")
    for part in parts:
        inside = getattr(model, part)
        for n in dir(inside):
            value = getattr(inside, n)
            if not n.startswith("_") and isinstance(value, np.ndarray | float | int):
                found[f"{part}.{n}"] = np.array(value)
    return found


def changed(robot: str, **variation: Any) -> set[str]:
    plain, varied = (
        numbers(base(f"{robot}-v5").model),
        numbers(base(f"mbrl/{robot}-v0", **variation).model),
    )
    return {n for n in plain if not np.array_equal(plain[n], varied[n])}


@pytest.mark.parametrize("robot", ROBOTS)
def test_contract_and_determinism(robot: str) -> None:
    variation = {"mass": 1.3, "damping": 0.5, "strength": 0.8}
    env = gym.make(f"mbrl/{robot}-v0", **variation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of unbounded observations, as for Gymnasium's own
        check_env(env.unwrapped, skip_render_check=True)

    def rollout(env: Any) -> Any:
        obs = [env.reset(seed=3)[0]]
        env.action_space.seed(4)
        steps = [env.step(env.action_space.sample()) for _ in range(20)]
        return np.array(obs + [s[0] for s in steps]), [s[1] for s in steps]

    first, other = rollout(env), rollout(gym.make(f"mbrl/{robot}-v0", **variation))
    copied = rollout(pickle.loads(pickle.dumps(env.unwrapped)))
    np.testing.assert_array_equal(first[0], other[0])
    np.testing.assert_array_equal(first[0], copied[0])
    assert first[1] == other[1]
    plain = rollout(make_env(f"{robot}-v5"))
    assert not np.array_equal(first[0], plain[0])
    np.testing.assert_array_equal(rollout(gym.make(f"mbrl/{robot}-v0"))[0], plain[0])


@pytest.mark.parametrize("robot", ROBOTS)
def test_each_changes_its_field_and_no_other(robot: str) -> None:
    for name, variation in VARIATIONS.items():
        if robot not in variation.robots or name == "length":
            continue
        value = (
            variation.low if name == "direction" else 0.5 * (variation.low + variation.high) + 0.01
        )
        found = changed(robot, **{name: value})
        wanted = {f.split(" of ")[0] for f in variation.field.split(", ")} - {"reward"}
        assert wanted <= found, name
        assert found <= wanted | _FOLLOWS.get(name, set()), name


def test_free_fall_is_gravity() -> None:
    env = base("mbrl/Hopper-v0", gravity=0.4)
    env.reset(seed=0)
    qpos = env.init_qpos.copy()
    qpos[1] += 5.0  # far above the floor
    env.set_state(qpos, np.zeros_like(env.init_qvel))
    heights = []
    for _ in range(10):
        env.step(np.zeros(3))
        heights.append(env.data.subtree_com[0, 2])
    assert np.diff(heights, 2) / env.dt**2 == pytest.approx(-0.4 * 9.81, rel=2e-3)


def test_friction_stops_a_slide() -> None:
    """What slides freely on a plane slows by μ·g: the first steps of a cheetah that lies on the floor."""
    kept = {}
    for factor in (0.1, 1.0):
        env = base("mbrl/HalfCheetah-v0", friction=factor)
        env.reset(seed=0)
        for _ in range(40):
            env.step(np.zeros(6))
        velocity = np.zeros(9)
        velocity[0] = 3.0
        env.set_state(env.data.qpos.copy(), velocity)
        for _ in range(5):
            env.step(np.zeros(6))
        kept[factor] = env.data.qvel[0]
    assert kept[0.1] > 2.8 > 2.2 > kept[1.0]


def test_mass_and_inertia_go_together_and_may_be_of_one_body() -> None:
    plain, varied = base("Hopper-v5").model, base("mbrl/Hopper-v0", mass={"leg": 2.0}).model
    leg = varied.body("leg").id
    factor = np.ones(plain.nbody)
    factor[leg] = 2.0
    np.testing.assert_allclose(varied.body_mass, factor * plain.body_mass)
    np.testing.assert_allclose(varied.body_inertia, factor[:, None] * plain.body_inertia)
    assert varied.body_subtreemass[0] == pytest.approx(varied.body_mass.sum())


def test_strength_is_torque_and_damping_is_drag() -> None:
    for factor in (0.5, 2.0):
        env = base("mbrl/Walker2d-v0", strength=factor)
        env.reset(seed=0)
        env.data.ctrl[:] = 0.3
        mujoco.mj_forward(env.model, env.data)
        np.testing.assert_allclose(env.data.qfrc_actuator[3:], 0.3 * 100.0 * factor)
    env = base("mbrl/Walker2d-v0", damping=3.0)
    env.reset(seed=0)
    env.set_state(env.init_qpos, np.full(9, 0.7))
    np.testing.assert_allclose(env.data.qfrc_damper[3:], -3.0 * 0.1 * 0.7)


def test_a_leg_may_be_lame_or_pushed_the_other_way() -> None:
    env = base("mbrl/HalfCheetah-v0", strength={"bthigh": 0.0, "fshin": -1.0})
    env.reset(seed=0)
    env.data.ctrl[:] = 0.5
    mujoco.mj_forward(env.model, env.data)
    factors = np.array([0.0, 1.0, 1.0, 1.0, -1.0, 1.0])
    usual = 0.5 * np.array([120.0, 90.0, 60.0, 120.0, 60.0, 30.0])
    np.testing.assert_allclose(env.data.qfrc_actuator[3:], factors * usual)
    with pytest.raises(InvalidInputError, match="no driven joint 'bthig'; choose from bthigh, "):
        base("mbrl/HalfCheetah-v0", strength={"bthig": 0.0})


def test_wind_pushes_its_way() -> None:
    force = {}
    for wind in (-20.0, 20.0):
        env = base("mbrl/HalfCheetah-v0", wind=wind)
        env.reset(seed=0)
        env.set_state(env.init_qpos, np.zeros(9))
        force[wind] = env.data.qfrc_passive[0]
    assert force[20.0] > 1.0
    assert force[-20.0] == pytest.approx(-force[20.0], rel=0.5)  # the cheetah has a front


@pytest.mark.parametrize(
    ("robot", "limb", "child"), [("HalfCheetah", "bthigh", "bshin"), ("Walker2d", "leg", "foot")]
)
def test_longer_limbs_part_their_joints(robot: str, limb: str, child: str) -> None:
    def distance(env: Any) -> float:
        env.reset(seed=0)
        env.set_state(env.init_qpos, env.init_qvel)
        joints = [env.model.body(name).jntadr[0] for name in (limb, child)]
        ends = env.data.xanchor[joints]
        return float(np.linalg.norm(ends[0] - ends[1]))

    plain, varied = base(f"{robot}-v5"), base(f"mbrl/{robot}-v0", length={limb: 1.3})
    assert distance(varied) == pytest.approx(1.3 * distance(plain), rel=1e-6)
    assert varied.model.body(limb).mass[0] > plain.model.body(limb).mass[0]
    assert varied.model.jnt_range.tolist() == plain.model.jnt_range.tolist()
    assert varied.data.ncon == plain.data.ncon  # no deeper in the floor, no higher above it


@pytest.mark.parametrize("robot", RUNNERS)
def test_limbs_of_the_usual_length_are_the_usual_limbs(robot: str) -> None:
    plain, varied = base(f"{robot}-v5").model, base(f"mbrl/{robot}-v0", length=1.0).model
    for name, value in numbers(plain).items():
        np.testing.assert_allclose(numbers(varied)[name], value, atol=1e-9, err_msg=name)


def test_rewards_pay_for_what_they_name() -> None:
    def stepped(**variation: Any) -> tuple[float, float, float]:
        env = base("mbrl/HalfCheetah-v0", **variation)
        env.reset(seed=5)
        action = np.linspace(-1.0, 1.0, 6)
        _, reward, _, _, info = env.step(action)
        return float(reward), float(info["x_velocity"]), 0.1 * float(np.square(action).sum())

    plain, speed, cost = stepped()
    assert plain == pytest.approx(speed - cost)
    assert stepped(direction=-1.0)[0] == pytest.approx(-speed - cost)
    assert stepped(target_speed=2.0)[0] == pytest.approx(-abs(speed - 2.0) - cost)
    assert stepped(target_speed=2.0, direction=-1.0)[0] == pytest.approx(-abs(-speed - 2.0) - cost)


def test_the_goal_is_seen_where_it_is() -> None:
    plain, moved = base("Pusher-v5"), base("mbrl/Pusher-v0", goal_x=0.1, goal_y=-0.2)
    shift = moved.reset(seed=0)[0] - plain.reset(seed=0)[0]
    np.testing.assert_allclose(shift[-3:], [0.1, -0.2, 0.0], atol=1e-9)
    np.testing.assert_allclose(shift[:-3], 0.0, atol=1e-9)


@pytest.mark.parametrize(
    ("robot", "variation", "told"),
    [
        ("Hopper", {"gravity": 9.81}, "between 0.2 and 3"),
        ("Hopper", {"gravity": "high"}, "must be a number"),
        ("Hopper", {"gravity": float("nan")}, "must be a number"),
        ("Hopper", {"mass": {"wing": 2.0}}, "no body 'wing'"),
        ("Hopper", {"mass": {"leg": 20.0}}, "between 0.2 and 5"),
        ("Hopper", {"length": {"tail": 1.1}}, "no body 'tail'"),
        ("Hopper", {"goal_x": 0.1}, "no variation 'goal_x'"),
        ("Pusher", {"direction": -1.0}, "no variation 'direction'"),
        ("Ant", {"direction": 0.5}, "1 or -1"),
    ],
)
def test_bad_variations_are_told(robot: str, variation: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        make_env(f"mbrl/{robot}-v0", **variation)


def test_the_rule_of_termination_is_known() -> None:
    assert termination_rule(make_env("mbrl/Hopper-v0", gravity=1.5, target_speed=1.0)) is not None
