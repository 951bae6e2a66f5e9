"""The command line of every script: a dataclass in, its instance or one line of complaint out.

Parsed by tyro, whose boxed errors are caught and told in one line; docstrings become the help.
"""

from __future__ import annotations

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_args, get_type_hints

import tyro

from mbrl_bilevel.base.errors import BilevelError, InvalidInputError
from mbrl_bilevel.studies.tracking import require_wandb


@dataclass(frozen=True, kw_only=True)
class RunArgs:
    """Options that every run has; a study's own options are the fields of a subclass.

    A field is an option of that name (``n_train`` is ``--n-train``), its default the option's, the string
    below it the help text. A tuple takes several values. ``__post_init__`` checks the values and raises
    InvalidInputError; that of a subclass calls this one first.
    """

    out: Path | None = None
    """Folder of the run; None makes runs/<name>-<time>."""
    seed: int = 0
    """Seed of every random draw, 0 or more."""
    quiet: bool = False
    """No progress bars and no table on stderr."""
    no_report: bool = False
    """Write no report.html, the page of the run, at its end."""
    wandb: bool = False
    """Log to Weights & Biases as well (extra [wandb]); its variables, such as WANDB_MODE=offline, are obeyed."""
    resume: bool = False
    """Go on with the run in --out: its finished rows are kept. A finished one goes on to more --seeds, of
    train to more --steps."""
    threads: int = 0
    """CPU threads for PyTorch; 0: one where no layer has more than 600 units, else PyTorch's default. With --jobs
    each process computes with one."""

    #: Fields that had another name once, old -> new. The old one is still taken on the command line, and
    #: runs that were started with it go on.
    renamed: ClassVar[Mapping[str, str]] = {}
    #: Counts that may be higher when a run is resumed, finished or not: it then goes on to more.
    grows: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        # First of all: what a subclass checks may look at the first value of a list.
        _refuse_empty_lists(self)
        if not 0 <= self.seed < 2**62:
            raise InvalidInputError(f"--seed must be 0 or more and below 2^62; got {self.seed}")
        # As a path, '' is the working folder: a run would be strewn over it.
        if self.out is not None and self.out == Path():
            raise InvalidInputError("--out: give a folder of the run's own, not the working folder")
        self.require_at_least(0, "threads", most=1024)
        if self.wandb:
            require_wandb()

    def require_at_least(self, least: int, *names: str, most: float = 10**7) -> None:
        """Check numbers, and each number of a tuple.

        ``names``: fields of these options. Raises InvalidInputError for the first with a value below
        ``least`` or above ``most``, which is no recommendation: it is where a slip of the finger would
        fill the memory.
        """
        for name in names:
            value = getattr(self, name)
            values = value if isinstance(value, tuple) else (value,)
            if values and not least <= min(values) <= max(values) <= most:
                raise InvalidInputError(
                    f"{option_name(name)} must be at least {least} and at most {most:,}; got {value}"
                )

    def require_positive(self, *names: str, zero: bool = False, most: float = 1e6) -> None:
        """Check that numbers are above 0 (with ``zero``, 0 too) and at most ``most``.

        ``names``: fields of these options. Raises InvalidInputError for the first that is not; NaN is not.
        """
        for name in names:
            value = getattr(self, name)
            if not (0.0 < value <= most or (zero and value == 0.0)):
                raise InvalidInputError(
                    f"{option_name(name)} must be {'0 or ' if zero else ''}positive and at most "
                    f"{most:,.0f}; got {value}"
                )

    def refuse_unused(
        self, users: Mapping[str, Sequence[str]], chooser: str, chosen: Sequence[str]
    ) -> None:
        """Raises InvalidInputError for the first option with a value of its own that nobody uses.

        ``users``: who uses an option, where not all do; ``chosen``: whom the option ``chooser`` names.
        """
        for field in fields(self):
            mine = users.get(field.name, chosen)
            if set(mine).isdisjoint(chosen) and getattr(self, field.name) != field.default:
                raise InvalidInputError(
                    f"{option_name(field.name)} is of {chooser} {' and '.join(mine)}, "
                    f"{' and '.join(chosen)} would ignore it: leave it out"
                )


A = TypeVar("A")


