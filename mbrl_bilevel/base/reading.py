"""Rows and configuration in another run's folder, read while it may still be writing them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.rows import Row, read_row

#: What must hold of a value: name -> test.
Tests = Mapping[str, Callable[[Any], bool]]


def read_rows(folder: Path, tests: Tests | None = None) -> list[Row]:
    """The finished rows in ``folder``; none if there is no such run, no torn last line, no failures.

    Raises InvalidInputError, with the file and the line, for a row that is damaged or fails a test.
    """
    return read_file(folder / "rows.jsonl", tests)


def read_file(path: Path, tests: Tests | None = None) -> list[Row]:
    """Likewise of a file of any name."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    rows: list[Row] = []
    for number, row in numbered_rows(content, path):
        if "failed" in row:
            continue
        odd = misfit(row, tests or {})
        if odd is not None:
            raise edited(path, number, odd)
        rows.append(row)
    return rows


def numbered_rows(content: bytes, path: Path) -> Iterator[tuple[int, Row]]:
    """The rows in the ``content`` of the file ``path``, each with its line's number, but for a torn last line: it
    is still being written, or was when the run was killed.

    Raises InvalidInputError, with the file and the line, for a damaged one.
    """
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        row = read_row(line)
        if row is None and not line.endswith(b"\n") and number == len(lines):
            return
        if row is None:
            raise InvalidInputError(f"{path}: line {number} is damaged; mend or delete that line")
        yield number, row


def config_in(folder: Path) -> dict[str, Any]:
    """What the config.json of the run in ``folder`` says; nothing where there is none, or it is damaged."""
    try:
        found = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def edited(path: Path, number: int, name: str) -> InvalidInputError:
    """What to raise for a row whose value ``name``, in the file's line of that ``number``, is not a script's."""
    return InvalidInputError(
        f"{path}: line {number} was edited, its {name!r} is missing or cannot be; "
        "mend or delete that line"
    )


def misfit(document: Mapping[str, Any], tests: Tests) -> str | None:
    """The first name that is missing or fails its test."""
    for name, test in tests.items():
        if name not in document or not test(document[name]):
            return name
    return None


def is_text(value: object) -> bool:
    """Whether a value is a string."""
    return isinstance(value, str)


def is_seed(value: object) -> bool:
    """Whether a value is an int that can be a run's seed."""
    return type(value) is int and 0 <= value < 2**62


def is_number(value: Any) -> bool:
    """Whether a value is a number that can be summed, squared and drawn."""
    return type(value) in (int, float) and -1e100 < value < 1e100
