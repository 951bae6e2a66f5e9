"""Run the cells of a study, each an ordinary run of train, and keep their rows as they come.

FILE declares the study (docs/results/agents/grid.toml is one): its cells are run in its order, several at a
time. Finished cells are skipped and half-done ones go on, so after any stop the same command goes on; a cell
that fails is told and the others go on. What they returned is copied to --rows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from options.study import Args

from mbrl_bilevel.base.errors import BilevelError, look_up
from mbrl_bilevel.studies.cells import Done
from mbrl_bilevel.studies.grid import Cell, read_grid
from mbrl_bilevel.studies.grid_rows import evaluations, keep, kept
from mbrl_bilevel.studies.launching import launch_tool

TRAIN = Path(__file__).resolve().parent / "train.py"

#: What every run of a study is told besides its cell's own options.
QUIETLY = ("--threads", "1", "--resume", "--quiet", "--no-report")


def main(args: Args) -> Mapping[str, object]:
    """Run what is not finished yet."""
    grid = read_grid(args.file)
    tasks = {task.env_id: task for task in grid.tasks}
    for name in args.only:
        look_up(tasks, name, "--only: unknown task")
    cells = [cell for cell in grid.cells() if not args.only or cell.task in args.only]
    left = [cell for cell in cells if not _is_finished(args, cell)]
    if args.list:
        return _listed(args, cells, left)
    failed = _run(args, left, len(cells))
    if failed:
        raise BilevelError(
            f"{failed} of {len(cells)} cells failed; the same command tries them again"
        )
    return {"cells": len(cells), "finished": len(cells), "rows": args.store}


def _is_finished(args: Args, cell: Cell) -> bool:
    found = kept(args.store, cell)
    return found is not None and found.finished


def _listed(args: Args, cells: Iterable[Cell], left: Iterable[Cell]) -> Mapping[str, object]:
    waiting = set(left)
    done = 0
    for cell in cells:
        print(f"{_state(args, cell) if cell in waiting else 'done':24s} {cell.name}")
        done += cell not in waiting
    return {"cells": done + len(waiting), "finished": done, "rows": args.store}


def _state(args: Args, cell: Cell) -> str:
    """Of a cell that is not finished."""
    rows = evaluations(args.out / cell.name / "rows.jsonl")
    return f"half-done, {max(rows)} of {cell.steps}" if rows else "to do"


def _run(args: Args, left: Sequence[Cell], total: int) -> int:
    """Run the cells; how many failed. However it ends, their rows are kept."""
    return _run_here(args, left, total) if args.launcher == "local" else _launch(args, left, total)


def _launch(args: Args, left: Sequence[Cell], total: int) -> int:
    """Run the cells where the launcher has room; it brings what each run writes into its folder here."""
    from work.study_cells import train_cells  # it brings in train

    launcher, cells = args.launching(), train_cells(left, QUIETLY)
    waiting, failed = {cell.name: cell for cell in left}, 0
    try:
        with launcher.session(), closing(launcher.outcomes(args, cells, cells.keys)) as ending:
            for key, outcome in ending:
                cell = waiting.pop(key["cell"])
                code, log = 1, str(outcome)
                if isinstance(outcome, Done):
                    code, log = int(str(outcome.row["code"])), str(outcome.row["log"])
                _log(args, cell).parent.mkdir(parents=True, exist_ok=True)
                _log(args, cell).write_text(log)
                failed += not _ended(args, cell, code)
                _tell(
                    args,
                    f"{total - len(waiting) - failed} of {total} done, {failed} failed: {cell.name} ended",
                )
    finally:
        for cell in waiting.values():
            keep(args.out / cell.name, args.store, cell)
    return failed


def _run_here(args: Args, left: Iterable[Cell], total: int) -> int:
    """The same on this machine, ``args.jobs`` at a time, each a process of its own."""
    waiting, running, failed = deque(left), dict[Cell, subprocess.Popen[bytes]](), 0
    try:
        while waiting or running:
            while waiting and len(running) < args.jobs:
                cell = waiting.popleft()
                running[cell] = _start(args, cell)
                _tell(args, f"started: {cell.name}")
            time.sleep(0.1)
            for cell in [c for c, r in running.items() if r.poll() is not None]:
                failed += not _ended(args, cell, running.pop(cell).returncode)
                done = total - len(waiting) - len(running) - failed
                _tell(args, f"{done} of {total} done, {failed} failed: {cell.name} ended")
    except BaseException as error:
        _stop(running.values())
        for cell in running:
            keep(args.out / cell.name, args.store, cell)
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(
                f"{len(waiting) + len(running)} of {total} cells are left; the same command goes on"
            ) from None
        raise
    return failed


def _start(args: Args, cell: Cell) -> subprocess.Popen[bytes]:
    _log(args, cell).parent.mkdir(parents=True, exist_ok=True)
    with _log(args, cell).open("wb") as log:
        return subprocess.Popen(
            [
                sys.executable,
                str(TRAIN),
                *cell.options,
                "--out",
                str(args.out / cell.name),
                *QUIETLY,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            # NumPy's threads are not counted by --threads.
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def _log(args: Args, cell: Cell) -> Path:
    """Where a cell's warnings and complaints go."""
    return args.out / f"{cell.name}.log"


def _ended(args: Args, cell: Cell, code: int) -> bool:
    """Keep the rows of a cell; whether all went well."""
    lines = _log(args, cell).read_text(errors="replace").strip().splitlines()
    last = " ".join(lines[-1].split()) if lines else "no message"
    # What train will not go on with is a run with other options: not this cell's.
    if not last.startswith("error: --resume"):
        keep(args.out / cell.name, args.store, cell)
    if code:
        how = f"was killed (signal {-code})" if code < 0 else f"exit code {code}"
        print(f"failed: {cell.name}: {how}: {last}", file=sys.stderr, flush=True)
    return code == 0


def _stop(processes: Iterable[subprocess.Popen[bytes]]) -> None:
    """Let each process end as after Ctrl-C, which by itself reaches them from a terminal alone."""
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _tell(args: Args, line: str) -> None:
    if not args.quiet:
        print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    launch_tool(Args, main)
