"""Cells of a study on this machine: a pool of processes, where one that is killed costs its cell alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import Any

from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.studies.cells import Cells, Launcher, Outcome, attempt, killed, one_thread


def local(jobs: int) -> Launcher:
    """Run cells on this machine, ``jobs`` at a time, a process each (1: in this process)."""
    return Launcher(partial(_outcomes, jobs))


def _outcomes(
    jobs: int, args: Any, cells: Cells[Any], todo: Sequence[Row]
) -> Generator[tuple[Row, Outcome]]:
    if jobs == 1 or len(todo) < 2:
        one_thread()
        for key in todo:
            yield key, attempt(cells.work, args, key)
        return
    broken: list[Row] = []
    with _processes(min(jobs, len(todo))) as executor:
        futures = {executor.submit(attempt, cells.work, args, key): key for key in todo}
        for done in as_completed(futures):
            outcome = _result(done)
            if outcome is None:
                broken.append(futures[done])
            else:
                yield futures[done], outcome
    # A worker that is killed takes the whole pool with it. Alone, each cell answers for itself.
    for key in broken:
        with _processes(1) as executor:
            yield key, _result(executor.submit(attempt, cells.work, args, key)) or killed()


def _result(done: Future[Outcome]) -> Outcome | None:
    try:
        return done.result()
    except BrokenProcessPool:
        return None


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
    one_thread()


def _leave_with(parent: Any) -> None:
    """A parent killed by -9 cannot end its workers: they end themselves."""
    parent.join()
    os._exit(1)
