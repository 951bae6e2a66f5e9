"""A cell of a study as a run of train in this process: on a Ray cluster, each has a worker of its own."""

from __future__ import annotations

import io
import traceback
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import train
from options.train import Args

from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.studies.cells import Cells, Done
from mbrl_bilevel.studies.grid import Cell
from mbrl_bilevel.studies.launching import launch


def train_cells(cells: Sequence[Cell], besides: Sequence[str]) -> Cells[Any]:
    """The cells for a launcher, each told the options ``besides``, too; a row is the exit ``code`` of the run, and
    ``log``, what it wrote on stderr."""
    keys: list[Row] = [{"cell": c.name, "options": [*c.options, *besides]} for c in cells]
    return Cells(keys, _train, folder=_folder)


def _folder(key: Row) -> str:
    return str(key["cell"])


def _train(args: Any, key: Row) -> Done:
    out: Path = args.out / _folder(key)
    code: Any = 0
    with redirect_stderr(io.StringIO()) as log, redirect_stdout(io.StringIO()):
        try:
            launch(Args, train.main, [*key["options"], "--out", str(out)])
        except SystemExit as stop:
            code = stop.code
        except Exception:
            traceback.print_exc()
            code = 1
    return Done({"code": code, "log": log.getvalue()})
