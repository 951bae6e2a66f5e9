"""What is kept of a study's cells: the evaluations of each, and beside them what they were made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _reading import Tests, read_file
from _rows import Row, strict
from study_grid import Cell

from mbrl_bilevel.atomic import write_atomically
from mbrl_bilevel.errors import InvalidInputError

#: Of the metrics, what the rows do not say.
_METRICS = ("env_steps", "wall_seconds", "peak_memory_mb", "device")


@dataclass(frozen=True)
class Kept:
    """The evaluations of a cell by their steps, and ``about``: its options, what they came to, the versions
    it ran with; of a finished one its metrics."""

    rows: Mapping[int, Row]
    about: Mapping[str, Any]

    @property
    def finished(self) -> bool:
        """Whether the cell came to its end."""
        return bool(self.about["finished"])


def keep(folder: Path, store: Path, cell: Cell) -> None:
    """Copy what the run in ``folder`` has come to into ``store``. Nothing, if it has no evaluation yet."""
    rows = evaluations(folder / "rows.jsonl")
    if not rows:
        return
    config = _json(folder / "config.json")
    metrics = _json(folder / "metrics.json") if (folder / "metrics.json").exists() else None
    about = {
        "finished": metrics is not None,
        "options": list(cell.options),
        **{name: config.get(name) for name in ("resolved", "versions", "git_commit")},
        "metrics": {name: metrics.get(name) for name in _METRICS} if metrics else None,
    }
    lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows.values())
    path = store / cell.name
    path.parent.mkdir(parents=True, exist_ok=True)
    # In this order: a cell that is said to be finished has all its rows.
    write_atomically(_named(path, "jsonl"), lines.encode())
    text = json.dumps(strict(about), allow_nan=False) + "\n"
    write_atomically(_named(path, "json"), text.encode())


def kept(store: Path, cell: Cell) -> Kept | None:
    """What is kept of a cell; None if nothing is.

    Raises InvalidInputError if it was run with other options than are declared now, or is damaged.
    """
    path = store / cell.name
    if not _named(path, "json").exists():
        return None
    about = _json(_named(path, "json"))
    if about.get("options") != list(cell.options):
        raise InvalidInputError(
            f"{_named(path, 'json')} was run with other options than {' '.join(cell.options)}; move it "
            "away to run it anew, or mend the study's file"
        )
    if type(about.get("finished")) is not bool:
        raise InvalidInputError(f"{_named(path, 'json')}: it is damaged; restore it")
    return Kept(evaluations(_named(path, "jsonl")), about)


def _named(path: Path, ending: str) -> Path:
    """Not with_suffix: there may be a dot in a column's name."""
    return path.with_name(f"{path.name}.{ending}")


def evaluations(path: Path) -> dict[int, Row]:
    """The rows of a file by their real steps; none if there is no file."""
    return {row["step"]: row for row in read_file(path, _POINT)}


def _is_number(value: object) -> bool:
    return value is None or type(value) in (int, float)


_POINT: Tests = {"step": lambda value: type(value) is int, "mean": _is_number}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidInputError(f"{path} is missing; restore it") from None
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InvalidInputError(f"{path}: it is damaged; restore it")
    return found
