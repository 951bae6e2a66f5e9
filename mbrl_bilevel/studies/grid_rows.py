"""What is kept of a study's cells: the evaluations of each, and beside them what they were made with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbrl_bilevel.base.atomic import write_atomically
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.reading import Tests, is_number, read_file
from mbrl_bilevel.base.rows import Row, strict
from mbrl_bilevel.studies.grid import Cell

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
        "finished": metrics is not None and cell.steps in rows,
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

    What says that it is finished is not, where the row at its last step is missing. Raises InvalidInputError
    if it was run with other options than are declared now, or is damaged.
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
    if not _is_whole(about):
        raise InvalidInputError(f"{_named(path, 'json')}: it is damaged; restore it")
    rows = evaluations(_named(path, "jsonl"))
    return Kept(rows, {**about, "finished": about["finished"] and cell.steps in rows})


def _named(path: Path, ending: str) -> Path:
    """Not with_suffix: there may be a dot in a column's name."""
    return path.with_name(f"{path.name}.{ending}")


def evaluations(path: Path) -> dict[int, Row]:
    """The rows of a file by their real steps; none if there is no file."""
    rows = {row["step"]: row for row in read_file(path, _POINT)}
    for step, row in rows.items():
        for name in ("policy_mean", "cpu_seconds"):
            if not _is_number(row.get(name)):
                raise InvalidInputError(
                    f"{path}: {name!r} after {step} steps is no number; mend or delete that line"
                )
    return rows


def _is_number(value: Any) -> bool:
    return value is None or is_number(value)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


_POINT: Tests = {"step": _is_count, "mean": _is_number}


def _is_whole(about: Mapping[str, Any]) -> bool:
    """Whether what the table reads of a cell's settings and metrics is what ``keep`` writes."""
    metrics, resolved = ({} if about.get(n) is None else about[n] for n in ("metrics", "resolved"))
    if not isinstance(metrics, dict) or not isinstance(resolved, dict):
        return False
    settings = resolved.get("settings")
    made = isinstance(settings, dict) and all(
        _is_count(settings.get(name)) for name in ("updates_per_step", "learning_starts")
    )
    return (
        type(about.get("finished")) is bool
        and _is_number(metrics.get("peak_memory_mb"))
        and (not resolved or (made and isinstance(resolved.get("learner_class"), str)))
    )


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
