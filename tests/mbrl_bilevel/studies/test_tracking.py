"""--wandb: what is told to Weights & Biases, and the line where it is not installed."""

from __future__ import annotations

import json
import sys
import types
from importlib import util
from pathlib import Path
from typing import Any

import pytest

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies import tracking
from mbrl_bilevel.studies.arguments import RunArgs
from mbrl_bilevel.studies.launching import Result, launch
from mbrl_bilevel.studies.run_folder import RunFolder


def main(args: RunArgs, run: RunFolder) -> Result:
    for seed in (0, 1):
        if run.rows.find(seed=seed) is None:
            run.rows.append({"seed": seed, "nll": 0.5 + seed, "outer": {"u": 2.0}, "k": [1, 2]})
            run.scalar("fit/nll", 0.25 + seed, 10)
    return Result({"rows": list(run.rows)}, {"nll": {"mean": 1.0}, "figures": ["a.png"]})


class Fake(types.ModuleType):
    """Takes down what wandb is told."""

    Error = type("Error", (Exception,), {})

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.ended: list[int] = []

    def init(self, **options: Any) -> Any:
        self.begun.append(options)
        return types.SimpleNamespace(
            log=self.logged.append,
            define_metric=lambda *names, **options: None,
            summary=self.summary,
            finish=lambda exit_code: self.ended.append(exit_code),
        )

    def Settings(self, **options: Any) -> dict[str, Any]:
        return options

    def Table(self, columns: list[str], data: list[list[Any]]) -> Any:
        return columns, data


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    found = Fake()
    monkeypatch.setitem(sys.modules, "wandb", found)
    monkeypatch.setattr(
        tracking.util, "find_spec", lambda name: types.SimpleNamespace(origin="here")
    )
    return found


def test_curves_rows_and_summary_are_told(fake: Fake, tmp_path: Path) -> None:
    out = tmp_path / "run"
    launch(RunArgs, main, ["--out", str(out), "--quiet", "--no-report", "--wandb"])
    (begun,) = fake.begun
    config = json.loads((out / "config.json").read_text())
    assert (begun["name"], begun["dir"], begun["id"]) == ("run", out, config["wandb"])
    assert begun["config"]["args"]["seed"] == 0
    assert fake.logged[0] == {"fit/nll": 0.25, "step": 10}
    assert fake.logged[-1] == {"rows": (["seed", "nll", "outer.u"], [[0, 0.5, 2.0], [1, 1.5, 2.0]])}
    assert fake.summary == {"out": str(out), "nll.mean": 1.0}
    assert fake.ended == [0]


def test_a_run_that_is_stopped_goes_on_as_the_same_one(fake: Fake, tmp_path: Path) -> None:
    options = ["--out", str(tmp_path / "run"), "--quiet", "--no-report", "--wandb"]

    def stopped(args: RunArgs, run: RunFolder) -> Result:
        run.rows.append({"seed": 0})
        raise KeyboardInterrupt

    stopped.__module__ = main.__module__
    with pytest.raises(SystemExit):
        launch(RunArgs, stopped, options)
    assert fake.ended == [1]
    launch(RunArgs, main, [*options, "--resume"])
    assert fake.ended == [1, 0]
    assert len({begun["id"] for begun in fake.begun}) == 1


def test_columns_of_two_kinds_are_texts() -> None:
    assert tracking._table([{"a": 1}, {"a": "x", "b": None}]) == (
        ["a", "b"],
        [["1", None], ["x", None]],
    )


def test_without_it_there_is_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking.util, "find_spec", lambda name: None)
    with pytest.raises(InvalidInputError, match=r"\[wandb\]"):
        RunArgs(wandb=True)
    with pytest.raises(SystemExit) as stop:
        launch(RunArgs, main, ["--out", str(tmp_path / "run"), "--wandb"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(util.find_spec("wandb") is None, reason="wandb is not installed")
def test_the_real_one_takes_it_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "run"
    launch(RunArgs, main, ["--out", str(out), "--quiet", "--no-report", "--wandb"])
    pytest.importorskip("wandb").teardown()  # its own process writes the file to its end
    (kept,) = out.glob("wandb/offline-run-*/*.wandb")
    assert b"fit/nll" in kept.read_bytes()
