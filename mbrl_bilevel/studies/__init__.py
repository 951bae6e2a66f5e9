"""What a study is made of: options, a run folder that resumes, rows, cells side by side, summaries.

A study is a file with three parts (``examples/my_study.py`` is one):

- ``Args(RunArgs)``, a dataclass: each field is an option of the command line, its docstring the help;
- ``work(args, key) -> Done``: one cell, say a method and a seed; environments and agents are made in here;
- ``main(args, run) -> Result``: ``run_cells`` fills in the rows that are missing, then they are summed up.

``launch(Args, main)`` runs it: the folder, ``--resume``, exit codes and the last line on stdout come with it.
Needs the extra ``[scripts]``; the exported names load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mbrl_bilevel.base.lazy import exports

if TYPE_CHECKING:
    from mbrl_bilevel.base.rows import Row as Row
    from mbrl_bilevel.studies.arguments import RunArgs as RunArgs
    from mbrl_bilevel.studies.cells import Cells as Cells
    from mbrl_bilevel.studies.cells import Done as Done
    from mbrl_bilevel.studies.cells import run_cells as run_cells
    from mbrl_bilevel.studies.launchers import LauncherArgs as LauncherArgs
    from mbrl_bilevel.studies.launching import Result as Result
    from mbrl_bilevel.studies.launching import launch as launch
    from mbrl_bilevel.studies.run_folder import RunFolder as RunFolder
    from mbrl_bilevel.studies.summaries import paired as paired
    from mbrl_bilevel.studies.summaries import pooled as pooled
    from mbrl_bilevel.studies.summaries import summarise as summarise
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "mbrl_bilevel.studies.arguments": ("RunArgs",),
            "mbrl_bilevel.studies.cells": ("Cells", "Done", "run_cells"),
            "mbrl_bilevel.studies.launchers": ("LauncherArgs",),
            "mbrl_bilevel.studies.launching": ("Result", "launch"),
            "mbrl_bilevel.base.rows": ("Row",),
            "mbrl_bilevel.studies.run_folder": ("RunFolder",),
            "mbrl_bilevel.studies.summaries": ("paired", "pooled", "summarise"),
        },
    )
