"""Write one HTML page of a run, or of several together, that works offline: curves, tables, what was run.

RUN is a folder that a script has filled, or is still filling. Runs with the same options are repeats and are
put together; a method that was run otherwise is told apart by the name of its folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from _run import launch_tool

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.pages.page import write_page


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


def main(args: Args) -> Mapping[str, object]:
    """Read the runs, write the page."""
    written = write_page(args.runs, args.page)
    return {
        "page": written.path,
        "bytes": written.size,
        "runs": written.runs,
        "plots": written.plots,
    }


if __name__ == "__main__":
    launch_tool(Args, main)
