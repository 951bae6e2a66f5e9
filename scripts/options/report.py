"""The options of report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from mbrl_bilevel.base.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class Args:
    """Options of report."""

    runs: tyro.conf.Positional[Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN…")]]
    """Folders of runs of train, compare, continual, classify, plan, offline, tune, theory, bench or demo."""
    out: Path | None = None
    """The page to write; none: report.html in the folder of the run, or here if there are several."""

    def __post_init__(self) -> None:
        if not self.runs:
            raise InvalidInputError("RUN: give at least one folder that a script has filled")
        if self.out is not None and self.out.is_dir():
            raise InvalidInputError(
                f"--out: {self.out} is a folder; give a file, such as report.html"
            )

    @property
    def page(self) -> Path:
        """Where the page goes."""
        if self.out is not None:
            return self.out
        return (self.runs[0] if len(self.runs) == 1 else Path()) / "report.html"
