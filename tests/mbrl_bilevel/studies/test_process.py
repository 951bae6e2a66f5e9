"""A script as the process it is: last line of stdout, exit codes, Ctrl-C, kill -9 and resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]

TOY = '''"""A toy run."""

import os
import signal
import time
from dataclasses import dataclass

from mbrl_bilevel.studies.arguments import RunArgs

from mbrl_bilevel.studies.launching import Result, launch


@dataclass(frozen=True)
class Args(RunArgs):
    sizes: tuple[int, ...] = (1, 2, 3)
    """Sizes to go through."""


def main(args, run):
    for n in run.progress(args.sizes, "sizes"):
        if run.rows.find(n=n) is None:
            run.rows.append({"n": n, "pid": os.getpid()})
        if n == 2:
            misbehave(os.environ.get("TOY"), run)
    return Result({"rows": list(run.rows)}, {"n": len(run.rows)})


def misbehave(how, run):
    if how == "hang":
        print("ready", flush=True)
        time.sleep(60)
    if how == "flood":
        print("ready", flush=True)
        while True:
            run.rows.append({"n": -len(run.rows), "text": "x" * 5000})
    if how == "torn":
        with (run.path / "rows.jsonl").open("ab") as file:
            file.write(b'{"n": 3, "pi')
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    launch(Args, main)
'''


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts the toy as a process: ``toy("--seed", "1", TOY="hang")``."""
    script = tmp_path / "toy.py"
    script.write_text(TOY)
    started: list[subprocess.Popen[str]] = []

    def start(*options: str, before: Callable[[], None] | None = None, **env: str) -> Any:
        process = subprocess.Popen(
            [sys.executable, str(script), *options],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_a_run_fills_its_folder_and_ends_with_its_summary(
    toy: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = toy("--sizes", "4", "2")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "sizes" in err  # the bar
    summary = json.loads(out.splitlines()[-1])
    assert summary["n"] == 2
    folder = tmp_path / summary["out"]
    assert folder.parent.name == "runs"
    assert folder.name.startswith("toy-2")
    assert [row["n"] for row in read(folder / "metrics.json")["rows"]] == [4, 2]
    config = read(folder / "config.json")
    assert config["args"]["sizes"] == [4, 2]
    assert config["script"] == "toy"
    assert config["command"].endswith("toy.py --sizes 4 2")
    assert config["versions"]["torch"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "metrics.json",
        "report.html",
        "rows.jsonl",
        "summary.json",
    ]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_keeps_the_rows_and_exits_130(
    toy: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals
) -> None:
    # A shell starts background jobs with SIGINT ignored: it must stop them all the same.
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = toy("--out", "a", "--quiet", "--no-report", TOY="hang", before=ignore)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert err == "stopped: finished rows kept: 2; go on with --resume --out a\n"
    rows = [json.loads(line) for line in (tmp_path / "a" / "rows.jsonl").open()]
    assert [row["n"] for row in rows] == [1, 2]

    process = toy("--out", "a", "--quiet", "--no-report", "--resume")
    assert json.loads(process.communicate(timeout=60)[0].splitlines()[-1])["n"] == 3
    assert read(tmp_path / "a" / "metrics.json")["rows"][:2] == rows


@pytest.mark.parametrize("how", ["torn", "flood"])
def test_kill_while_appending_loses_at_most_that_row(
    toy: Callable[..., subprocess.Popen[str]], tmp_path: Path, how: str
) -> None:
    process = toy("--out", "a", "--quiet", "--no-report", TOY=how)
    if how == "flood":
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.2)
        process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    whole = (tmp_path / "a" / "rows.jsonl").read_bytes().count(b"\n")
    assert whole >= 2

    process = toy("--out", "a", "--quiet", "--no-report", "--resume")
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 0, err
    rows = read(tmp_path / "a" / "metrics.json")["rows"]
    assert len(rows) == whole + 1
    assert len({row["pid"] for row in rows if "pid" in row}) == 2  # the first two are the old ones


@pytest.mark.parametrize("option", ["--help", "--quiet"])
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path, option: str) -> None:
    """``--help | head``: nothing on stderr, whether the text fits into the buffer or not."""
    script = tmp_path / "toy.py"
    script.write_text(TOY)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, str(script), option],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
