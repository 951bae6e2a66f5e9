"""compare with observations that are not the task's."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))

import compare  # noqa: E402
import train  # noqa: E402

from mbrl_bilevel.base.checkpoint import load_checkpoint  # noqa: E402
from mbrl_bilevel.studies.launching import launch  # noqa: E402


def test_rows_tell_of_the_task_alone_and_of_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: None)
    options = [
        *["--env-id", "Reacher-v5", "--distractor", "noise:3", "--seeds", "1", "--quiet"],
        *["--methods", "bilevel-return", "mse", "--n-train", "300", "--n-test", "200"],
        *["--members", "2", "--hidden", "16", "--train-steps", "300", "--horizons", "1"],
    ]
    launch(compare.Args, compare.main, [*options, "--out", str(tmp_path / "run")])
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    ours, mse = found["rows"]
    for row in (ours, mse):
        assert row["dataset"] == "Reacher-v5+noise:3"
        # The noise is new at each step, and most of what is wrong is wrong there.
        assert row["task_rmse"] < row["nrmse"]
        assert 0.0 < row["return_error"] < 2.0
    assert mse["weights"] == {}
    # Where the goal is never changes within an episode: it is no target.
    assert set(ours["weights"]) == {
        *(f"observation {i}" for i in range(10) if i not in (4, 5)),
        *(f"other: channel {i}" for i in range(3)),
        "reward",
    }
    assert {"task_rmse", "task_nll", "return_error"} <= found["summary"][0].keys()


def test_an_agent_trains_with_what_is_appended_and_its_files_say_so(tmp_path: Path) -> None:
    options = [
        *["--env-id", "Pendulum-v1", "--distractor", "noise:2", "--agent", "mpc", "--quiet"],
        *[
            "--steps",
            "230",
            "--eval-every",
            "230",
            "--eval-episodes",
            "1",
            "--learning-starts",
            "220",
        ],
        *["--model", "bilevel-return", "--members", "2", "--hidden", "8", "--train-steps", "60"],
        *["--planner", "random", "--population", "4", "--horizon", "2", "--no-report"],
    ]
    launch(train.Args, train.main, [*options, "--out", str(tmp_path / "run")])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["args"]["distractor"] == "noise:2"
    agent = load_checkpoint(tmp_path / "run" / "checkpoints" / "best.safetensors", "planning agent")
    assert agent.config["spaces"]["obs_dim"] == 3 + 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--distractor", "noise:x"], "noise:8"),
        (["--distractor", "noise:3", "--npz", "steps.npz"], "--distractor is for environments"),
        (["--return-steps", "0"], "--return-steps"),
    ],
)
def test_refuses(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        launch(compare.Args, compare.main, [*options, "--out", str(tmp_path / "run"), "--quiet"])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
