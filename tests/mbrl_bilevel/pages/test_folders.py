"""Run folders as they may be: unfinished, edited, damaged, hostile. One clear line, or what there is."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.pages.folders import read_runs

Make = Callable[..., Path]
ROW = {"method": "nll", "dataset": "a", "seed": 0, "n_train": 100, "nrmse": 1.0, "nll": 2.0}


def refused(*folders: Path) -> str:
    with pytest.raises(InvalidInputError) as error:
        read_runs(folders)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_run_that_is_being_written_is_read_as_far_as_it_is(make: Make) -> None:
    folder = make("run", "compare", {}, [ROW, {"method": "mse", "failed": "diverged"}])
    with (folder / "rows.jsonl").open("a") as file:
        file.write('{"method": "nl')
    (run,) = read_runs([folder])
    assert [row["nll"] for row in run.rows] == [2.0]
    assert [row["failed"] for row in run.failed] == ["diverged"]
    assert not run.finished


def test_the_seeds_of_train_and_the_parts_of_demo_are_found(make: Make, trained: Make) -> None:
    folder = make("demo", "demo", {}, [{"name": "references", "random actions": -3.0}])
    trained("demo/train-nll", [3, 4])
    demo, train = read_runs([folder])
    assert (demo.script, train.name) == ("demo", "train-nll")
    assert {(row["seed"], row["step"]) for row in train.rows} == {
        (seed, step) for seed in (3, 4) for step in (100, 200, 300, 400)
    }


def test_runs_of_one_name_are_told_apart(make: Make) -> None:
    folders = [make(f"{place}/run", "compare", {}, [ROW]) for place in ("a", "b")]
    assert [run.name for run in read_runs(folders)] == ["a/run", "b/run"]


def test_numbers_that_cannot_be_squared_are_not_finite(make: Make) -> None:
    folder = make("run", "compare", {}, [])
    (folder / "rows.jsonl").write_text(
        json.dumps({**ROW, "nrmse": None, "nll": 10**400, "ncrps": 1e300})[:-1]
        + ', "coverage_90": Infinity}\n'
    )
    (row,) = read_runs([folder])[0].rows
    assert all(math.isnan(row[n]) for n in ("nrmse", "nll", "ncrps", "coverage_90"))


def test_what_is_no_run_is_refused(tmp_path: Path, make: Make) -> None:
    assert "config.json is missing" in refused(tmp_path / "nowhere")
    assert "at least one folder" in refused()
    run = make("run", "compare", {}, [ROW])
    assert "named twice" in refused(run, run / ".." / "run")
    (run / "config.json").write_text("[" * 100_000)
    assert "config.json: it is damaged" in refused(run)
    (run / "config.json").write_text('{"script": 1}')
    assert "no script and args" in refused(run)
    (run / "config.json").unlink()
    os.mkfifo(run / "config.json")  # to open it would wait for ever
    assert "it is no file" in refused(run)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"method": "nll"', "line 1 is damaged"),
        ("[1]", "line 1 is damaged"),
        (json.dumps({**ROW, "nll": "low"}), "line 1 was edited, its 'nll'"),
        (json.dumps({**ROW, "seed": None}), "its 'seed'"),
        (json.dumps({**ROW, "method": ["nll"]}), "its 'method'"),
        (json.dumps({**ROW, "k": [1, 2], "k_nrmse": [1.0]}), "its 'k_nrmse'"),
        (json.dumps({n: v for n, v in ROW.items() if n != "dataset"}), "its 'dataset'"),
    ],
)
def test_an_edited_row_is_told_with_its_line(make: Make, line: str, said: str) -> None:
    folder = make("run", "compare", {}, [])
    (folder / "rows.jsonl").write_text(f"{line}\n{json.dumps(ROW)}\n")
    message = refused(folder)
    assert said in message
    assert re.search(r"rows\.jsonl: line 1 .*; mend or delete that line$", message)


def test_a_trial_without_its_setting_was_edited(make: Make) -> None:
    row = {"method": "nll", "trial": 0, "value": 1.0, "learning_rate": None}
    assert "its 'learning_rate'" in refused(make("run", "tune", {}, [row]))


def test_matrices_must_be_square(make: Make) -> None:
    row = {"method": "nll", "sequence": "s", "seed": 0, "nll": [[1.0, 2.0]]}
    assert "its 'nll'" in refused(make("run", "continual", {}, [row]))
