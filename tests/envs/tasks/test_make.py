"""make_env: what it makes, one clear error for each mistake, and a quiet MuJoCo."""

from __future__ import annotations

import builtins
import logging
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary

from envs import mujoco_log
from envs.tasks.make import make_env
from mbrl_bilevel.base.errors import InvalidInputError


class Blank(gym.Env[Any, Any]):
    """Has the spaces it is told to have and does nothing."""

    def __init__(self, **spaces: gym.Space[Any]) -> None:
        self.observation_space, self.action_space = spaces["obs"], spaces["action"]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers and imports is gone afterwards."""
    before = dict(gym.registry)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    gym.registry.clear()
    gym.registry.update(before)


def test_makes_a_task_with_its_arguments() -> None:
    env = make_env("Hopper-v5", healthy_z_range=(0.3, 9.0), max_episode_steps=7)
    base: Any = env.unwrapped
    assert base._healthy_z_range == (0.3, 9.0)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 7


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("HalfCheeta-v5", "HalfCheetah-v5"),
        ("Reacher-v9", "Reacher-v5"),
        ("halfcheetah-V5", "HalfCheetah-v5"),
        ("HOPPER", "Hopper-v5"),
        ("InvertedDoublePendulumn-v5", "InvertedDoublePendulum-v5"),
        ("Walker-v5", "Walker2d-v5"),
    ],
)
def test_unknown_task_suggests_the_nearest(wrong: str, nearest: str) -> None:
    with pytest.raises(InvalidInputError, match=f"--env-id '{wrong}'.*did you mean '{nearest}'"):
        make_env(wrong)


@pytest.mark.parametrize(
    "wrong", ["", "Zzyzx-v0", "a b c", "no_such_module:Task-v0", "x/Hopper-v5"]
)
def test_unknown_task_is_one_error_whatever_it_looks_like(wrong: str) -> None:
    with pytest.raises(InvalidInputError, match="--env-id"):
        make_env(wrong)


def test_a_task_of_an_old_version_points_to_the_new_one() -> None:
    with pytest.raises(InvalidInputError, match=r"v2 and v3.*did you mean 'HalfCheetah-v5'"):
        make_env("HalfCheetah-v3")


def test_gymnasium_is_quiet_where_our_line_says_it(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_env("Pendulum").close()  # without a version: the newest
        with pytest.raises(InvalidInputError):
            make_env("Pendulm-v1")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", ["ValueError", "TypeError", "KeyError"])
def test_a_task_that_cannot_be_made_is_told(registry: None, error: str) -> None:
    def make(**_: Any) -> Any:
        raise getattr(builtins, error)("no such\nmotor")

    gym.register("Broken-v0", entry_point=make)
    with pytest.raises(InvalidInputError, match=r"--env-id 'Broken-v0': it cannot be made.*motor"):
        make_env("Broken-v0")


def test_unknown_argument_is_named() -> None:
    with pytest.raises(InvalidInputError, match=r"--env-id 'Hopper-v5'.*colour"):
        make_env("Hopper-v5", colour="red")


def test_imports_the_users_module_from_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, registry: None
) -> None:
    (tmp_path / "tasks_of_mine.py").write_text(
        "import gymnasium as gym\n"
        "gym.register('Mine-v0', 'gymnasium.envs.mujoco.reacher_v5:ReacherEnv')\n"
    )
    monkeypatch.chdir(tmp_path)
    env = make_env("Mine-v0", import_module="tasks_of_mine")
    assert env.observation_space.shape == (10,)


@pytest.mark.parametrize(
    ("file", "name", "cause"),
    [
        ("there", "not_there", "ModuleNotFoundError"),
        ("there", "there.py", "ModuleNotFoundError"),
        ("there", ".", "TypeError"),
        ("broken", "broken", "ZeroDivisionError"),
        ("leaving", "leaving", "SystemExit"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    registry: None,
    file: str,
    name: str,
    cause: str,
) -> None:
    content = {"there": "", "broken": "1 / 0\n", "leaving": "raise SystemExit(0)\n"}[file]
    (tmp_path / f"{file}.py").write_text(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidInputError, match=f"--import-module '{name}'.*{cause}"):
        make_env("Hopper-v5", import_module=name)


FLAT, TORQUE = Box(-np.inf, np.inf, (3,)), Box(-1, 1, (2,))


@pytest.mark.parametrize(
    ("obs", "action", "message"),
    [
        (Dict({"a": FLAT}), TORQUE, "observation space.*got Dict.*FlattenObservation"),
        (Box(0, 255, (8, 8), np.uint8), TORQUE, "observation space.*got Box.*FlattenObservation"),
        (Discrete(5), TORQUE, "observation space.*got Discrete.*FlattenObservation"),
        (FLAT, MultiBinary(3), "action space.*got MultiBinary"),
        (FLAT, Discrete(1), "action space.*a choice.*got Discrete"),
        (FLAT, Box(-1, 1, (2, 2)), "action space.*got Box.*TransformAction"),
        (FLAT, Box(-1, np.inf, (2,)), "action space.*finite bounds.*TransformAction"),
        (FLAT, Box(-np.inf, 1, (2,)), "action space.*finite bounds.*TransformAction"),
    ],
)
def test_other_spaces_are_refused_with_a_remedy(
    registry: None, obs: gym.Space[Any], action: gym.Space[Any], message: str
) -> None:
    gym.register("Blank-v0", Blank)
    with pytest.raises(InvalidInputError, match=f"--env-id 'Blank-v0'.*{message}"):
        make_env("Blank-v0", obs=obs, action=action)
    assert make_env("Blank-v0", obs=FLAT, action=TORQUE).observation_space == FLAT
    assert make_env("Blank-v0", obs=FLAT, action=Discrete(2)).action_space == Discrete(2)


@pytest.mark.parametrize(
    "made",
    [
        "from envs.tasks.make import make_env; env = make_env('HalfCheetah-v5')",
        "import gymnasium, envs.tasks.variations; env = gymnasium.make('mbrl/HalfCheetah-v0', length=1.1)",
        "import gymnasium, envs.known.endings; env = gymnasium.make('HalfCheetah-v5')",
    ],
)
def test_mujoco_stays_quiet_and_writes_no_log(made: str, tmp_path: Path) -> None:
    """In a process of its own: HalfCheetah is deprecated XML, then twice an unstable simulation."""
    program = (
        "import numpy as np\n"
        f"{made}\n"
        "for time in (0.0, 1.0):\n"
        "    env.reset()\n"
        "    env.unwrapped.data.time = time\n"
        "    env.unwrapped.data.qpos[:] = np.nan\n"
        "    env.step(env.action_space.sample())\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{program}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(tmp_path.iterdir()) == []
    assert "deprecated" not in done.stderr
    assert done.stderr.count("unstable") == 1


def test_warnings_go_to_the_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each kind is told once in a process, and another test may have met this one.
    monkeypatch.setattr(mujoco_log, "reported", set())
    with caplog.at_level(logging.WARNING, logger="mujoco"):
        env = make_env("Reacher-v5")
        env.reset(seed=0)
        base: Any = env.unwrapped
        base.data.qvel[:] = np.nan
        env.step(np.zeros(2, dtype=np.float32))
    assert any("QVEL" in record.getMessage() for record in caplog.records)
