"""What was run: the command that runs it again, when, with which versions, and how far it has come."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mbrl_bilevel.pages.folders import Run

#: Options that are no part of what a run is.
_LEFT_OUT = ("quiet", "resume", "no_report")
#: What a reader may want to open beside the page, in this order; also of the seeds of a train.
_FILES = ("**/*.mp4", "figures/*.png", "metrics.json", "rows.jsonl")
_MOST_FILES = 24


@dataclass(frozen=True)
class About:
    """Of one run, as texts: ``facts`` are pairs of a name and what is so called, ``settings`` its config.json, ``files`` pairs of a
    name and a link from the page."""

    name: str
    script: str
    state: str
    complete: bool
    command: str
    facts: Sequence[tuple[str, str]]
    settings: str
    failures: Sequence[str]
    files: Sequence[tuple[str, str]]


def about(run: Run, page: Path) -> About:
    """Of the run, as the file ``page`` shows it."""
    config = run.config
    versions: Any = config.get("versions")
    facts = [("started", config.get("started")), ("platform", config.get("platform"))]
    facts += [("commit", config.get("git_commit"))]
    if isinstance(versions, Mapping):
        facts += [(str(name), version) for name, version in versions.items()]
    metrics = run.metrics or {}
    for name, unit in (("wall_seconds", "s"), ("peak_memory_mb", "MB"), ("device", "")):
        if name in metrics:
            facts.append((name.replace("_", " "), f"{metrics[name]} {unit}".strip()))
    state = "finished" if run.finished else "unfinished: the page shows how far it has come"
    if run.failed:
        state += f"; {len(run.failed)} of its parts failed"
    return About(
        name=run.name,
        script=run.script,
        state=f"{state}; {len(run.rows)} row{'s' * (len(run.rows) != 1)}",
        complete=run.finished and not run.failed,
        command=command(run),
        facts=[(name, str(value)) for name, value in facts if value is not None],
        settings=json.dumps(config, indent=2, ensure_ascii=False),
        failures=[_failure(row) for row in run.failed[:20]],
        files=list(_files(run.path, page.parent)),
    )


def _files(folder: Path, beside: Path) -> Iterator[tuple[str, str]]:
    """The run's videos, figures and numbers: links that hold while page and folder keep their places."""
    found = dict.fromkeys(path for pattern in _FILES for path in sorted(folder.glob(pattern)))
    for path in list(found)[:_MOST_FILES]:
        try:
            link = os.path.relpath(path, beside)
        except ValueError:  # on another drive
            link = str(path.resolve())
        yield path.relative_to(folder).as_posix(), quote(Path(link).as_posix())


def command(run: Run) -> str:
    """The command as it was typed, where the run kept it; or else one that says every option."""
    typed = run.config.get("command")
    if isinstance(typed, str):
        return typed
    words = ["python", f"scripts/{run.script}.py"]
    for name, value in run.options.items():
        option = "--" + name.replace("_", "-")
        if name in _LEFT_OUT or value is None or value is False or value == []:
            continue
        if value is True:
            words.append(option)
        elif isinstance(value, list):
            words += [option, *map(str, value)]
        else:  # joined: a value may begin with a dash
            words.append(f"{option}={value}")
    return shlex.join(words)


def _failure(row: Mapping[str, Any]) -> str:
    where = ", ".join(
        f"{n} {v}" for n, v in row.items() if n != "failed" and isinstance(v, str | int)
    )
    return f"{where}: {row['failed']}"
