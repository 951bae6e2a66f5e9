"""What theory, tune and bench found, and the plain rows of scripts that have no section of their own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from mbrl_bilevel.pages.blocks import Block, Cell, Column, Line, Plot, Section, Table
from mbrl_bilevel.pages.contract import REQUIRED
from mbrl_bilevel.pages.folders import Run
from mbrl_bilevel.pages.means import Mean, said, thinned
from mbrl_bilevel.pages.ranking import best_of
from mbrl_bilevel.pages.together import together

#: Rows of a script that the page does not know; the file has all.
_MOST_ROWS = 200


def recovered(runs: Sequence[Run]) -> Section | None:
    """Of theory: how far each solver comes to U*; None where it was not run."""
    rows = [row for run in runs if run.script == "theory" for row in run.rows if "distance" in row]
    if not rows:
        return None
    blocks: list[Block] = []
    for problem in dict.fromkeys(str(row.get("problem", "")) for row in rows):
        lines = []
        for row in rows:
            if str(row.get("problem", "")) == problem and row["distance"]:
                steps = [int(i) for i in thinned([float(i) for i in range(len(row["distance"]))])]
                means = [Mean(row["distance"][i]) for i in steps]
                lines.append(
                    Line(str(row.get("solver", "solver")), [float(i) for i in steps], means)
                )
        title = f"{problem}: distance to U*"
        blocks.append(Plot(title, "outer steps", "relative error", lines, "lower", log_y=True))
    values = [(row.get("problem"), row.get("error", math.nan)) for row in rows]
    best = best_of(values, "lower")
    cells = [
        [
            Cell(str(row.get("problem", ""))),
            Cell(str(row.get("solver", "")), look=str(row.get("solver", ""))),
            Cell(said(error), error, marked),
        ]
        for row, (_, error), marked in zip(rows, values, best, strict=True)
    ]
    columns = [
        Column("problem"),
        Column("solver"),
        Column("relative error of U at the end", "lower"),
    ]
    lead = "Linear-Gaussian data, where the reward that is to be found, U* = ½Σ⁻¹, is known."
    return Section("Recovering the known reward", lead, [Table("Errors", columns, cells), *blocks])


def tuned(runs: Sequence[Run]) -> Section | None:
    """Of tune: the value of every trial; None where nothing was tuned."""
    mine = [run for run in runs if run.script == "tune"]
    found = together(mine, lambda _, row: (row["method"], "trials", row["trial"]))
    frame = pd.DataFrame([{**row, "method": label} for label, _, row in found])
    if frame.empty:
        return None
    blocks: list[Block] = []
    if "learning_rate" in frame:
        lines = []
        for method, here in frame.sort_values("learning_rate").groupby("method", sort=False):
            xs, ys = here["learning_rate"].tolist(), [Mean(value) for value in here["value"]]
            lines.append(Line(str(method), xs, ys))
        title = "Trials by learning rate"
        blocks.append(
            Plot(
                title,
                "learning rate",
                "held-out NLL (nats per dimension)",
                lines,
                "lower",
                joined=False,
                log_x=True,
            )
        )
    best = best_of([(row["method"], row["value"]) for row in frame.to_dict("records")], "lower")
    settings = [
        n for n in frame if n not in ("method", "trial", "value") and frame[n].map(_is_number).all()
    ]
    cells = [
        [
            Cell(str(row["method"]), look=str(row["method"])),
            Cell(f"{row['trial']:.0f}", row["trial"]),
            *(Cell(said(float(row[name])), float(row[name])) for name in settings),
            Cell(said(row["value"]), row["value"], marked),
        ]
        for row, marked in zip(frame.to_dict("records"), best, strict=True)
    ]
    columns = [
        Column("method"),
        Column("trial"),
        *(Column(str(n).replace("_", " ")) for n in settings),
    ]
    columns.append(Column("held-out NLL", "lower"))
    lead = "Every method gets as many trials. The best trial of each method is marked."
    return Section("Tuning", lead, [*blocks, Table("Trials", columns, cells)])


def benched(runs: Sequence[Run]) -> Section | None:
    """Of bench: our throughput over that of the peer; None where nothing was timed."""
    rows = [(run, row) for run in runs if run.script == "bench" for row in run.rows]
    if not rows:
        return None
    several = len({run.name for run, _ in rows}) > 1
    names = [f"{row['name']}{f' ({run.name})' if several else ''}" for run, row in rows]
    line = Line("ours over the peer's", names, [Mean(row["ratio"]) for _, row in rows])
    plot = Plot(
        title="Throughput beside a peer",
        x_title="",
        y_title="ratio of throughputs",
        lines=[line],
        better="higher",
        references={"as fast as the peer": 1.0},
        joined=False,
        log_y=True,
        note="Medians of repeated calls that alternate.",
    )
    columns = [Column(n) for n in ("what", "ours", "peer", "unit", "peer is")]
    columns.insert(3, Column("ratio", "higher"))
    cells = [
        [
            Cell(name),
            Cell(said(row["ours"]), row["ours"]),
            Cell(said(row["peer"]), row["peer"]),
            Cell(said(row["ratio"]), row["ratio"]),
            Cell(str(row.get("unit", ""))),
            Cell(str(row.get("peer_name", ""))),
        ]
        for name, (_, row) in zip(names, rows, strict=True)
    ]
    lead = "Each hot path beside what a user would pick instead; above 1 ours is faster."
    return Section("Speed", lead, [plot, Table("Throughputs", columns, cells)])


def plain_rows(runs: Sequence[Run]) -> list[Section]:
    """Of scripts without a section: their rows as they are, values that fit a cell."""
    found = []
    for run in runs:
        if run.script in REQUIRED or run.script == "demo" or not run.rows:
            continue
        rows = run.rows[:_MOST_ROWS]
        names = dict.fromkeys(
            n for row in rows for n, v in row.items() if isinstance(v, str | int | float)
        )
        cells = [[_cell(row.get(name)) for name in names] for row in rows]
        note = (
            f"The first {len(rows)} of {len(run.rows)} rows." if len(rows) < len(run.rows) else ""
        )
        table = Table("Rows", [Column(name.replace("_", " ")) for name in names], cells, note)
        found.append(
            Section(f"{run.script}: {run.name}", "The rows as the run wrote them.", [table])
        )
    return found


def _cell(value: object) -> Cell:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell("–" if value is None else str(value))
    inside = -1e100 < value < 1e100
    return Cell(said(float(value)) if inside else "not finite", float(value) if inside else None)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e100 < value < 1e100
