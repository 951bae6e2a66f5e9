"""The options of study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mbrl_bilevel.studies.launchers import LauncherOptions


@dataclass(frozen=True, kw_only=True)
class Args(LauncherOptions):
    """Options of study."""

    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """The study's declaration, a TOML file."""
    out: Path = Path("runs/study")
    """Folder of the cells' own run folders, TASK/COLUMN-SEED."""
    rows: Path | None = None
    """Folder that the cells' rows and settings are copied to; none: the folder rows beside FILE."""
    jobs: int = 2
    """Cells at a time on this machine, a process each, with one thread."""
    only: tuple[str, ...] = ()
    """Run the cells of these tasks alone."""
    list: bool = False
    """Run nothing: say what is done and what is left."""
    quiet: bool = False
    """Do not tell each cell's start and end on stderr; failures are told."""

    def __post_init__(self) -> None:
        self.check_launcher()

    @property
    def store(self) -> Path:
        """Where the rows are copied to."""
        return self.file.parent / "rows" if self.rows is None else self.rows