def parse(args_type: type[A], argv: Sequence[str] | None, description: str | None) -> A:
    """Read a command line.

    ``args_type``: the dataclass of its options; ``argv``: what was typed behind the script's name, None
    takes it from ``sys.argv``; ``description``: what --help says first. Raises InvalidInputError, naming the
    option and what would do; SystemExit(0) after --help.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            args, unknown = tyro.cli(
                args_type,
                args=_renamed(args_type, sys.argv[1:] if argv is None else argv),
                description=description,
                return_unknown_args=True,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        if isinstance(
            stop.__context__, BilevelError
        ):  # of __post_init__: tyro's box would break it
            raise as_typed(stop.__context__, args_type) from None
        raise InvalidInputError(_one_line(complaint.getvalue(), args_type)) from None
    sys.stderr.write(complaint.getvalue())  # warnings, if any: not ours to hide
    if unknown:
        raise InvalidInputError(_unknown(unknown[0], args_type))
    return args


def _renamed(args_type: Any, argv: Sequence[str]) -> list[str]:
    """``argv`` with the options' present names: ``--model=nll`` -> ``--method=nll``."""
    names = {option_name(o): option_name(n) for o, n in getattr(args_type, "renamed", {}).items()}
    parts = [word.partition("=") for word in argv]
    return [names.get(option, option) + equals + value for option, equals, value in parts]


def _refuse_empty_lists(args: Any) -> None:
    """``--methods`` with nothing behind it parses, but means a run of nothing."""
    for field in fields(args):
        default = field.default_factory() if callable(field.default_factory) else field.default
        if getattr(args, field.name) in ((), []) and default not in ((), []):
            raise InvalidInputError(f"{option_name(field.name)}: give at least one value")


@contextlib.contextmanager
def naming(option: str) -> Iterator[None]:
    """Put the option's name before the message of any BilevelError raised inside the block: with
    ``naming("--methods")``, "unknown method 'nul'" becomes "--methods: unknown method 'nul'"."""
    try:
        yield
    except BilevelError as error:
        raise type(error)(f"{option}: {error}") from error


def as_typed(error: BilevelError, args_type: Any) -> BilevelError:
    """Where a library names its argument, ``replan_every must be …``, the option of that name."""
    found = re.match(r"(?:[\w.]+: )?(\w+)(?= (?:must|needs) )", str(error))
    if found is None or found[1] not in {field.name for field in fields(args_type)}:
        return error
    return type(error)(option_name(found[1]) + str(error)[found.end() :])


def option_name(name: str) -> str:
    """A field of the arguments as it is typed: n_train -> --n-train."""
    return "--" + name.replace("_", "-")


def _unknown(token: str, args_type: Any) -> str:
    if not token.startswith("-"):
        return f"unexpected argument {token!r}; --help lists the options"
    given = token.partition("=")[0].replace("_", "-")
    known = [option_name(field.name) for field in fields(args_type)]
    near = difflib.get_close_matches(given, known, n=1, cutoff=0.7)
    hint = f"did you mean {near[0]}?" if near else "--help lists the options"
    return f"unknown option {given}; {hint}"


_SIMPLER = (
    (r"Missing from .*?: (\S+)", r"\1 is required; --help says what it takes"),
    (r"Missing value for argument '(.*?)'.*", r"\1: give a value"),
    (r"invalid choice '(.*)' for argument '(.*?)'.*? \((.*?),?\)", r"\2: '\1' is not one of \3"),
)


def _one_line(boxed: str, args_type: Any) -> str:
    """tyro's box as one line: its first paragraph, simpler where a value has a wrong type."""
    text = _first_paragraph(boxed)
    for pattern, words in _SIMPLER:
        if found := re.match(pattern, text):
            return found.expand(words)
    found = re.match(r"Error parsing ([^:]+): (.*)", text)
    if not found:
        return text or "bad command line; --help lists the options"
    option, reason = found[1], found[2].partition(" Got errors:")[0]
    hint = get_type_hints(args_type).get(option.strip("-").replace("-", "_"))
    return f"{option}: {_misfit(reason, hint) or reason}"


def _first_paragraph(boxed: str) -> str:
    """The words between the title of the box and the next rule, without colours and frame."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    lines = [line.strip(" │╭╮╰╯") for line in plain.splitlines()[1:]]
    words: list[str] = []
    for line in lines:
        if not line.strip("─-"):
            if words:
                break
            continue
        words += line.split()
    return " ".join(words)


def _misfit(reason: str, hint: Any) -> str | None:
    """``'x' is not an int``, where the option takes numbers and some value is none."""
    leaves = _leaves(hint)
    if not leaves & {int, float} or not leaves <= {int, float, type(None), Ellipsis}:
        return None
    kind, words = (float, "a number") if float in leaves else (int, "an int")
    for value in re.findall(r"'([^']*)'", reason):
        try:
            kind(value)
        except ValueError:
            return f"{value!r} is not {words}"
    return None


def _leaves(hint: Any) -> set[Any]:
    """The types a hint is built of: ``tuple[int, ...] | None`` -> {int, Ellipsis, NoneType}."""
    inner = get_args(hint)
    return set().union(*map(_leaves, inner)) if inner else {hint}
