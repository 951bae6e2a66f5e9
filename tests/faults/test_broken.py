"""A full disk, faulty environments, diverging training, damaged agents: told, and gone on from."""

from __future__ import annotations

import json
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from faulting import RUNS, metrics
from matplotlib.figure import Figure

from mbrl_bilevel.studies.launching import launch


def go(name: str, out: Path, *more: str, figures: bool = False) -> int:
    """The exit code of a run in this process; its figures' files take the longest."""
    script, *options = RUNS[name]
    module: Any = import_module(script)
    with pytest.MonkeyPatch.context() as patch:
        if not figures:
            patch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: None)
        try:
            launch(
                module.Args,
                module.main,
                [*options, "--quiet", "--no-report", "--out", str(out), *more],
            )
        except SystemExit as stop:
            return int(str(stop.code))
    return 0


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each run undisturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert [go(name, folder / name) for name in RUNS] == [0] * len(RUNS)
    return {name: folder / name for name in RUNS}


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes, as if the disk were full there."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [1500, 9000])
@pytest.mark.parametrize("name", RUNS)
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    name: str,
    size: int,
    whole: dict[str, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "a"
    with full_disk(size):
        code = go(name, out, figures=True)
    err = capsys.readouterr().err.strip()
    assert code == 2, err
    assert "\n" not in err
    assert "free space" in err
    assert not list(tmp_path.rglob("*.tmp"))
    if (rows := out / "rows.jsonl").exists():
        assert all(json.loads(line) for line in rows.read_text().splitlines())
    assert go(name, out, "--resume") == 0
    assert metrics(out) == metrics(whole[name])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--env-id", "RaisingLine-v0"], "raised ValueError: wheel lost"),
        (["--env-id", "HangingLine-v0", "--env-timeout", "0.2"], "longer than 0.2 s"),
        (["--learning-rate", "1e6"], "diverged"),
    ],
)
def test_what_goes_wrong_later_is_one_line_and_the_last_agent_is_kept(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go("train", tmp_path / "a", *options) == 2
    err = capsys.readouterr().err.strip()
    assert "\n" not in err
    assert told in err
    assert f"go on with --resume --out {tmp_path / 'a'}" in err
    assert (tmp_path / "a" / "checkpoints" / "agent-40.safetensors").exists()
    assert (tmp_path / "a" / "checkpoints" / "best.safetensors").exists()


def test_a_damaged_agent_is_passed_over_for_the_one_before_it(
    whole: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a"
    shutil.copytree(whole["train"], out)
    for name in ("metrics.json", "summary.json"):
        (out / name).unlink()
    agents = sorted((out / "checkpoints").glob("agent-*"))
    assert [path.name for path in agents] == ["agent-120.safetensors", "agent-80.safetensors"]
    agents[0].write_bytes(agents[0].read_bytes()[:-100])
    assert go("train", out, "--resume") == 0
    assert "passed over: checkpoint" in capsys.readouterr().err
    assert metrics(out) == metrics(whole["train"])
    # With all of them damaged there is nothing to go on from: said, and nothing is touched.
    for path in ("metrics.json", "summary.json"):
        (out / path).unlink()
    for path in agents:
        path.write_bytes(b"\x80\x04N.")
    assert go("train", out, "--resume") == 2
    assert "pickle, which is never opened" in capsys.readouterr().err.splitlines()[-1]
    assert [path.read_bytes() for path in agents] == [b"\x80\x04N."] * 2


def test_edited_rows_are_told(
    whole: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, column in (("train", "mean"), ("compare", "nll")):
        out = tmp_path / name
        shutil.copytree(whole[name], out)
        for path in ("metrics.json", "summary.json"):
            (out / path).unlink()
        rows = out / "rows.jsonl"
        for edit in ('"nothing": ', f'"{column}": "x", "y": '):
            text = (whole[name] / "rows.jsonl").read_text()
            rows.write_text(text.replace(f'"{column}": ', edit, 1))
            edited = rows.read_bytes()
            assert go(name, out, "--resume") == 2
            err = capsys.readouterr().err.strip()
            assert "\n" not in err
            assert f"a row was edited, its {column!r} is missing or no number" in err
            assert rows.read_bytes() == edited


def test_a_metric_that_is_not_finite_does_not_stop_the_summary(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "a"
    shutil.copytree(whole["compare"], out)
    for path in ("metrics.json", "summary.json"):
        (out / path).unlink()
    lines = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    lines[0] |= {"nll": None, "nrmse": None, "non_finite": {"nll": "inf", "nrmse": "inf"}}
    (out / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert go("compare", out, "--resume") == 0
    found = metrics(out)["summary"]
    assert [line["nll"]["mean"] is None for line in found].count(True) == 1
