"""The example of a study of one's own, as the process that a user starts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--methods", "bilevel", "nll", "--seeds", "2", "--n-train", "100", "--train-steps", "30"]


def run(out: Path, *options: str) -> Any:
    """The metrics of a run of the example; its last line must be the summary."""
    command = [sys.executable, str(ROOT / "examples" / "my_study.py"), "--quiet", *SMALL]
    done = subprocess.run(
        [*command, "--out", str(out), *options],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]).keys() == {"out", "bilevel", "nll"}
    return json.loads((out / "metrics.json").read_text())


def test_it_fills_a_folder_and_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    found = run(tmp_path / "a", "--jobs", "2")
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
    assert run(tmp_path / "a", "--resume") == found
    assert (tmp_path / "a" / "rows.jsonl").read_text().splitlines(keepends=True)[:2] == rows[:2]
