"""Videos of train, plan and enjoy: real pictures, imagined ones beside them, and one line where none can be made."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import enjoy
import plan
import train

from envs.known.shown import Shown
from envs.tasks.drawing import choose_backend, make_drawable, picture_of
from envs.tasks.make import make_env
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.launching import launch, launch_tool
from mbrl_bilevel.studies.video import write_video

QUIET = ["--quiet", "--no-report"]
TRAIN = [
    *["--env-id", "Reacher-v5", "--agent", "mpc", *QUIET, "--members", "1", "--hidden", "8"],
    *["--particles", "1", "--steps", "60", "--eval-every", "60", "--eval-episodes", "1"],
    *["--learning-starts", "50", "--train-steps", "20", "--horizon", "2", "--population", "4"],
    *["--iterations", "1"],
]


@pytest.fixture(scope="module", autouse=True)
def _drawn() -> None:
    """Skipped, with the reason, on a machine without EGL and OSMesa."""
    try:
        make_drawable("Reacher-v5").close()
    except InvalidInputError as error:
        pytest.skip(str(error))


def size_of(path: Path) -> tuple[int, int, int]:
    """Width, height and number of pictures of a video."""
    import imageio_ffmpeg

    reader = imageio_ffmpeg.read_frames(str(path))
    width, height = next(reader)["size"]
    return width, height, sum(1 for _ in reader)


def test_train_films_its_agent_and_enjoy_films_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    launch(train.Args, train.main, [*TRAIN, "--video", "--out", str(out)])
    told = json.loads(capsys.readouterr().out)
    assert told["video"] == str(out / "videos" / "agent.mp4")
    # What happened and what was imagined side by side, below them the curves; 50 steps and the start.
    assert size_of(out / "videos" / "agent.mp4") == (960, 606, 51)
    launch_tool(enjoy.Args, enjoy.main, [str(out), "--steps", "3"])
    again: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert again["env_id"] == "Reacher-v5"  # of the run
    assert size_of(Path(again["video"]))[2] == again["steps"] + 1 == 4
    with pytest.raises(SystemExit) as stop:
        launch_tool(enjoy.Args, enjoy.main, [str(tmp_path)])
    assert stop.value.code == 2
    assert "holds no agent" in capsys.readouterr().err


def test_plan_films_each_planner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--env-id", "Reacher-v5", "--planners", "icem", "--plans", "4", "--horizon", "2"]
    options += ["--iterations", "1", "--seeds", "1", "--max-episode-steps", "3", "--video"]
    launch(plan.Args, plan.main, [*options, *QUIET, "--out", str(tmp_path / "a")])
    (video,) = json.loads(capsys.readouterr().out)["videos"]
    assert Path(video).name == "Reacher-v5-icem.mp4"
    assert size_of(Path(video)) == (480, 386, 4)  # the simulator imagines nothing


@pytest.mark.parametrize("env_id", ["Reacher-v5", "HalfCheetah-v5"])
def test_a_real_state_is_shown_as_it_was(env_id: str) -> None:
    env, shown = make_drawable(env_id), Shown(make_drawable(env_id))
    env.reset(seed=0)
    data: Any = env.unwrapped
    for _ in range(5):
        obs, *_ = env.step(env.action_space.sample())
    mujoco.mj_forward(data.model, data.data)  # what is drawn lags by one of MuJoCo's steps
    place = data.data.qpos.copy()
    place[0] -= data.dt * data.data.qvel[0] if env_id == "HalfCheetah-v5" else 0.0
    (picture,) = shown.pictures(np.asarray(obs)[None], place)
    apart = np.abs(picture.astype(int) - picture_of(env).astype(int))
    assert apart.mean() < 1.0
    assert picture.std() > 5.0  # not an empty one
    (held,) = shown.pictures(np.full((1, len(obs)), np.nan), place)
    assert (held == picture).all()


def test_a_task_whose_observation_hides_its_state_is_not_shown() -> None:
    assert not Shown(make_env("Pusher-v5")).knows


@pytest.mark.filterwarnings("ignore:Exception ignored in.*OffScreenViewer")
def test_what_cannot_be_drawn_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "nonsense")
    with pytest.raises(InvalidInputError, match=r"'Reacher-v5' cannot be drawn here .* libegl1"):
        make_drawable("Reacher-v5")
    with pytest.raises(InvalidInputError, match="there is none"):
        write_video(tmp_path / "a.mp4", [], 25.0)
    assert not list(tmp_path.iterdir())


def test_a_screen_or_a_choice_of_the_users_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    choose_backend()
    assert os.environ["MUJOCO_GL"] == "glfw"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setenv("DISPLAY", ":0")
    choose_backend()
    assert "MUJOCO_GL" not in os.environ
