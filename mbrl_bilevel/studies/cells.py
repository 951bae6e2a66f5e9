"""The cells of a study (a method, a size, a seed each) run side by side, each finished row kept.

The rows are the same whatever the number of processes: a cell depends on its key alone, and each
process computes with one thread.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from mbrl_bilevel.base.errors import BilevelError
from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.studies.arguments import RunArgs
from mbrl_bilevel.studies.run_folder import RunFolder

R = TypeVar("R", bound=RunArgs)

#: Curves for TensorBoard: name -> (step, value) pairs.
Curves = Mapping[str, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class Done:
    """What a finished cell gives back.

    ``row``: what its row holds beside the key, numbers, lists, strings or dicts of them; NaN is kept as null
    and listed under ``non_finite``. ``curves``: for TensorBoard, metric -> (step, value) pairs, such as
    ``FitResult.history``.
    """

    row: Mapping[str, object]
    curves: Curves = field(default_factory=dict)


@dataclass(frozen=True)
class Cells(Generic[R]):
    """The cells of a study: one piece of work, done for many keys.

    ``keys``: a dict for each cell that says which one it is, ``{"method": "nll", "seed": 0}``; no two are
    the same. ``work(args, key)`` does one of them; all that it draws and computes depends on these two alone,
    and it is a function at the top level of its file, since other processes import it by name.
    ``columns``: what every finished row holds beside its key, numbers or lists of them; a row on disk
    without one is refused on a resume.
    """

    keys: Sequence[Row]
    work: Callable[[R, Row], Done]
    columns: Sequence[str] = ()


def run_cells(run: RunFolder, args: R, cells: Cells[R], desc: str, jobs: int) -> list[Row]:
    """Do the cells that the run's folder has no row of, and give all rows back in the order of the keys.

    ``args`` is handed to each cell; ``desc`` stands beside the progress bar; ``jobs`` processes work at a
    time, each with one thread (1: this process alone), and the rows are the same whatever their number.

    A cell that fails by a BilevelError is told in a line on stderr and left in rows.jsonl with its
    error under ``failed``; the others go on, and it is tried again under --resume. ``run.failed``
    counts them. A process that is killed costs its cell alone. Raises the first failure if every cell failed.
    """
    _finished(run, cells)  # a row that was edited is told now, not after hours of work
    todo = [key for key in cells.keys if run.rows.find(**key) is None]
    bar = run.bar(len(cells.keys), desc, initial=len(cells.keys) - len(todo))
    failures: list[tuple[Row, BilevelError]] = []
    told = 0
    for key, outcome in _outcomes(args, cells.work, todo, jobs):
        if isinstance(outcome, BilevelError):
            failures.append((key, outcome))
        else:
            run.rows.append(key | dict(outcome.row))
            _draw(run, key, outcome.curves)
        if len(run.rows):  # if nothing works, it is the options or the data: one error says it all
            _tell(run, failures[told:])
            told = len(failures)
        bar.update(1)
    bar.close()
    rows = _finished(run, cells)
    if failures and not rows:
        raise failures[0][1]
    run.failed = len(failures)
    return rows


def _tell(run: RunFolder, failures: Sequence[tuple[Row, BilevelError]]) -> None:
    for key, error in failures:
        line = " ".join(str(error).split())
        run.rows.append(key | {"failed": line})
        print(f"failed: {_named(key)}: {line}", file=sys.stderr, flush=True)


def _finished(run: RunFolder, cells: Cells[R]) -> list[Row]:
    """Raises InvalidInputError for a row whose columns are not what this script wrote."""
    rows = [row for key in cells.keys if (row := run.rows.find(**key)) is not None]
    return [run.rows.require(row, *cells.columns) for row in rows]


def _outcomes(
    args: R, work: Callable[[R, Row], Done], todo: Sequence[Row], jobs: int
) -> Iterator[tuple[Row, Done | BilevelError]]:
    if jobs == 1 or len(todo) < 2:
        _one_thread()
        for key in todo:
            yield key, _attempt(work, args, key)
        return
    broken: list[Row] = []
    with _processes(min(jobs, len(todo))) as executor:
        futures = {executor.submit(_attempt, work, args, key): key for key in todo}
        for done in as_completed(futures):
            outcome = _result(done)
            if outcome is None:
                broken.append(futures[done])
            else:
                yield futures[done], outcome
    # A worker that is killed takes the whole pool with it. Alone, each cell answers for itself.
    for key in broken:
        with _processes(1) as executor:
            yield key, _result(executor.submit(_attempt, work, args, key)) or _killed()


def _attempt(work: Callable[[R, Row], Done], args: R, key: Row) -> Done | BilevelError:
    try:
        return work(args, key)
    except BilevelError as error:
        return error


def _result(done: Future[Done | BilevelError]) -> Done | BilevelError | None:
    try:
        return done.result()
    except BrokenProcessPool:
        return None


def _killed() -> BilevelError:
    return BilevelError("its process was killed, perhaps for want of memory; ask for less of it")


@contextmanager
def _processes(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """A pool that is gone with this block, and with this process, however either ends."""
    # Libraries that a worker loads later take their number of threads from here.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker)
    try:
        yield executor
    except BaseException:
        for process in multiprocessing.active_children():
            process.kill()
        raise
    finally:
        executor.shutdown(cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C reaches the whole group: the parent decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    _one_thread()


def _leave_with(parent: Any) -> None:
    """A parent killed by -9 cannot end its workers: they end themselves."""
    parent.join()
    os._exit(1)


def _one_thread() -> None:
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)  # of NumPy and scikit-learn


def _draw(run: RunFolder, key: Row, curves: Curves) -> None:
    for name, points in curves.items():
        for step, value in points:
            run.scalar(f"{name}/{_named(key, '/')}", value, step)


def _named(key: Row, between: str = " ") -> str:
    return between.join(str(value) for value in key.values())
