"""Cells side by side: the same rows whatever the number of processes, and no failure stops the rest."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parent))  # a worker imports this file by its name

import test_cells as here

from mbrl_bilevel.base.errors import DivergedError, InvalidInputError
from mbrl_bilevel.studies.arguments import RunArgs
from mbrl_bilevel.studies.cells import Cells, Done, run_cells
from mbrl_bilevel.studies.launching import Result, launch
from mbrl_bilevel.studies.local_cells import local
from mbrl_bilevel.studies.run_folder import RunFolder


@dataclass(frozen=True)
class Args(RunArgs):
    jobs: int = 1
    """Processes."""
    cells: int = 5
    """How many."""
    how: str = ""
    """What the odd cells do."""


def work(args: Args, key: dict[str, Any]) -> Done:
    if args.how == "diverge" and key["n"] % 2:
        raise DivergedError(f"diverged\nat {key['n']}")
    if args.how == "diverge all":
        raise DivergedError("diverged at once")
    if args.how == "die" and key["n"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if args.how == "bug":
        raise RuntimeError("a bug")
    generator = torch.Generator().manual_seed(args.seed + key["n"])
    matrix = torch.randn(300, 300, generator=generator)
    value = float(torch.linalg.slogdet(matrix @ matrix.mT)[1])
    return Done(
        {"value": value, "threads": torch.get_num_threads()}, {"curve": [(0, value), (1, 2.0)]}
    )


def main(args: Args, run: RunFolder) -> Result:
    cells = Cells([{"n": n} for n in range(args.cells)], here.work, ("value",))
    rows = run_cells(run, args, cells, "cells", local(args.jobs))
    return Result({"rows": rows}, {"n": len(rows)})


@pytest.fixture
def study(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[Any], list[str]]]:
    """Runs the cells into ``a``: the exit code, the rows in metrics.json, the lines on stderr."""

    def run(*options: str, out: str = "a") -> tuple[int, list[Any], list[str]]:
        code: Any = 0
        try:
            launch(
                here.Args,
                here.main,
                ["--quiet", "--no-report", "--out", str(tmp_path / out), *options],
            )
        except SystemExit as stop:
            code = stop.code
        metrics = tmp_path / out / "metrics.json"
        rows = json.loads(metrics.read_text())["rows"] if metrics.exists() else []
        return code, rows, capsys.readouterr().err.splitlines()

    return run


Study = Callable[..., tuple[int, list[Any], list[str]]]


def test_the_rows_are_the_same_whatever_the_number_of_processes(study: Study) -> None:
    code, alone, err = study()
    assert (code, [row["n"] for row in alone], err) == (0, [0, 1, 2, 3, 4], [])
    assert study("--jobs", "2", out="b") == (0, alone, [])
    assert {row["threads"] for row in alone} == {1}


def test_a_cell_that_fails_is_told_and_tried_again_while_the_others_go_on(
    study: Study, tmp_path: Path
) -> None:
    code, rows, err = study("--how", "diverge")
    assert (code, [row["n"] for row in rows]) == (2, [0, 2, 4])
    assert err[:2] == ["failed: 1: diverged at 1", "failed: 3: diverged at 3"]
    assert err[2].startswith("error: 2 of the runs failed; try them again with --resume")
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["failed"] == 2
    # Nothing has changed: they fail again, and the others are not done again.
    assert study("--how", "diverge", "--resume")[0] == 2
    lines = [json.loads(line) for line in (tmp_path / "a" / "rows.jsonl").open()]
    assert [line["n"] for line in lines] == [0, 1, 2, 3, 4, 1, 3]
    # The cause is mended: the rest is filled in, and the run is as if nothing had happened.
    config = tmp_path / "a" / "config.json"
    config.write_text(config.read_text().replace('"how": "diverge"', '"how": ""'))
    assert study("--resume") == (0, study(out="b")[1], [])


def test_where_every_cell_fails_one_line_says_why(study: Study, tmp_path: Path) -> None:
    assert study("--how", "diverge all") == (2, [], ["error: diverged at once"])
    assert not (tmp_path / "a").exists()


def test_a_worker_that_is_killed_costs_its_own_cell_alone(study: Study) -> None:
    code, rows, err = study("--how", "die", "--jobs", "2")
    assert (code, [row["n"] for row in rows]) == (2, [0, 1, 2, 4])
    assert err[0].startswith("failed: 3: its process was killed")
    assert len(err) == 2


def test_a_bug_in_a_worker_keeps_its_traceback(study: Study) -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        study("--how", "bug", "--jobs", "2")


def test_an_edited_row_is_told(study: Study, tmp_path: Path) -> None:
    study()
    path = tmp_path / "a" / "rows.jsonl"
    (tmp_path / "a" / "metrics.json").unlink()
    path.write_text(path.read_text().replace('"value"', '"valeu"', 1))
    code, rows, err = study("--resume")
    assert (code, rows, len(err)) == (2, [], 1)
    assert "a row was edited, its 'value' is missing" in err[0]


def test_the_curves_of_all_cells_go_to_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunFolder("test", Args(out=tmp_path / "a", quiet=True)) as run:
        main(replace(Args(), cells=2), run)
    events = EventAccumulator(str(tmp_path / "a"))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["curve/0", "curve/1"]
    assert [point.step for point in events.Scalars("curve/1")] == [0, 1]


def test_an_error_of_a_bad_input_is_raised_by_name(tmp_path: Path) -> None:
    """Errors travel between processes whole: type and message."""
    import pickle

    for kind in (InvalidInputError, DivergedError):
        again = pickle.loads(pickle.dumps(kind("--n: must be 1")))
        assert (type(again), str(again)) == (kind, "--n: must be 1")
