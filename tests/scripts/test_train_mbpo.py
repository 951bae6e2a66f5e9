"""train with mbpo and sac, and offline, end to end on a tiny task."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.collect import RandomBehaviour, collect
from agents.mbpo import MBPO
from envs.make import make_env
from envs.offline import save_minari

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))
sys.path.append(str(Path(__file__).resolve().parent))  # where my_task.py is

import offline  # noqa: E402
import train  # noqa: E402
from _run import launch  # noqa: E402

OWN = ["--import-module", "my_task", "--env-id", "Line-v0", "--quiet"]
NET = ["--members", "2", "--hidden", "16", "--policy-hidden", "8", "--train-steps", "40"]
TRAIN = [
    *[*OWN, *NET, "--model", "nll", "--steps", "120", "--eval-every", "60", "--eval-episodes", "2"],
    *["--learning-starts", "40", "--refit-every", "40", "--imagine-every", "20"],
    *["--updates-per-step", "2", "--batch-size", "16", "--rollouts-per-step", "4"],
]


def metrics(out: Path) -> Any:
    found = json.loads((out / "metrics.json").read_text())
    for row in [found, *found.get("rows", [])]:
        del row["wall_seconds" if "wall_seconds" in row else "data"]
    return found


@pytest.mark.parametrize("agent", ["mbpo", "sac"])
def test_it_learns_saves_and_goes_on_as_if_never_stopped(agent: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = [*TRAIN, "--agent", agent]
    launch(train.Args, train.main, [*options, "--out", str(whole)])
    found = metrics(whole)
    assert [point["step"] for point in found["returns"]] == [60, 120]
    assert found["env_steps"] == 120
    # Stopped right after the first evaluation: the run ends at 60 steps, then is asked for 120.
    launch(train.Args, train.main, [*options, "--steps", "60", "--out", str(cut)])
    for name in ("metrics.json", "summary.json"):
        (cut / name).unlink()
    config = json.loads((cut / "config.json").read_text())
    config["args"]["steps"] = 120
    (cut / "config.json").write_text(json.dumps(config))
    launch(train.Args, train.main, [*options, "--out", str(cut), "--resume"])
    assert metrics(cut) == found


def test_a_policy_is_learned_from_a_data_set_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    env = make_env("Line-v0", import_module="my_task")
    space: Any = env.action_space
    random = RandomBehaviour(space, np.random.default_rng(0))
    data = collect(env, random, 250, seed=0)
    save_minari(data, "test/line-v0", env)
    options = [*OWN, *NET, "--minari", "test/line-v0", "--updates", "30", "--seeds", "1"]
    options += ["--eval-episodes", "2", "--policies", "clone", "mopo"]
    launch(offline.Args, offline.main, [*options, "--out", str(tmp_path / "a")])
    found = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert [(row["policy"], row["seed"]) for row in found["rows"]] == [("clone", 0), ("mopo", 0)]
    whole = np.bincount(data.episode, data.reward)[:12]  # the last one was cut by the collector
    assert found["data"]["whole_episodes"] == 12
    assert found["data"]["mean"] == pytest.approx(whole.mean(), rel=1e-5)
    assert found["data"]["best"] == pytest.approx(whole.max(), rel=1e-5)
    kept = sorted(path.name for path in (tmp_path / "a" / "checkpoints").iterdir())
    assert kept == ["mopo-0.safetensors"]  # a clone is only the baseline
    policy = MBPO.load(tmp_path / "a" / "checkpoints" / kept[0], env)
    assert env.action_space.contains(policy.predict(np.zeros(2))[0])
    launch(offline.Args, offline.main, [*options, "--out", str(tmp_path / "b")])
    assert metrics(tmp_path / "b") == metrics(tmp_path / "a")


@pytest.mark.parametrize(
    ("script", "options", "told"),
    [
        (train, ["--agent", "mpbo"], "--agent"),
        (train, ["--agent", "mbpo", "--updates-per-step", "0"], "--updates-per-step"),
        (train, ["--agent", "mbpo", "--real-share", "1.5"], "real_share"),
        (train, ["--agent", "mbpo", "--rollout-growth", "5", "5"], "grows"),
        (train, ["--agent", "sac", "--policy-learning-rate", "nan"], "--policy-learning-rate"),
        (train, ["--agent", "sac", "--env-id", "CartPole-v1"], "SAC cannot be made"),
        (offline, ["--minari", "none-v0"], "minari download"),
        (offline, ["--minari", "none-v0", "--penalty", "-1"], "--penalty"),
        (offline, ["--minari", "none-v0", "--policies", "bc"], "--policies"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    script: Any, options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        launch(script.Args, script.main, [*options, "--quiet", "--out", str(tmp_path / "run")])
    err = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert "\n" not in err
    assert told in err
