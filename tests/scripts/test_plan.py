"""plan end to end: equal budgets, the oracle above its baselines, a saved agent, resuming, bad input."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))
sys.path.append(str(Path(__file__).resolve().parent))  # where my_task.py is

import plan  # noqa: E402
from work.plan import settled  # noqa: E402

from agents.mbpo import MBPO, MBPOSettings  # noqa: E402
from agents.mpc import MPC, MPCSettings  # noqa: E402
from agents.planners import RandomShooting  # noqa: E402
from envs.tasks.make import make_env  # noqa: E402
from mbrl_bilevel.imagination.settings import Imagination  # noqa: E402
from mbrl_bilevel.pages.page import write_page  # noqa: E402
from mbrl_bilevel.studies.arguments import RunArgs  # noqa: E402
from mbrl_bilevel.studies.launching import launch  # noqa: E402
from mbrl_bilevel.studies.run_folder import RunFolder  # noqa: E402
from mbrl_bilevel.training.settings import Schedule  # noqa: E402

#: No bar, no table and no page.
QUIET = ["--quiet", "--no-report"]

SHORT = ["--plans", "24", "--horizon", "6", "--max-episode-steps", "12", *QUIET]
ORACLE = [*SHORT, "--env-id", "InvertedPendulum-v5", "Reacher-v5", "--seeds", "2"]


def metrics(out: Path) -> Any:
    found = json.loads((out / "metrics.json").read_text())
    for row in found["rows"]:
        del row["wall_seconds"]
    return found


def test_the_oracle_is_above_its_baselines_and_a_cut_run_goes_on(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for out in (whole, cut):
        launch(plan.Args, plan.main, [*ORACLE, "--out", str(out)])
    found = metrics(whole)
    mean = {(s["env_id"], s["planner"]): s["return"]["mean"] for s in found["summary"]}
    assert len(mean) == 10
    assert write_page([whole], tmp_path / "page.html").plots >= 2
    for planner in ("icem", "cem", "random"):
        # Upright all the while; doing nothing and random actions drop it.
        assert mean["InvertedPendulum-v5", planner] == 12.0
        assert mean["Reacher-v5", planner] > mean["Reacher-v5", "random-actions"]
    assert mean["InvertedPendulum-v5", "random-actions"] < 12.0
    for row in found["rows"]:
        planned = row["planner"] in ("icem", "cem", "random")
        # 24 candidates of 6 steps at each step; iCEM's decay may leave one over.
        assert (22 if planned else 0) * 6 * row["steps"] <= row["model_steps"]
        assert row["model_steps"] <= (24 if planned else 0) * 6 * row["steps"]
    assert (whole / "figures" / "planners.png").stat().st_size > 5_000

    rows = (cut / "rows.jsonl").read_text().splitlines(keepends=True)
    (cut / "rows.jsonl").write_text("".join(rows[:3]))
    (cut / "metrics.json").unlink()
    launch(plan.Args, plan.main, [*ORACLE, "--out", str(cut), "--resume"])
    assert metrics(cut) == found


def test_plans_in_the_model_of_a_saved_agent(tmp_path: Path) -> None:
    env = make_env("Line-v0", import_module="my_task")
    settings = MPCSettings(
        method="mse",
        planner=RandomShooting(horizon=4, population=20),
        imagination=Imagination(particles=2),
        members=2,
        hidden=(16,),
        schedule=Schedule(steps=200, learning_rate=1e-2),
        learning_starts=100,
        value=None,
    )
    agent = MPC(env, settings).learn(100)
    agent.save(tmp_path / "agent.safetensors")
    full = assert_it_plans(tmp_path / "agent.safetensors", tmp_path / "a")
    half = assert_it_plans(
        tmp_path / "agent.safetensors", tmp_path / "b", "--precision", "bfloat16"
    )
    # What "auto" comes to is said, and is the same for all of a run however it was stopped.
    assert precisions(tmp_path / "a") == {"float32"}
    assert precisions(tmp_path / "b") == {"bfloat16"}
    auto = assert_it_plans(tmp_path / "agent.safetensors", tmp_path / "c", "--precision", "auto")
    (chosen,) = precisions(tmp_path / "c")
    assert auto == {"float32": full, "bfloat16": half}[chosen]
    screened = assert_it_plans(tmp_path / "agent.safetensors", tmp_path / "d", "--screen", "0.5")
    assert {row.get("screen") for row in metrics(tmp_path / "d")["rows"]} == {None, 0.5}
    # It plans otherwise, and as well: to a tenth of what planning gains.
    for planner in ("icem", "cem", "random"):
        gained = full[planner] - full["random-actions"]
        for other in (half, screened):
            assert 0.0 < abs(other[planner] - full[planner]) < 0.1 * gained


def precisions(out: Path) -> set[str]:
    """Of the rows that plan in the saved model: these, and no other ones, have it."""
    rows = metrics(out)["rows"]
    assert [r for r in rows if "precision" in r] == [
        r for r in rows if r["planner"] in ("icem", "cem", "random")
    ]
    return {row["precision"] for row in rows if "precision" in row}


def test_auto_is_settled_once_and_a_resumed_run_keeps_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mbrl_bilevel.policies.fast_inference.fastest_precision", lambda: "float32")
    with RunFolder("plan", RunArgs(out=tmp_path / "run")) as run:
        args = plan.Args(model="agent.safetensors", precision="auto")
        assert settled(args, run).precision == "float32"
        run.rows.append({"planner": "nothing", "seed": 0})
        run.rows.append({"planner": "icem", "seed": 0, "precision": "bfloat16"})
        assert settled(args, run).precision == "bfloat16"
        assert settled(replace(args, precision="float32"), run).precision == "float32"


#: An agent of MBPO that is done with its first fit after 100 steps.
MBPO_SETTINGS = MBPOSettings(
    method="mse",
    members=2,
    hidden=(16,),
    schedule=Schedule(steps=200, learning_rate=1e-2),
    learning_starts=100,
    rollouts_per_step=1,
    updates_per_step=1,
)


def test_plans_in_the_model_of_an_mbpo_agent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = make_env("Line-v0", import_module="my_task")
    path = tmp_path / "agent.safetensors"
    MBPO(env, MBPO_SETTINGS).learn(100).save(path)
    assert_it_plans(path, tmp_path / "a")
    # Without a model, as sac's: one line.
    MBPO(env, replace(MBPO_SETTINGS, real_share=1.0)).learn(5).save(path)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        assert_it_plans(path, tmp_path / "b")
    assert stop.value.code == 2
    assert "--model: the agent in" in (told := capsys.readouterr().err)
    assert told.count("\n") == 1


def assert_it_plans(agent: Path, out: Path, *more: str) -> dict[str, float]:
    """Above doing nothing and acting at random; the mean returns."""
    options = [*SHORT, "--env-id", "Line-v0", "--import-module", "my_task", "--model", str(agent)]
    launch(plan.Args, plan.main, [*options, *more, "--out", str(out)])
    mean = {s["planner"]: s["return"]["mean"] for s in metrics(out)["summary"]}
    for planner in ("icem", "cem", "random"):
        assert mean[planner] > max(mean["nothing"], mean["random-actions"])
    return mean


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--plans", "2", "--planners", "cem"], "--plans must be at least --iterations"),
        (["--env-id", "Pendulum-v1"], "MuJoCo environment"),
        (["--model", "nowhere.safetensors"], "--model: checkpoint nowhere.safetensors"),
        (["--model", "x", "--termination", "my_task"], "error: --termination: rule 'my_task'"),
        (["--model", "x", "--reward", "my_task"], "error: --reward: rule 'my_task'"),
        (["--elite-fraction", "2"], "error: --elite-fraction must be"),
        (["--noise-beta", "-1"], "error: --noise-beta must be"),
        (
            ["--planners", "mppi", "random", "--add-middle"],
            "--add-middle is of --planners icem and cem, mppi and random would ignore it",
        ),
        (
            ["--planners", "cem", "--noise-beta", "1"],
            "--noise-beta is of --planners icem, cem would ignore it",
        ),
        (
            ["--planners", "mppi", "--elite-fraction", "0.5"],
            "--elite-fraction is of --planners icem and cem",
        ),
        (["--reward", "known"], "the oracle needs none"),
        (["--precision", "bfloat16"], "the oracle needs none"),
        (["--screen", "0.5"], "the oracle needs none"),
        (
            ["--model", "agent.safetensors", "--screen", "0"],
            "--screen must be above 0 and at most 1",
        ),
        (["--device", "cpu"], "the oracle needs none"),
    ],
)
def test_bad_options_are_told_in_one_line(
    options: list[str], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        launch(plan.Args, plan.main, [*QUIET, *options, "--out", str(tmp_path / "a")])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert what in error
    assert error.count("\n") == 1
