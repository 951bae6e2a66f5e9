"""The example of a study of one's own: as the process that a user starts, and going on within this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "examples"))

import my_study  # noqa: E402

from mbrl_bilevel.studies import launch  # noqa: E402

SMALL = ["--methods", "bilevel", "nll", "--seeds", "2", "--n-train", "100", "--train-steps", "30"]


def finished(out: Path, told: str) -> Any:
    """The metrics of a run of the example; its last line must be the summary."""
    assert json.loads(told.splitlines()[-1]).keys() == {"out", "bilevel", "nll"}
    return json.loads((out / "metrics.json").read_text())


def test_it_fills_a_folder_and_goes_on_where_it_was_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quiet", "--no-report", *SMALL, "--out", str(tmp_path / "a")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / "my_study.py"), *options, "--jobs", "2"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = finished(tmp_path / "a", done.stdout)
    assert [(row["method"], row["seed"]) for row in found["rows"]] == [
        *(("bilevel", 0), ("nll", 0), ("bilevel", 1), ("nll", 1)),
    ]
    (difference,) = found["paired"]
    by = {(row["method"], row["seed"]): row["rmse"] for row in found["rows"]}
    apart = [by["bilevel", seed] - by["nll", seed] for seed in (0, 1)]
    assert abs(difference["rmse"]["mean"] - sum(apart) / 2) < 1e-9
    # As if stopped after the second row: these stay, the others are made again.
    rows = (tmp_path / "a" / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "rows.jsonl").write_text("".join(rows[:2]))
    (tmp_path / "a" / "metrics.json").unlink()
    launch(my_study.Args, my_study.main, [*options, "--resume"])
    assert finished(tmp_path / "a", capsys.readouterr().out) == found
    assert (tmp_path / "a" / "rows.jsonl").read_text().splitlines(keepends=True)[:2] == rows[:2]
