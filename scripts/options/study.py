"""The options of study."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mbrl_bilevel.base.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class Args:
    """Options of study."""

    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """The study's declaration, a TOML file."""
    out: Path = Path("runs/study")
    """Folder of the cells' own run folders, TASK/COLUMN-SEED."""
    rows: Path | None = None
    """Folder that the cells' rows and settings are copied to; none: the folder rows beside FILE."""
    jobs: int = 2
    """Cells at a time, each with one thread."""
    only: tuple[str, ...] = ()
    """Run the cells of these tasks alone."""
    list: bool = False
    """Run nothing: say what is done and what is left."""
    quiet: bool = False
    """Do not tell each cell's start and end on stderr; failures are told."""

    def __post_init__(self) -> None:
        if not 1 <= self.jobs <= 1000:
            raise InvalidInputError(f"--jobs must be at least 1 and at most 1,000; got {self.jobs}")

    @property
    def store(self) -> Path:
        """Where the rows are copied to."""
        return self.file.parent / "rows" if self.rows is None else self.rows
