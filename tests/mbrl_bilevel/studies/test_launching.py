"""The contract of the scripts: run folder, metrics, one-line errors, resume."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.rows import Rows
from mbrl_bilevel.studies.arguments import RunArgs
from mbrl_bilevel.studies.launching import Result, launch, launch_tool
from mbrl_bilevel.studies.run_folder import RunFolder


@dataclass(frozen=True)
class Args(RunArgs):
    n_train: tuple[int, ...] = (1, 2, 3)
    """Sizes of the training set."""


def main(args: Args, run: RunFolder) -> Result:
    for n in run.progress(args.n_train, "sizes"):
        if run.rows.find(n=n) is None:
            run.rows.append({"n": n, "when": time.perf_counter_ns(), "nll": float("nan")})
    return Result({"rows": list(run.rows)}, {"n": len(run.rows)})


def run(out: Path, *options: str, main: Any = main, quiet: bool = True) -> None:
    launch(
        Args, main, ["--out", str(out), *(["--quiet", "--no-report"] if quiet else []), *options]
    )


def failure(capsys: pytest.CaptureFixture[str], call: Callable[[], None]) -> str:
    """The one line on stderr of a call that ends with exit code 2 and says nothing on stdout."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        call()
    out, err = capsys.readouterr()
    assert (caught.value.code, out, err.count("\n")) == (2, "", 1), err
    assert err.startswith("error: ")
    return err.strip()


def read(path: Path) -> Any:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_a_bad_option_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = failure(capsys, lambda: run(tmp_path / "a", "--n-trian", "4"))
    assert line == "error: unknown option --n-trian; did you mean --n-train?"
    assert not (tmp_path / "a").exists()


def test_a_refused_run_leaves_the_folder_free(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(args: Args, run: RunFolder) -> Result:
        raise InvalidInputError("--env-id: no such\nenvironment")

    line = failure(capsys, lambda: run(tmp_path / "a", main=refuse))
    assert line == "error: --env-id: no such environment"
    assert not (tmp_path / "a").exists()
    run(tmp_path / "a")


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    def bug(args: Args, run: RunFolder) -> Result:
        run.rows.append({"n": 1})
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(tmp_path / "a", main=bug)
    assert not (tmp_path / "a" / "metrics.json").exists()
    run(tmp_path / "a", "--resume")
    assert "when" not in read(tmp_path / "a" / "metrics.json")["rows"][0]


def test_a_used_folder_is_refused_and_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert "holds a run already; go on with it by --resume" in failure(
        capsys, lambda: run(tmp_path)
    )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert "is a file" in failure(capsys, lambda: run(tmp_path / "config.json"))


def test_resume_of_a_finished_run_gives_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path)
    first = capsys.readouterr().out, (tmp_path / "metrics.json").read_bytes()

    def again(args: Args, run: RunFolder) -> Result:
        raise AssertionError("a finished run must not be run again")

    run(tmp_path, "--resume", main=again)
    assert (capsys.readouterr().out, (tmp_path / "metrics.json").read_bytes()) == first
    # And with its metrics lost, the rows alone give them again.
    (tmp_path / "metrics.json").unlink()
    run(tmp_path, "--resume")
    assert (capsys.readouterr().out, (tmp_path / "metrics.json").read_bytes()) == first


