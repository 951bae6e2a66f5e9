"""Every bad command line is told in one line that names the option and what would do."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from mbrl_bilevel.base.errors import InvalidInputError, require_count
from mbrl_bilevel.studies.arguments import RunArgs, naming, parse


@dataclass(frozen=True)
class Args(RunArgs):
    n_train: tuple[int, ...] = (1, 2, 3)
    """Sizes of the training set."""
    methods: tuple[Literal["bilevel", "nll"], ...] = ("bilevel",)
    """Methods to compare."""
    lr: float | None = None
    """Learning rate."""
    pair: tuple[float, float] = (0.0, 1.0)
    """From and to."""
    video: bool = False
    """Make a film."""


def complaint(*argv: str, of: type = Args) -> str:
    with pytest.raises(InvalidInputError) as caught:
        parse(of, argv, None)
    return str(caught.value)


def test_options_become_the_dataclass() -> None:
    argv = ["--n-train", "4", "5", "--methods", "nll", "bilevel", "--lr", "1e-2"]
    argv += ["--video", "--seed", "7", "--out", "runs/a"]
    assert parse(Args, argv, None) == Args(
        n_train=(4, 5), methods=("nll", "bilevel"), lr=0.01, video=True, seed=7, out=Path("runs/a")
    )
    assert parse(Args, [], None) == Args()


def test_the_old_name_of_an_option_is_taken() -> None:
    @dataclass(frozen=True)
    class Renamed(RunArgs):
        renamed: ClassVar[Mapping[str, str]] = {"model_kind": "method"}
        method: str = "bilevel"
        """Method."""

    for argv in (["--model-kind", "nll"], ["--model-kind=nll"], ["--method", "nll"]):
        assert parse(Renamed, argv, None) == Renamed(method="nll")
    with pytest.raises(InvalidInputError, match=r"^--method: give a value"):
        parse(Renamed, ["--model-kind"], None)


def test_help_lists_every_option_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(Args, ["--help"], "What the script does.")
    assert caught.value.code == 0
    words = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "What the script does." in words
    for text in (
        "--out {None}|PATH Folder of the run; None makes runs/<name>-<time>. (default: None)",
        "--seed INT Seed of every random draw, 0 or more. (default: 0)",
        "--quiet No progress bars and no table on stderr. (default: False)",
        "--threads INT",
        "Sizes of the training set. (default: 1 2 3)",
        "Methods to compare. (default: bilevel)",
    ):
        assert text in words


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("--seed x", "--seed: 'x' is not an int"),
        ("--n-train 1 x", "--n-train: 'x' is not an int"),
        ("--n_train 1.5", "--n-train: '1.5' is not an int"),
        ("--lr fast", "--lr: 'fast' is not a number"),
        ("--n-trian 4", "unknown option --n-trian; did you mean --n-train?"),
        ("--sed=4", "unknown option --sed; did you mean --seed?"),
        ("--frobnicate", "unknown option --frobnicate; --help lists the options"),
        ("stray", "unexpected argument 'stray'; --help lists the options"),
        ("--methods bilevel mle", "--methods: 'mle' is not one of 'bilevel', 'nll'"),
        ("--methods", "--methods: give at least one value"),
        ("--seed", "--seed: give a value"),
        ("--pair 1 x", "--pair: 'x' is not a number"),
        ("--no-video", "unknown option --no-video; did you mean --video?"),
        ("--video yes", "unexpected argument 'yes'; --help lists the options"),
        ("--seed -1", "--seed must be 0 or more and below 2^62; got -1"),
        ("--threads -1", "--threads must be at least 0 and at most 1,024; got -1"),
    ],
)
def test_a_bad_option_is_told_in_one_line(options: str, line: str) -> None:
    assert complaint(*options.split()) == line


@dataclass(frozen=True)
class Checked(RunArgs):
    replan_every: int = 1
    """Handed on to a library."""
    steps: int = 1
    """Likewise, under the name of count."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("Plan: replan_every", self.replan_every, 9)
        with naming("--steps"):
            require_count("count", self.steps, 9)


def test_what_a_library_refuses_is_told_of_the_option_as_typed() -> None:
    told = "must be an int from 1 to 9; got 99"
    assert complaint("--replan-every", "99", of=Checked) == f"--replan-every {told}"
    assert complaint("--steps", "99", of=Checked) == f"--steps: count {told}"


@dataclass(frozen=True)
class Required(RunArgs):
    csv: Path
    """Table to read."""
    columns: tuple[str, ...]
    """Columns of it."""


def test_a_missing_option_is_told_in_one_line() -> None:
    line = "--csv is required; --help says what it takes"
    assert complaint("--columns", "a", of=Required) == line
    assert complaint("--csv", "a", "--columns", of=Required) == "--columns: give at least one value"


def test_the_colours_of_a_terminal_do_not_reach_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert complaint("--seed", "x") == "--seed: 'x' is not an int"


def test_a_narrow_terminal_does_not_break_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    assert complaint("--methods", "mle") == "--methods: 'mle' is not one of 'bilevel', 'nll'"
