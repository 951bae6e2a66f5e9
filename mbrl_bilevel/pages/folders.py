"""The folders of runs, read by "The scripts' contract"; finished, unfinished, edited or damaged."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.reading import edited, numbered_rows
from mbrl_bilevel.pages.contract import REQUIRED, Row, checked

#: Scripts whose run folder holds others.
_OF_PARTS = ("demo",)
#: More than any run writes.
_MOST_BYTES = 2**28


@dataclass(frozen=True)
class Run:
    """One run as its folder has it: ``options`` are its arguments by name, ``failed`` the cells that ended
    in an error, ``finished`` whether its metrics are written.

    ``rows`` of a train of several seeds are the evaluations of all of them, with their seed.
    """

    name: str
    path: Path
    script: str
    config: Mapping[str, Any]
    options: Mapping[str, Any]
    rows: Sequence[Row]
    failed: Sequence[Row] = ()
    metrics: Mapping[str, Any] | None = None

    @property
    def finished(self) -> bool:
        return self.metrics is not None


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders, and the parts of those that have parts, under names of their own.

    Raises InvalidInputError, with the file and the remedy, for what is no run or was damaged.
    """
    if not folders:
        raise InvalidInputError("runs: give at least one folder of a run")
    real = [os.path.realpath(folder) for folder in folders]
    for place, folder in enumerate(folders):
        if real.index(real[place]) < place:
            raise InvalidInputError(f"{folder}: the folder is named twice; leave one out")
    return _renamed([run for folder in folders for run in _with_parts(Path(folder))])


def _with_parts(folder: Path) -> Iterator[Run]:
    run = read_run(folder)
    yield run
    if run.script in _OF_PARTS:
        for place in sorted(folder.glob("*/config.json")):
            yield read_run(place.parent)


def read_run(folder: Path) -> Run:
    """The run in this folder. Raises InvalidInputError as ``read_runs`` does."""
    config = _json(folder / "config.json")
    if config is None:
        raise InvalidInputError(
            f"{folder}: no run is in it, config.json is missing; give a folder that a script has filled"
        )
    script, options = config.get("script"), config.get("args")
    if not isinstance(script, str) or not isinstance(options, dict):
        raise InvalidInputError(
            f"{folder / 'config.json'}: it says no script and args; restore it, or leave the folder out"
        )
    rows = list(_rows(folder, script, options))
    return Run(
        name=Path(os.path.realpath(folder)).name,
        path=folder,
        script=script,
        config=config,
        options=options,
        rows=[row for row in rows if "failed" not in row],
        failed=[row for row in rows if "failed" in row],
        metrics=_json(folder / "metrics.json"),
    )


def _rows(folder: Path, script: str, options: Mapping[str, Any]) -> Iterator[Row]:
    """Of train, the evaluations of every seed: those of several are in folders of their own."""
    if script != "train":
        yield from _read(folder / "rows.jsonl", script)
        return
    inner = sorted(folder.glob("seed-*/config.json"))
    for place in [path.parent for path in inner] or [folder]:
        config = options if place == folder else (_json(place / "config.json") or {}).get("args")
        seed = config.get("seed") if isinstance(config, Mapping) else None
        yield from _read(place / "rows.jsonl", script, {"seed": seed})


def _read(path: Path, script: str, more: Mapping[str, Any] | None = None) -> Iterator[Row]:
    for number, row in numbered_rows(_bytes(path) or b"", path):
        # Of demo, the rows are told apart by their name.
        if "failed" in row or script not in REQUIRED:
            yield row
            continue
        try:
            yield checked(script, {**(more or {}), **row})
        except KeyError as error:
            raise edited(path, number, error.args[0]) from None


def _json(path: Path) -> dict[str, Any] | None:
    """None where there is no such file."""
    content = _bytes(path)
    if content is None:
        return None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise InvalidInputError(f"{path}: it is damaged; restore it, or leave the folder out")
    return document


def _bytes(path: Path) -> bytes | None:
    """None where there is no such file. Raises InvalidInputError for what is none, or is far too large."""
    try:
        if not path.exists():
            return None
        if not path.is_file():
            raise InvalidInputError(f"{path}: it is no file; leave the folder out")
        if path.stat().st_size > _MOST_BYTES:
            raise InvalidInputError(
                f"{path}: it is larger than {_MOST_BYTES:,} bytes; leave the folder out"
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:  # also a name that no file can have
        if isinstance(error, InvalidInputError):
            raise
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InvalidInputError(f"{path}: it cannot be read ({reason})") from None


def _renamed(runs: Sequence[Run]) -> list[Run]:
    """With its parent before a name, where two runs have the same; and a number, where that is not enough."""
    found: list[Run] = []
    taken: set[str] = set()
    for run in runs:
        name = run.name
        if sum(other.name == name for other in runs) > 1:
            name = f"{Path(os.path.realpath(run.path)).parent.name}/{name}"
        unique = next(
            n for n in (name, *(f"{name} ({i})" for i in range(2, len(runs) + 2))) if n not in taken
        )
        taken.add(unique)
        found.append(replace(run, name=unique))
    return found
