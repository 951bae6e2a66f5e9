"""Every known termination against the real task, and rules loaded from a user's module."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from torch import Tensor

from envs.known.endings import load_rule, termination_rule
from envs.tasks.make import make_env
from mbrl_bilevel.base.errors import InvalidInputError

# How far from the start state the visited states are spread: positions (m, rad), velocities (/s).
SPREAD = {
    "Ant-v5": (0.6, 2.0),
    "Hopper-v5": (0.15, 8.0),
    "Humanoid-v5": (0.8, 3.0),
    "InvertedDoublePendulum-v5": (0.5, 4.0),
    "InvertedPendulum-v5": (0.2, 2.0),
    "Walker2d-v5": (0.6, 8.0),
}
ENDLESS = ["HalfCheetah-v5", "HumanoidStandup-v5", "Pusher-v5", "Reacher-v5", "Swimmer-v5"]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in SPREAD),
    ("Ant-v5", {"healthy_z_range": (0.6, 0.9)}),
    ("Ant-v5", {"exclude_current_positions_from_observation": False}),
    ("Ant-v5", {"include_cfrc_ext_in_observation": False}),
    ("Hopper-v5", {"healthy_state_range": (-5.0, 4.0), "healthy_angle_range": (-0.05, 0.3)}),
    ("Hopper-v5", {"exclude_current_positions_from_observation": False}),
    ("Humanoid-v5", {"healthy_z_range": (1.3, 1.5), "include_cinert_in_observation": False}),
    ("Humanoid-v5", {"exclude_current_positions_from_observation": False}),
    ("Walker2d-v5", {"healthy_z_range": (1.1, 1.4), "healthy_angle_range": (-0.1, 0.5)}),
    ("Walker2d-v5", {"exclude_current_positions_from_observation": False}),
]


def visit(
    env: gym.Env[Any, Any], episodes: int, steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """obs, action, next_obs and terminated [N, …] of random steps from states around the start."""
    rng = np.random.default_rng(0)
    base: Any = env.unwrapped
    assert base.spec is not None
    position, velocity = SPREAD.get(base.spec.id, (0.1, 1.0))
    assert isinstance(env.action_space, gym.spaces.Box)
    box = env.action_space.low, env.action_space.high
    rows: list[tuple[npt.NDArray[Any], ...]] = []
    for episode in range(episodes):
        env.reset(seed=episode)
        scale = rng.uniform()
        base.set_state(
            base.data.qpos + scale * position * rng.uniform(-1, 1, base.model.nq),
            base.data.qvel + scale * velocity * rng.normal(size=base.model.nv),
        )
        obs = base._get_obs()
        for _ in range(steps):  # also beyond the end of the episode: more of the unhealthy states
            action = rng.uniform(*box)
            next_obs, _, terminated, _, _ = env.step(action)
            rows.append((obs, action, next_obs, np.array(terminated)))
            obs = next_obs
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)]
    return columns[0], columns[1], columns[2], columns[3]


@pytest.mark.parametrize(("name", "kwargs"), VARIANTS)
def test_rule_agrees_with_the_real_termination(name: str, kwargs: dict[str, Any]) -> None:
    env = make_env(name, **kwargs)
    obs, action, next_obs, terminated = visit(env, episodes=150, steps=15)
    rule = termination_rule(env)
    assert rule is not None
    assert 0.05 < terminated.float().mean() < 0.95
    assert torch.equal(rule(obs, action, next_obs), terminated)


@pytest.mark.parametrize("name", ENDLESS)
def test_tasks_without_an_end_never_terminate(name: str) -> None:
    env = make_env(name)
    obs, action, next_obs, terminated = visit(env, episodes=4, steps=10)
    rule = termination_rule(env)
    assert rule is not None
    assert not terminated.any()
    assert torch.equal(rule(obs, action, next_obs), terminated)


@pytest.mark.parametrize("name", ["Ant-v5", "Hopper-v5", "Humanoid-v5", "Walker2d-v5"])
def test_terminate_when_unhealthy_can_be_switched_off(name: str) -> None:
    healthy, endless = make_env(name), make_env(name, terminate_when_unhealthy=False)
    obs, action, next_obs, terminated = visit(endless, episodes=30, steps=5)
    ends, never = termination_rule(healthy), termination_rule(endless)
    assert ends is not None
    assert never is not None
    assert not terminated.any()
    assert torch.equal(never(obs, action, next_obs), terminated)
    assert ends(obs, action, next_obs).any()


def test_double_pendulum_differs_only_within_the_lag_of_its_tip() -> None:
    """The task reads the tip's height from inside the last integrator step, not from its end."""
    env = make_env("InvertedDoublePendulum-v5")
    base: Any = env.unwrapped
    rule = termination_rule(env)
    assert rule is not None
    rng = np.random.default_rng(1)
    seen: list[bool] = []
    for seed in range(150):
        env.reset(seed=seed)
        terminated = False
        while not terminated:
            obs, _, terminated, _, _ = base.step(rng.choice([-1.0, 1.0], size=1))
            shown = torch.from_numpy(obs)
            tip = base.data.site_xpos[0, 2]
            if abs(tip - 1) > 2e-4:
                assert bool(rule(shown, shown, shown)) == terminated
                seen.append(terminated)
    assert sum(seen) > 140
    assert len(seen) - sum(seen) > 300


