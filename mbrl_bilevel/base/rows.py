"""Finished rows of a run, one JSON object a line: appended as they are done, read on resume.

A row is on disk before append() returns; a line torn by a kill is dropped when the file is opened.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from mbrl_bilevel.base.errors import InvalidInputError

Row = dict[str, Any]


class Rows:
    """The rows of ``path`` in order of writing. Iterable; rows are as JSON gives them back."""

    def __init__(self, path: Path) -> None:
        """Read what is there. Raises InvalidInputError if anything but the last line is damaged."""
        self._path = path
        self._rows = _read(path)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(list(self._rows))

    def find(self, **key: object) -> Row | None:
        """The first row with all these values, or None: ``rows.find(method="nll", seed=0)``.

        A row with a ``failed`` entry is not found: what it stands for is still to be done.
        """
        wanted = strict(key)
        for row in self._rows:
            if "failed" not in row and all(
                name in row and row[name] == value for name, value in wanted.items()
            ):
                return row
        return None

    def require(self, row: Row, *names: str) -> Row:
        """``row`` itself, if it has these entries, all numbers or made of them (null: not finite).

        Raises InvalidInputError: somebody edited it.
        """
        for name in names:
            if name not in row or not _numeric(row[name]):
                raise InvalidInputError(
                    f"{self._path}: a row was edited, its {name!r} is missing or no number; "
                    "delete that line, then --resume"
                )
        return row

    def append(self, row: Mapping[str, object]) -> Row:
        """Save one finished row and give it back as JSON keeps it. Raises OSError (disk full)."""
        kept = strict(row)
        line = (json.dumps(kept, allow_nan=False) + "\n").encode()
        with self._path.open("ab", buffering=0) as file:
            start = file.seek(0, os.SEEK_END)
            try:
                # Unbuffered: one system call, so that a kill tears at most this line.
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(start)
                raise
        self._rows.append(kept)
        return kept


def _numeric(value: object) -> bool:
    if isinstance(value, list | dict):
        return all(map(_numeric, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, int | float)


def strict(document: Mapping[str, object]) -> Row:
    """A copy that is strict JSON.

    NaN and infinities become null and are listed under ``non_finite`` with their place, so that
    they are never lost without a trace. Paths become strings; arrays and tensors lists; dataclasses
    objects. Raises TypeError for anything else.
    """
    lost: dict[str, str] = {}
    result: Row = {key: _plain(value, str(key), lost) for key, value in document.items()}
    if lost:
        result["non_finite"] = lost
    return result


def _plain(value: Any, where: str, lost: dict[str, str]) -> Any:
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        lost[where] = str(float(value))
        return None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{where}: key {key!r} is no string, JSON would change it")
        return {key: _plain(item, f"{where}.{key}", lost) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]", lost) for i, item in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value), where, lost)
    if hasattr(value, "tolist"):  # NumPy and PyTorch, scalars too, without importing either
        return _plain(value.tolist(), where, lost)
    raise TypeError(f"{where}: {type(value).__name__} cannot be written as JSON")


def read_row(line: bytes) -> Row | None:
    """One line of the file; None where it is torn or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _read(path: Path) -> list[Row]:
    """The whole rows of the file, which is cut behind the last of them."""
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    rows: list[Row] = []
    good = 0
    for number, line in enumerate(lines, start=1):
        row = read_row(line)
        if row is None and number < len(lines):
            raise InvalidInputError(
                f"{path}: line {number} is damaged; mend or delete that line, then --resume"
            )
        if row is not None:
            rows.append(row)
            good += len(line)
    if good < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(good)
            os.fsync(file.fileno())
    return rows
