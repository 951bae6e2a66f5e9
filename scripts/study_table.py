"""Sum up the rows that study has kept: a Markdown table, its numbers as JSON, and two figures.

It reads what is there of the study that FILE declares and says what is missing; run it again as cells come.
Writes table.md, table.json, returns.png and cpu.png.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from options.study_table import Args

from mbrl_bilevel.base.atomic import write_atomically
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.rows import strict
from mbrl_bilevel.studies.grid import read_grid
from mbrl_bilevel.studies.grid_table import document
from mbrl_bilevel.studies.launching import launch_tool


def main(args: Args) -> Mapping[str, object]:
    """Read, sum up, write."""
    # Once the options are read: they bring in matplotlib and SciPy.
    from mbrl_bilevel.figures.grid import draw_against_cpu, draw_against_steps
    from mbrl_bilevel.studies.grid_summary import read_kept, summed_up

    grid = read_grid(args.file)
    store = args.file.parent / "rows" if args.rows is None else args.rows
    found = read_kept(grid, store)
    if not any(found.values()):
        raise InvalidInputError(f"--rows: {store} has no rows of this study yet; let study go on")
    out = args.file.parent if args.out is None else args.out
    out.mkdir(parents=True, exist_ok=True)
    summary = summed_up(grid, found)
    text = json.dumps(strict(summary), indent=1, allow_nan=False)
    write_atomically(out / "table.json", text.encode() + b"\n")
    write_atomically(out / "table.md", document(grid, summary).encode())
    figures = [
        draw_against_steps(out / "returns.png", grid, summary),
        draw_against_cpu(out / "cpu.png", grid, summary),
    ]
    counts = {name: len(summary[name]) for name in ("missing", "comparisons")}
    return {"table": out / "table.md", **counts, "figures": figures}


if __name__ == "__main__":
    launch_tool(Args, main)