def test_double_pendulum_takes_its_lengths_from_the_model(tmp_path: Path) -> None:
    base: Any = make_env("InvertedDoublePendulum-v5").unwrapped
    longer = Path(base.fullpath).read_text().replace('pos="0 0 .6"', 'pos="0.1 0 .9"')
    (tmp_path / "longer.xml").write_text(longer)
    env = make_env("InvertedDoublePendulum-v5", xml_file=str(tmp_path / "longer.xml"))
    obs, action, next_obs, terminated = visit(env, episodes=60, steps=20)
    rule, standard = termination_rule(env), termination_rule(base)
    assert rule is not None
    assert standard is not None
    assert torch.equal(rule(obs, action, next_obs), terminated)
    assert not torch.equal(standard(obs, action, next_obs), terminated)


@pytest.mark.parametrize("name", sorted(SPREAD))
def test_nan_ends_the_episode_where_the_real_task_says_so(name: str) -> None:
    env = make_env(name)
    base: Any = env.unwrapped
    rule = termination_rule(env)
    assert rule is not None
    hidden = {"Ant-v5": 2, "Humanoid-v5": 2, "Hopper-v5": 1, "Walker2d-v5": 1}.get(name, 0)
    answers = []
    for entry in range(hidden, base.model.nq + base.model.nv):

        def simulation_breaks(*_: Any, entry: int = entry) -> None:
            state = np.concatenate([base.data.qpos, base.data.qvel])
            state[entry] = np.nan
            base.data.qpos[:], base.data.qvel[:] = np.split(state, [base.model.nq])
            mujoco.mj_kinematics(base.model, base.data)

        env.reset(seed=0)
        base.do_simulation = simulation_breaks
        next_obs, _, terminated, _, _ = base.step(np.zeros(base.model.nu))
        shown = torch.from_numpy(next_obs)
        assert bool(rule(shown, shown, shown)) == bool(terminated), entry
        answers.append(bool(terminated))
    # The double pendulum asks whether NaN <= 1; all others ask whether NaN is healthy.
    assert any(answers) == ("Double" not in name)


def test_leading_dimensions_device_and_single_precision() -> None:
    env = make_env("Walker2d-v5")
    obs, action, next_obs, terminated = visit(env, episodes=20, steps=6)
    rule = termination_rule(env)
    assert rule is not None
    result = rule(*(x.float().reshape(4, 5, 6, -1) for x in (obs, action, next_obs)))
    assert result.shape == (4, 5, 6)
    assert result.dtype == torch.bool
    assert torch.equal(result.flatten(), terminated)


def test_hopper_without_a_visible_velocity_limit_has_no_rule() -> None:
    """Velocities are shown clipped to 10: a limit of 20 may be passed unseen."""
    assert termination_rule(make_env("Hopper-v5", healthy_state_range=(-20.0, 20.0))) is None
    assert termination_rule(make_env("Hopper-v5", healthy_state_range=(-5.0, 20.0))) is None


