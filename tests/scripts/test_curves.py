"""curves: repeats are pooled, unfinished ones as far as they are, other settings are told apart."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import curves
from _run import launch


def trained(folder: Path, means: list[float], every: int = 100, **options: Any) -> Path:
    """What train leaves behind: its options, and an evaluation a line."""
    asked = {"env_id": "Line-v0", "agent": "mpc", "model": "nll", "seed": 0, "seeds": 1, **options}
    write(
        folder, "train", asked, [{"step": every * (i + 1), "mean": m} for i, m in enumerate(means)]
    )
    return folder


def write(folder: Path, script: str, options: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"script": script, "args": options}))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics(tmp_path: Path, *runs: object) -> Any:
    out = tmp_path / "out"
    options = ["--runs", *map(str, runs), "--out", str(out), "--quiet"]
    launch(curves.Args, curves.main, options)
    assert (out / "figures" / "returns.png").stat().st_size > 1000
    return json.loads((out / "metrics.json").read_text())


def test_repeats_are_pooled_and_rivals_are_timed(tmp_path: Path) -> None:
    a = trained(tmp_path / "a", [1.0, 4.0, 9.0])
    # The second repeat has not come to its end.
    b = trained(tmp_path / "b", [3.0, 6.0], seed=1)
    sac = trained(tmp_path / "sac", [0.0, 2.0, 4.5], every=1000, agent="sac")
    found = metrics(tmp_path, a, b, sac)
    nll = {p["step"]: p for p in found["points"] if p["label"] == "nll"}
    assert {step: (p["mean"], p["n"]) for step, p in nll.items()} == {
        100: (2.0, 2),
        200: (5.0, 2),
        300: (9.0, 1),
    }
    assert (nll[100]["low"], nll[100]["high"]) == (1.0, 3.0)
    mine, theirs = found["reached"]
    assert (mine["rival"], mine["rival_steps"], mine["rival_return"]) == ("sac", 3000, 4.5)
    assert mine["steps"] == 200
    # Where one repeat alone has come does not count: the rival's last return is 5, never reached.
    assert (theirs["rival_steps"], theirs["rival_return"], theirs["steps"]) == (200, 5.0, None)


def test_seeds_in_one_folder_and_the_lines_of_plan(tmp_path: Path) -> None:
    folder = tmp_path / "several"
    write(
        folder, "train", {"env_id": "L", "agent": "mbpo", "model": "mse", "seed": 4, "seeds": 2}, []
    )
    trained(folder / "seed-4", [1.0], env_id="L", agent="mbpo", model="mse", seed=4)
    trained(folder / "seed-5", [2.0], env_id="L", agent="mbpo", model="mse", seed=5)
    rows = [{"env_id": "L", "planner": p, "return": r} for p, r in (("nothing", 0), ("icem", 8))]
    write(tmp_path / "plan", "plan", {"model": "oracle"}, [*rows, {**rows[1], "return": 6}])
    found = metrics(tmp_path, folder, tmp_path / "plan")
    assert [(p["label"], p["mean"], p["n"]) for p in found["points"]] == [("mbpo, mse", 1.5, 2)]
    lines = {line["label"]: line["mean"] for line in found["references"]}
    assert lines == {"doing nothing": 0.0, "icem, true simulator": 7.0}


def test_other_settings_are_no_repeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [trained(tmp_path / str(tau), [tau], tau=tau) for tau in (0.1, 0.2)]
    assert refused(capsys, tmp_path, *runs).endswith("tell them apart: LABEL=FOLDER")
    labelled = [f"{name}={run}" for name, run in zip(("low", "high"), runs, strict=True)]
    found = metrics(tmp_path, *labelled)
    assert [(p["label"], p["mean"]) for p in found["points"]] == [("low", 0.1), ("high", 0.2)]


def test_what_holds_no_evaluation_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no run of train or plan" in refused(capsys, tmp_path, tmp_path / "empty")
    assert "holds no run of train or plan" in refused(capsys, tmp_path, tmp_path / "nowhere")
    begun = trained(tmp_path / "begun", [])
    assert "no evaluation" in refused(capsys, tmp_path, begun)
    assert "named twice" in refused(capsys, tmp_path, begun, f"again={begun}")


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, *runs: object) -> str:
    with pytest.raises(SystemExit) as stop:
        metrics(tmp_path, *runs)
    assert stop.value.code == 2
    assert not (tmp_path / "out").exists()
    return capsys.readouterr().err.strip()
