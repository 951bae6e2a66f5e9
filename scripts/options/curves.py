"""The options of curves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.arguments import RunArgs


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of curves."""

    runs: tuple[str, ...]
    """Folders that train, plan and demo have filled, or are still filling; LABEL=FOLDER names the curve."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len({os.path.realpath(folder) for _, folder in self.named}) < len(self.runs):
            raise InvalidInputError("--runs: a folder is named twice; leave one out")

    @property
    def named(self) -> list[tuple[str, Path]]:
        """The label, empty where none was given, and the folder of each."""
        return [_split(run) for run in self.runs]


def _split(run: str) -> tuple[str, Path]:
    """At the first equals sign with a folder behind it: either part may hold more of them."""
    parts = run.split("=")
    for i in range(len(parts)):
        label, folder = "=".join(parts[:i]), "=".join(parts[i:])
        if os.path.isdir(folder):  # False, where Path.is_dir raises for a name that cannot be
            return label, Path(folder)
    raise InvalidInputError(f"--runs: {run!r} names no folder; give FOLDER or LABEL=FOLDER")