def test_hopper_state_range_counts_for_the_angle_too() -> None:
    env = make_env("Hopper-v5", healthy_angle_range=(-1000.0, 1000.0))
    base: Any = env.unwrapped
    rule = termination_rule(env)
    assert rule is not None
    for angle, ends in [(0.0, False), (90.0, False), (110.0, True), (-110.0, True)]:
        env.reset(seed=0)
        base.set_state(base.init_qpos + angle * np.eye(6)[2], base.init_qvel)
        base.do_simulation = lambda *_: None
        next_obs, _, terminated, _, _ = base.step(np.zeros(3))
        shown = torch.from_numpy(next_obs)
        assert bool(rule(shown, shown, shown)) == bool(terminated) == ends


class LaxAnt(AntEnv):
    """Healthy at any height."""

    @property
    def is_healthy(self) -> bool:
        return True


class ShiftedHopper(HopperEnv):
    """Shows its observation in another order."""

    def _get_obs(self) -> npt.NDArray[np.float64]:
        return np.concatenate([self.data.qvel, self.data.qpos])


class HeavyHopper(HopperEnv):
    """Another torso; the same health."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.model.body_mass[1] *= 2

    def reset_model(self) -> npt.NDArray[np.float64]:
        self.set_state(self.init_qpos, self.init_qvel)  # type: ignore[no-untyped-call]
        return np.asarray(self._get_obs())  # type: ignore[no-untyped-call]


def test_a_subclass_keeps_the_rule_only_while_it_leaves_termination_alone() -> None:
    assert termination_rule(LaxAnt()) is None
    assert termination_rule(ShiftedHopper()) is None
    assert termination_rule(HeavyHopper()) is not None


def test_wrappers_keep_the_rule_only_while_they_leave_the_observation_alone() -> None:
    env = make_env("Hopper-v5")
    wrappers = gym.wrappers
    assert termination_rule(wrappers.RescaleAction(env, np.float32(-2), np.float32(2))) is not None
    assert termination_rule(wrappers.RecordEpisodeStatistics(env)) is not None
    assert termination_rule(wrappers.ClipReward(env, 0.0, 1.0)) is not None
    assert termination_rule(wrappers.TimeAwareObservation(env)) is None
    assert termination_rule(wrappers.NormalizeObservation(env)) is None


def test_an_unknown_task_has_no_rule() -> None:
    assert termination_rule(make_env("Pendulum-v1")) is None


def test_load_rule_calls_the_users_function(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rules_of_mine.py").write_text(
        "def far(obs, action, next_obs):\n    return next_obs[..., 0] > action[..., 0]\n"
        "def scalar(obs, action, next_obs):\n    return next_obs.sum() > 0\n"
        "number = 3\n"
        "def likely(obs, action, next_obs):\n    return next_obs[..., 0] / 4\n"
        "def score(obs, action, next_obs):\n    return next_obs[..., 0] - 2\n"
        "def undefined(obs, action, next_obs):\n    return next_obs[..., 0] * float('nan')\n"
        "def torn(obs, action, next_obs):\n    return next_obs[..., 7]\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    obs, action = torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[2.0], [2.0]])
    assert load_rule("rules_of_mine:far")(obs, action, obs).tolist() == [False, True]
    with pytest.raises(InvalidInputError, match=r"shape \(2,\).*got \(\)"):
        load_rule("rules_of_mine:scalar")(obs, action, obs)
    assert load_rule("rules_of_mine:likely")(obs, action, obs).tolist() == [0.25, 0.75]
    for name in ("score", "undefined"):
        with pytest.raises(InvalidInputError, match="True or False, or a probability from 0 to 1"):
            load_rule(f"rules_of_mine:{name}")(obs, action, obs)
    with pytest.raises(InvalidInputError, match=r"it raised IndexError.*obs \[\.\.\., O\]"):
        load_rule("rules_of_mine:torn")(obs, action, obs)
    with pytest.raises(InvalidInputError, match="has no 'near'"):
        load_rule("rules_of_mine:near")
    with pytest.raises(InvalidInputError, match="not a function"):
        load_rule("rules_of_mine:number")


@pytest.mark.parametrize("spec", ["rules_of_mine", ":far", "rules_of_mine:", ""])
def test_load_rule_tells_the_form(spec: str) -> None:
    with pytest.raises(InvalidInputError, match="form module:function"):
        load_rule(spec)


def test_load_rule_tells_of_a_missing_module() -> None:
    with pytest.raises(InvalidInputError, match=r"rule 'no_such_module:far'.*cannot import"):
        load_rule("no_such_module:far")