def test_a_run_ends_with_its_page_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line on stdout stays alone; a page that cannot be written is told, and undoes nothing."""
    run(tmp_path / "a", "--n-train", "4", "5", quiet=False)
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 2
    page = (tmp_path / "a" / "report.html").read_text()
    command = read(tmp_path / "a" / "config.json")["command"]
    assert command == f"python test_launching.py --out {tmp_path / 'a'} --n-train 4 5"
    assert command in page
    assert f"page: {tmp_path / 'a' / 'report.html'}" in err
    (tmp_path / "a" / "report.html").unlink()
    (tmp_path / "a" / "report.html").mkdir()
    run(tmp_path / "a", "--resume", "--n-train", "4", "5", "--quiet", quiet=False)
    out, err = capsys.readouterr()
    assert json.loads(out)["n"] == 2
    assert err.startswith("warning: no page: IsADirectoryError")
    run(tmp_path / "b", "--no-report", quiet=False)
    assert not (tmp_path / "b" / "report.html").exists()
    assert "page" not in capsys.readouterr().err


def test_resume_needs_the_same_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "new", "--resume")  # nothing there yet: just starts
    line = failure(capsys, lambda: run(tmp_path / "new", "--resume", "--n-train", "1", "2"))
    assert "--n-train [1, 2, 3], now it is --n-train [1, 2]; give the same options" in line
    assert "--seed 0, now it is --seed 3" in failure(
        capsys, lambda: run(tmp_path / "new", "--resume", "--seed", "3")
    )
    run(tmp_path / "new", "--resume", "--threads", "1")
    assert "--resume: say which run" in failure(capsys, lambda: launch(Args, main, ["--resume"]))
    (tmp_path / "new" / "config.json").write_text("{")
    assert "config.json is damaged" in failure(capsys, lambda: run(tmp_path / "new", "--resume"))
    (tmp_path / "new" / "config.json").unlink()
    assert "config.json is missing" in failure(capsys, lambda: run(tmp_path / "new", "--resume"))


def test_a_run_goes_on_whose_option_had_another_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @dataclass(frozen=True)
    class Renamed(Args):
        renamed: ClassVar[Mapping[str, str]] = {"sizes": "n_train"}

    run(tmp_path, "--n-train", "1", "2")
    config = read(tmp_path / "config.json")
    config["args"]["sizes"] = config["args"].pop("n_train")
    (tmp_path / "config.json").write_text(json.dumps(config))
    fixed = ["--quiet", "--no-report", "--resume", "--out", str(tmp_path)]
    launch(Renamed, main, [*fixed, "--n-train", "1", "2"])
    line = failure(capsys, lambda: launch(Renamed, main, [*fixed, "--n-train", "1"]))
    assert "started with --n-train [1, 2], now it is --n-train [1]" in line


@dataclass(frozen=True)
class Growing(RunArgs):
    grows: ClassVar[tuple[str, ...]] = ("repeats",)

    repeats: int = 2
    """How many rows."""


def fill(args: Growing, run: RunFolder) -> Result:
    for n in range(args.repeats):
        if run.rows.find(n=n) is None:
            run.rows.append({"n": n, "when": time.perf_counter_ns()})
    return Result({"rows": list(run.rows)}, {"n": len(run.rows)})


def test_a_finished_run_goes_on_to_more(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def ran(*options: str) -> Any:
        launch(Growing, fill, ["--out", str(tmp_path), *options])
        assert json.loads(capsys.readouterr().out)["n"] == len(
            read(tmp_path / "metrics.json")["rows"]
        )
        return read(tmp_path / "metrics.json")["rows"]

    first = ran()
    more = ran("--resume", "--repeats", "4")
    assert [row["n"] for row in more] == [0, 1, 2, 3]
    assert more[:2] == first
    assert ran("--resume", "--repeats", "4") == more
    assert read(tmp_path / "config.json")["args"]["repeats"] == 4
    less = ["--out", str(tmp_path), "--resume", "--repeats", "3"]
    line = failure(capsys, lambda: launch(Growing, fill, less))
    assert "was started with --repeats 4, now it is --repeats 3" in line


def test_going_on_to_more_may_be_stopped_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(tmp_path), "--resume", "--repeats"]
    launch(Growing, fill, [*options, "1"])

    def killed(*args: Any) -> None:
        raise KeyboardInterrupt

    for name in ("write_json", "finish"):  # before the new options are written, and after
        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, name, killed)
            with pytest.raises(SystemExit):
                launch(Growing, fill, [*options, "3"])
        assert not (tmp_path / "metrics.json").exists()
    launch(Growing, fill, [*options, "3"])
    assert len(read(tmp_path / "metrics.json")["rows"]) == 3


@dataclass(frozen=True)
class Wide(RunArgs):
    hidden: tuple[int, ...] = (200, 200)
    """Widths."""


@pytest.mark.parametrize(
    ("options", "inside"),
    [
        ([], 1),
        (["--hidden", "601"], 3),
        (["--threads", "2"], 2),
        (["--threads", "2", "--hidden", "601"], 2),
    ],
)
def test_threads_are_as_many_as_the_layers_are_worth(
    tmp_path: Path, options: list[str], inside: int
) -> None:
    import torch

    seen = []

    def look(args: Wide, run: RunFolder) -> Result:
        seen.append(torch.get_num_threads())
        return Result({})

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        launch(Wide, look, ["--out", str(tmp_path), *options])
    finally:
        torch.set_num_threads(before)
    assert seen == [inside]


def test_resume_of_another_script_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path)
    config = read(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps({**config, "script": "train"}))
    line = failure(capsys, lambda: run(tmp_path, "--resume"))
    assert "holds a run of 'train', not of 'test_launching'" in line


def test_what_a_kill_left_half_written_goes_and_nothing_else(tmp_path: Path) -> None:
    ours = [tmp_path / ".metrics.json.17.tmp", tmp_path / "checkpoints" / ".a.safetensors.17.tmp"]
    theirs = [tmp_path / ".mine.tmp", tmp_path / ".mine.17.tmp", tmp_path / "checkpoints" / "a.tmp"]
    (tmp_path / "checkpoints").mkdir()
    for path in ours + theirs:
        path.write_text("")
    run(tmp_path)
    assert not any(path.exists() for path in ours)
    assert all(path.exists() for path in theirs)


def test_two_processes_cannot_share_a_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def nested(args: Args, outer: RunFolder) -> Result:
        outer.rows.append({"n": 1})
        line = failure(capsys, lambda: run(tmp_path, "--resume"))
        assert "another process is writing" in line
        return Result({})

    run(tmp_path, main=nested)


def test_a_full_disk_keeps_whole_rows_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(args: Args, run: RunFolder) -> Result:
        run.rows.append({"text": "x" * 3000})
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        run.rows.append({"text": "y" * 3000})
        raise AssertionError("the disk was full")

    try:
        line = failure(capsys, lambda: run(tmp_path / "a", main=fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "rows.jsonl" in line
    assert (tmp_path / "a" / "rows.jsonl").read_bytes().endswith(b"\n")
    assert [row["text"][0] for row in Rows(tmp_path / "a" / "rows.jsonl")] == ["x"]


def test_an_unwritable_place_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert "Not a directory" in failure(capsys, lambda: run(tmp_path / "file" / "out"))
    assert "/proc/none" in failure(capsys, lambda: run(Path("/proc/none")))


def test_os_errors_of_the_code_are_bugs(tmp_path: Path) -> None:
    def bug(args: Args, run: RunFolder) -> Result:
        os.close(10**6)
        raise AssertionError

    with pytest.raises(OSError, match="Bad file descriptor"):
        run(tmp_path / "a", main=bug)


def test_non_finite_metrics_are_marked_on_disk(tmp_path: Path) -> None:
    run(tmp_path)
    row = read(tmp_path / "metrics.json")["rows"][0]
    assert row["nll"] is None
    assert row["non_finite"] == {"nll": "nan"}


def test_quiet_silences_the_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "a", quiet=False)
    assert "sizes" in capsys.readouterr().err
    run(tmp_path / "b", quiet=True)
    assert capsys.readouterr().err == ""


def test_the_lazy_parts_of_the_folder(tmp_path: Path) -> None:
    import torch

    def use(args: Args, run: RunFolder) -> Result:
        assert torch.get_num_threads() == other
        assert run.checkpoints == tmp_path / "checkpoints"
        assert run.figures.is_dir()
        run.tensorboard.add_scalar("loss", 1.0, 0)
        bar = run.bar(10, "steps")
        bar.update(3)
        return Result({"loss": torch.tensor(1.5)})

    before = torch.get_num_threads()
    other = before + 1
    try:
        run(tmp_path, "--threads", str(other), main=use)
    finally:
        torch.set_num_threads(before)
    assert read(tmp_path / "metrics.json") == {"loss": 1.5}
    assert len(list(tmp_path.glob("events.out.tfevents.*"))) == 1


@dataclass(frozen=True)
class ToolArgs:
    out: Path = Path("report.html")
    """Page to write."""


def test_a_tool_prints_its_summary_and_makes_no_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch_tool(ToolArgs, lambda args: {"page": args.out}, ["--out", str(tmp_path / "a.html")])
    assert json.loads(capsys.readouterr().out) == {"page": str(tmp_path / "a.html")}
    assert list(tmp_path.iterdir()) == []
    line = failure(
        capsys,
        lambda: launch_tool(ToolArgs, lambda args: {"x": Path("no/such/file").read_text()}, []),
    )
    assert line.startswith("error: No such file or directory: no/such/file; check the path")
