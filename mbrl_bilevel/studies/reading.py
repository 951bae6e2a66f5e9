"""Rows of another run's folder, read while it may still be writing them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.rows import Row, read_row

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
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        row = read_row(line)
        if row is None and not line.endswith(b"\n") and number == len(lines):
            break
        if row is None:
            raise InvalidInputError(f"{path}: line {number} is damaged; mend or delete that line")
        if "failed" in row:
            continue
        odd = misfit(row, tests or {})
        if odd is not None:
            raise InvalidInputError(
                f"{path}: line {number} was edited, its {odd!r} is missing or cannot be; "
                "mend or delete that line"
            )
        rows.append(row)
    return rows


def misfit(document: Mapping[str, Any], tests: Tests) -> str | None:
    """The first name that is missing or fails its test."""
    for name, test in tests.items():
        if name not in document or not test(document[name]):
            return name
    return None
