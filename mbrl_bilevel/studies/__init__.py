"""What a study is made of: options, a run folder that resumes, rows, cells side by side, summaries.

A study is a file with three parts (``examples/my_study.py`` is one):

- ``Args(RunArgs)``, a dataclass: each field is an option of the command line, its docstring the help;
- ``work(args, key) -> Done``: one cell, say a method and a seed; environments and agents are made in here;
- ``main(args, run) -> Result``: ``run_cells`` fills in the rows that are missing, then they are summed up.

``launch(Args, main)`` runs it: the folder, ``--resume``, exit codes and the last line on stdout come with it.
Needs the extra ``[scripts]``; the exported names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbrl_bilevel.studies.arguments import RunArgs
    from mbrl_bilevel.studies.cells import Cells, Done, run_cells
    from mbrl_bilevel.studies.launching import Result, launch
    from mbrl_bilevel.studies.rows import Row
    from mbrl_bilevel.studies.run_folder import RunFolder
    from mbrl_bilevel.studies.summaries import paired, pooled, summarise

_HOMES = {
    "RunArgs": "arguments",
    **dict.fromkeys(("Cells", "Done", "run_cells"), "cells"),
    **dict.fromkeys(("Result", "launch"), "launching"),
    "Row": "rows",
    "RunFolder": "run_folder",
    **dict.fromkeys(("paired", "pooled", "summarise"), "summaries"),
}

__all__ = [
    "Cells",
    "Done",
    "Result",
    "Row",
    "RunArgs",
    "RunFolder",
    "launch",
    "paired",
    "pooled",
    "run_cells",
    "summarise",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
