"""kill -9 at random moments, a full disk, faulty environments: nothing is lost, the end is the same."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from faulting import RUNS, metrics, start


@pytest.mark.parametrize("script", RUNS)
def test_a_killed_run_ends_as_if_it_never_was(script: str, tmp_path: Path, times: float) -> None:
    """At full length 100 kills for each script, over as many runs as that takes."""
    began = time.perf_counter()
    out, err = start(script, *RUNS[script], "--out", "whole", cwd=tmp_path).communicate(timeout=300)
    assert out, err
    whole, length = metrics(tmp_path / "whole"), time.perf_counter() - began
    random, kills, runs = np.random.default_rng(7), 0, 0
    while kills < max(1, round(100 * times)):
        name, runs = f"cut-{runs}", runs + 1
        while not (tmp_path / name / "metrics.json").exists():
            process = start(script, *RUNS[script], "--out", name, "--resume", cwd=tmp_path)
            try:
                # Most of a start is imports, where nothing can be lost: aim behind them.
                err = process.communicate(timeout=random.uniform(0.3, 1.1) * length)[1]
                assert process.returncode == 0, err
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
        assert metrics(tmp_path / name) == whole
    print(f"{script}: {kills} kills over {runs} runs, none lost")


@pytest.mark.parametrize("script", RUNS)
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(script: str, tmp_path: Path) -> None:
    """No file may grow beyond a few kilobytes, as if the disk were full there."""

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    process = start(script, *RUNS[script], "--out", "a", cwd=tmp_path, preexec_fn=full)
    err = process.communicate(timeout=300)[1].strip()
    assert process.returncode == 2, err
    assert "\n" not in err
    assert "free space" in err
    assert not list(tmp_path.rglob("*.tmp"))
    for line in (
        (tmp_path / "a" / "rows.jsonl").read_text().splitlines() if script == "compare" else []
    ):
        json.loads(line)
    for name, options in (("a", ["--resume"]), ("b", [])):
        out, err = start(script, *RUNS[script], "--out", name, *options, cwd=tmp_path).communicate()
        assert out, err
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


@pytest.mark.parametrize(
    ("env_id", "told"),
    [("RaisingLine-v0", "raised ValueError: wheel lost"), ("HangingLine-v0", "longer than 0.5 s")],
)
def test_a_faulty_environment_is_one_line_and_the_last_agent_is_kept(
    env_id: str, told: str, tmp_path: Path
) -> None:
    options = [*RUNS["train"], "--env-id", env_id, "--env-timeout", "0.5", "--out", "a"]
    process = start("train", *options, cwd=tmp_path)
    err = process.communicate(timeout=120)[1].strip()
    assert process.returncode == 2, err
    assert "\n" not in err
    assert told in err
    assert "--resume --out a" in err
    assert (tmp_path / "a" / "checkpoints" / "best.safetensors").exists()


def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    options = [*RUNS["compare"], "--train-steps", "100000", "--jobs", "2", "--out", "a"]
    process = start("compare", *options, cwd=tmp_path, start_new_session=True)
    time.sleep(8.0)
    workers = [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/stat")
        if path.read_text().rpartition(")")[2].split()[1:2] == [str(process.pid)]
    ]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline = time.perf_counter() + 10.0
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.perf_counter() < deadline, workers
        time.sleep(0.1)
    assert workers
