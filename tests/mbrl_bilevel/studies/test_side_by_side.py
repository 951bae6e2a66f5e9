"""Cells that are done several at once: rows as of each by itself, whatever goes wrong with the others."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mbrl_bilevel.base.errors import DivergedError, InvalidInputError
from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.studies.arguments import RunArgs
from mbrl_bilevel.studies.cells import Cells, Done, Outcome, SideBySide, run_cells
from mbrl_bilevel.studies.local_cells import local
from mbrl_bilevel.studies.run_folder import RunFolder

KEYS = [{"method": method, "seed": seed, "n": 5} for seed in range(5) for method in ("a", "b")]


def value(key: Row) -> float:
    return float(100 * ord(key["method"]) + key["seed"])


def alone(args: RunArgs, key: Row) -> Done:
    if key["seed"] == 3:
        raise DivergedError("seed 3 diverged")
    return Done({"value": value(key)}, {"curve": [(1, float(key["seed"]))]})


@pytest.fixture
def done(tmp_path: Path) -> Any:
    """Runs the cells; rows, and the seeds that were asked for at once."""

    def run(size: int, jobs: int = 1, refuse: bool = False) -> tuple[list[Row], list[list[int]]]:
        asked: list[list[int]] = []

        def together(args: RunArgs, keys: Sequence[Row]) -> list[Outcome]:
            asked.append([key["seed"] for key in keys])
            assert len({key["method"] for key in keys}) == 1
            if refuse:
                raise InvalidInputError("they do not go together")
            found: list[Outcome] = []
            for key in keys:
                try:
                    found.append(alone(args, key))
                except DivergedError as error:
                    found.append(error)
            return found

        args = RunArgs(out=tmp_path / "a", quiet=True, no_report=True, resume=True)
        with RunFolder("test", args) as folder:
            cells = Cells(KEYS, alone, ("value",), side_by_side=SideBySide(size, together))
            rows = run_cells(folder, args, cells, "cells", local(jobs))
            assert folder.failed == 2
        return rows, asked

    return run


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_rows_are_those_of_each_by_itself(size: int, done: Any) -> None:
    rows, asked = done(size)
    expected = [key for key in KEYS if key["seed"] != 3]
    assert [{k: row[k] for k in ("method", "seed", "n")} for row in rows] == expected
    assert [row["value"] for row in rows] == [value(key) for key in expected]
    sizes = sorted(len(seeds) for seeds in asked)
    assert sizes == {1: [], 2: [1, 1, 2, 2, 2, 2], 3: [2, 2, 3, 3], 100: [5, 5]}[size]


def test_what_has_failed_is_tried_again_with_what_is_missing(done: Any) -> None:
    done(5)
    _, asked = done(5)
    assert asked == [[3], [3]]


def test_those_that_do_not_go_together_are_done_one_after_another(done: Any) -> None:
    rows, asked = done(5, refuse=True)
    assert len(asked) == 2
    assert len(rows) == 8
