"""Write one HTML page of a run, or of several together, that works offline: curves, tables, what was run.

RUN is a folder that a script has filled, or is still filling. Runs with the same options are repeats and are
put together; a method that was run otherwise is told apart by the name of its folder.
"""

from __future__ import annotations

from collections.abc import Mapping

from options.report import Args

from mbrl_bilevel.studies.launching import launch_tool


def main(args: Args) -> Mapping[str, object]:
    """Read the runs, write the page."""
    # Once the options are read: it brings in pandas and SciPy.
    from mbrl_bilevel.pages.page import write_page

    written = write_page(args.runs, args.page)
    return {
        "page": written.path,
        "bytes": written.size,
        "runs": written.runs,
        "plots": written.plots,
    }


if __name__ == "__main__":
    launch_tool(Args, main)
