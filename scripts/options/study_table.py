"""The options of study_table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True, kw_only=True)
class Args:
    """Options of study_table."""

    file: tyro.conf.Positional[Annotated[Path, tyro.conf.arg(metavar="FILE")]]
    """The study's declaration, a TOML file."""
    rows: Path | None = None
    """Folder that study has copied the rows to; none: the folder rows beside FILE."""
    out: Path | None = None
    """Folder of the tables and figures, written anew; none: that of FILE."""
