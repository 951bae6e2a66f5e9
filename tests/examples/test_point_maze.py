"""The example of a user's own task: it can be made, and is an environment like another."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
from gymnasium.utils.env_checker import check_env

from agents.presets import preset_for
from envs.tasks.make import make_env

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_maze_is_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gymnasium_robotics")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    env = make_env("FlatPointMaze-v0", import_module="point_maze")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that its spaces are unbounded
        check_env(env.unwrapped, skip_render_check=True)
    preset = preset_for(env)
    assert (preset.name, preset.learner["gamma"]) == ("default", 0.99)
    assert env.spec is not None
    assert env.spec.max_episode_steps == 300
    env.reset(seed=0)
    _, reward, *_ = env.step(env.action_space.sample())
    assert 0.0 < float(reward) < 1.0
    env.close()
