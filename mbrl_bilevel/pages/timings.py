"""What the runs cost: seconds of each method, as far as the rows tell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pandas as pd

from mbrl_bilevel.pages.blocks import Cell, Column, Section, Table
from mbrl_bilevel.pages.contract import Row
from mbrl_bilevel.pages.folders import Run
from mbrl_bilevel.pages.means import grouped
from mbrl_bilevel.pages.returns import agent_label

#: Of which column, and what it is the time of.
_TIMES = {
    "compare": ("method", "train_seconds", "one fit"),
    "classify": ("method", "train_seconds", "one fit"),
    "continual": ("method", "train_seconds", "all tasks of a sequence"),
    "plan": ("planner", "wall_seconds", "one episode"),
    "offline": ("policy", "wall_seconds", "learning and evaluating one policy"),
}


def timings(runs: Sequence[Run]) -> Section | None:
    """None where no row tells of time."""
    rows = [row for run in runs for row in _times(run)]
    if not rows:
        return None
    cells = [
        [
            Cell(run),
            Cell(name, look=name),
            Cell(what),
            Cell.of(mean),
            Cell(str(mean.n), float(mean.n)),
        ]
        for (run, name, what), mean in grouped(
            pd.DataFrame(rows), ["run", "name", "what"], "seconds"
        )
    ]
    columns = [
        Column("run"),
        Column("what"),
        Column("time of"),
        Column("seconds [95 % interval]", "lower"),
        Column("measured"),
    ]
    lead = "Means with 95 % bootstrap intervals, on the machine that the run names above."
    return Section("Timings", lead, [Table("Seconds", columns, cells)])


def _times(run: Run) -> Iterator[Row]:
    if run.script == "train":
        yield from _of_learning(run)
        return
    if run.script not in _TIMES:
        return
    by, column, what = _TIMES[run.script]
    for row in run.rows:
        seconds = row.get(column)
        if isinstance(seconds, list):
            seconds = sum(seconds)
        if seconds is not None and math.isfinite(seconds):
            yield {"run": run.name, "name": row[by], "what": what, "seconds": seconds}


def _of_learning(run: Run) -> Iterator[Row]:
    """The processor seconds of each seed, without its evaluations; of seeds that were never stopped."""
    seeds: dict[float, list[float]] = {}
    for row in run.rows:
        seeds.setdefault(row["seed"], []).append(row.get("cpu_seconds", math.nan))
    for found in seeds.values():
        if math.isfinite(sum(found)):
            what = "learning, processor time without evaluations"
            yield {"run": run.name, "name": agent_label(run), "what": what, "seconds": sum(found)}
