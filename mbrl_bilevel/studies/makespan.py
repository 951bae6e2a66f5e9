"""How long a study takes on many machines, by the seconds that its cells took where they were run."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.reading import is_number
from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.studies.grid import Cell, Grid, read_grid
from mbrl_bilevel.studies.grid_rows import kept


def study_on_machines(
    path: Path, nodes: Sequence[int], cells_per_node: int, times: int = 1
) -> list[Row]:
    """A row for each number of ``nodes``, each with room for so many cells at once: the ``hours`` of the study in the
    file ``path``, made so many ``times`` over with other seeds, the part of the machines' time that is ``used``, and ``longest``, the hours of its longest cell,
    below which no number of machines comes.

    Cells start in the study's order, as soon as there is room. Raises InvalidInputError for a study of which nothing
    was run.
    """
    grid = read_grid(path)
    seconds = times * list(cell_seconds(grid, path.parent / "rows").values())

    def row(count: int) -> Row:
        places = count * cells_per_node
        whole = makespan(seconds, places)
        used = sum(seconds) / (whole * places)
        told = {"hours": whole / 3600.0, "used": used, "longest": max(seconds) / 3600.0}
        return {"nodes": count, "cells": len(seconds), **told}

    return [row(count) for count in nodes]


def cell_seconds(grid: Grid, store: Path) -> Mapping[Cell, float]:
    """The seconds of each cell: its own, or of one that was not run those of its column on its task, or else those a
    step of its column on other tasks, or of all columns. Raises InvalidInputError if no cell was run."""
    found: dict[Cell, float] = {}
    for cell in grid.cells():
        told = kept(store, cell)
        if told is not None and told.finished and told.about["metrics"]:
            seconds = told.about["metrics"].get("wall_seconds")
            if is_number(seconds):
                found[cell] = float(seconds)
    if not found:
        raise InvalidInputError(
            f"--study: {store} has no finished cell to take seconds from; run the study first (scripts/study.py)"
        )

    def a_step(cells: Iterable[Cell]) -> float | None:
        rates = [found[cell] / cell.steps for cell in cells]
        return mean(rates) if rates else None

    def guess(cell: Cell) -> float:
        like = [other for other in found if other.column == cell.column]
        rates = (
            a_step(other for other in like if other.task == cell.task),
            a_step(like),
            a_step(found),
        )
        return cell.steps * next(rate for rate in rates if rate is not None)

    return {cell: found[cell] if cell in found else guess(cell) for cell in grid.cells()}


def makespan(seconds: Sequence[float], places: int) -> float:
    """When the last of the cells ends, that start in this order wherever a place is free first (list scheduling,
    Graham 1966)."""
    if places < 1:
        raise InvalidInputError(f"places must be at least 1; got {places}")
    free = [0.0] * min(places, max(1, len(seconds)))
    for duration in seconds:
        if not (math.isfinite(duration) and duration >= 0.0):
            raise InvalidInputError(f"seconds must be finite and not negative; got {duration}")
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)
