"""kill -9 at random moments, over and over: no run is lost, and each ends as if nothing had been."""

from __future__ import annotations

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulting import POOLS, RUNS, go_and_kill, metrics, require_same, start

#: How many in all: ``make faults`` says 200. Most of them where a run takes least.
_ALL = int(os.environ.get("FAULTS", 0))
_KILLS = dict.fromkeys(RUNS, max(1, math.ceil(0.8 * _ALL / len(RUNS))))
if not _ALL:
    del _KILLS["train"]  # the planning agent's file holds all that MPC's does
_KILLS |= dict.fromkeys(POOLS, math.ceil(0.2 * _ALL / len(POOLS))) if _ALL else {}


@pytest.mark.parametrize("name", _KILLS)
def test_a_killed_run_ends_as_if_it_never_was(
    name: str, whole: dict[str, Path], tmp_path: Path
) -> None:
    began, aside = time.perf_counter(), tmp_path / "whole"
    assert not go_and_kill(name, aside, after=300.0)
    found, length = metrics(aside), time.perf_counter() - began
    assert found == metrics(whole.get(name, aside))
    random, kills, runs = np.random.default_rng(7), 0, 0
    while kills < _KILLS[name]:
        out, runs = tmp_path / f"cut-{runs}", runs + 1
        while not (out / "metrics.json").exists():
            kills += go_and_kill(name, out, after=random.uniform(0.05, 1.0) * length)
        require_same(name, metrics(out), found)
        assert not list(out.rglob("*.tmp"))
    print(f"{name}: {kills} kills over {runs} runs, none lost")


def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    script, *options = POOLS["compare, 2 jobs"]
    options += ["--train-steps", "100000", "--out", "a"]
    process: Any = start(script, *options, cwd=tmp_path, start_new_session=True)
    deadline = time.perf_counter() + 60.0
    while len(workers := _children(process.pid)) < 3:  # two, and the tracker of their resources
        assert time.perf_counter() < deadline, process.poll()
        time.sleep(0.1)
    time.sleep(3.0)  # so that they are at work
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.perf_counter() + 10.0
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.perf_counter() < deadline, workers
        time.sleep(0.1)


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if path.read_text().rpartition(")")[2].split()[1] == str(parent):
                found.append(int(path.parent.name))
        except OSError:  # it has just ended
            continue
    return found
