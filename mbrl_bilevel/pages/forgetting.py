"""What continual found: forgetting matrices, forgetting against learning, the mean over the tasks seen."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd

from mbrl_bilevel.continual.sequence import Better as Direction
from mbrl_bilevel.continual.sequence import transfer
from mbrl_bilevel.pages.blocks import (
    Better,
    Block,
    Cell,
    Column,
    Line,
    Matrix,
    Plot,
    Section,
    Table,
)
from mbrl_bilevel.pages.folders import Run
from mbrl_bilevel.pages.means import Mean, grouped, mean_of
from mbrl_bilevel.pages.ranking import best_of
from mbrl_bilevel.pages.together import together

_LOWER, _HIGHER = get_args(Direction)
#: Matrices of a run: name -> (title, which is good).
_METRICS: dict[str, tuple[str, Better]] = {
    "nll": ("NLL (nats per dimension)", "lower"),
    "rmse": ("RMSE (std of the first task's targets)", "lower"),
    "k_rmse": ("open-loop RMSE", "lower"),
    "accuracy": ("accuracy", "higher"),
    "ece": ("expected calibration error", "lower"),
    "return": ("return", "higher"),
    "success": ("success", "higher"),
}
#: Parts of the table: name -> (title, which is good; None: as the metric).
_PARTS: dict[str, tuple[str, Better | None]] = {
    "learning": ("just learned", None),
    "final": ("at the end", None),
    "forgetting": ("forgotten", "lower"),
}
#: Matrices of a metric on the page; the table has every method.
_MOST_MATRICES = 6


def forgetting(runs: Sequence[Run]) -> list[Section]:
    """A section a sequence of tasks."""
    mine = [run for run in runs if run.script == "continual"]
    found = together(mine, lambda _, row: (row["method"], row["sequence"], row["seed"]))
    frame = pd.DataFrame([{**row, "method": label} for label, _, row in found])
    if frame.empty:
        return []
    return [_of_sequence(str(name), here) for name, here in frame.groupby("sequence", sort=False)]


def _of_sequence(sequence: str, frame: pd.DataFrame) -> Section:
    here = frame.dropna(axis="columns", how="all")
    metrics = [name for name in _METRICS if name in here]
    long = transfers(here, metrics)
    blocks: list[Block] = [_table(long, metrics)]
    for name in metrics[:2]:
        blocks += [_pareto(long, name), _seen(here, name)]
    for name in metrics[:2]:
        blocks += _matrices(here, name)
    lead = (
        "The tasks are learned one after another. Forgotten: how much better a task was just after it was learned than "
        "it is at the end, the mean over all tasks but the last (the negative of the backward transfer of Lopez-Paz & Ranzato "
        "2017); below zero, later tasks helped. Means over repeats with 95 % bootstrap intervals."
    )
    return Section(f"Forgetting: {sequence}", lead, blocks)


def transfers(frame: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """A row a repeat and metric: method, seed, metric, learning, final, forgetting."""
    rows = []
    for row in frame.to_dict("records"):
        for name in metrics:
            if isinstance(row[name], list):
                better = _HIGHER if _METRICS[name][1] == "higher" else _LOWER
                found = transfer(row[name], better)
                parts = {part: getattr(found, part) for part in _PARTS}
                rows.append({"method": row["method"], "seed": row["seed"], "metric": name, **parts})
    return pd.DataFrame(rows).astype(dict.fromkeys(_PARTS, float))


def _table(long: pd.DataFrame, metrics: Sequence[str]) -> Table:
    methods = list(long["method"].unique())
    columns = [Column("method")]
    cells = [[Cell(method, look=method)] for method in methods]
    for name in metrics:
        title, direction = _METRICS[name]
        for part, (words, own) in _PARTS.items():
            better = own or direction
            found = _means(long, name, part)
            means = [found.get(method, Mean(math.nan, lost=1)) for method in methods]
            best = best_of([(name, m.mean) for m in means], better)
            columns.append(Column(f"{title.partition(' (')[0]}, {words}", better))
            for line, m, marked in zip(cells, means, best, strict=True):
                line.append(Cell.of(m, marked))
    return Table("Learning and forgetting [95 % interval]", columns, cells)


def _means(long: pd.DataFrame, metric: str, part: str) -> dict[str, Mean]:
    mine = long[long["metric"] == metric]
    return {method: m for (method,), m in grouped(mine, ["method"], part)}


def _pareto(long: pd.DataFrame, metric: str) -> Plot:
    """Points with bars along both axes."""
    title, better = _METRICS[metric]
    x, y = (_means(long, metric, part) for part in ("learning", "forgetting"))
    lines = [
        Line(method, [x[method].mean], [y[method]], [x[method]])
        for method in x
        if math.isfinite(x[method].mean) and math.isfinite(y[method].mean)
    ]
    good = "left" if better == "lower" else "right"
    return Plot(
        title=f"Forgetting against learning: {title.partition(' (')[0]}",
        x_title=f"{title}, just learned",
        y_title="forgotten",
        lines=lines,
        references={"nothing forgotten": 0.0},
        joined=False,
        note=f"Best at the bottom {good}: learned well, and little forgotten.",
    )


def _seen(frame: pd.DataFrame, metric: str) -> Plot:
    """The mean over the tasks seen so far, after each."""
    title, better = _METRICS[metric]
    lines = []
    for method, matrices in _stacked(frame, metric):
        tasks = matrices.shape[1]
        seen = [[float(m[i, : i + 1].mean()) for m in matrices] for i in range(tasks)]
        lines.append(Line(method, [float(i + 1) for i in range(tasks)], [mean_of(v) for v in seen]))
    said = f"Mean over the tasks seen so far: {title.partition(' (')[0]}"
    return Plot(said, "tasks learned", title, lines, better)


def _matrices(frame: pd.DataFrame, metric: str) -> Iterator[Block]:
    """Of the first methods; one scale of colours for all of them, as far as most values reach: a method that
    broke down would leave one colour to the others."""
    title, better = _METRICS[metric]
    shown = [(name, m.mean(0)) for name, m in list(_stacked(frame, metric))[:_MOST_MATRICES]]
    values = np.concatenate([m.ravel() for _, m in shown])
    values = values[np.isfinite(values)]
    low, high = (
        np.quantile(values, (0.0, 0.9) if better == "lower" else (0.1, 1.0))
        if len(values)
        else (0, 1)
    )
    for method, matrix in shown:
        names = _tasks(frame, matrix)
        yield Matrix(
            title=f"{method}: {title}",
            row_title="after learning",
            row_names=names,
            column_names=names,
            values=matrix.tolist(),
            low=float(low),
            high=float(high),
            look=method,
            note=f"Column: the task it is tested on. {better.capitalize()} is better. One scale for all methods.",
        )


def _stacked(
    frame: pd.DataFrame, metric: str
) -> Iterator[tuple[str, np.ndarray[Any, np.dtype[np.float64]]]]:
    """Of each method the matrices [repeats, T, T]; those as large as its first."""
    for method, mine in frame.groupby("method", sort=False):
        found = [m for m in mine[metric] if isinstance(m, list)]
        if found:
            yield str(method), np.array([m for m in found if len(m) == len(found[0])])


def _tasks(frame: pd.DataFrame, matrix: np.ndarray[Any, Any]) -> list[str]:
    known = frame["tasks"].dropna().tolist() if "tasks" in frame else []
    fitting = [names for names in known if len(names) == len(matrix)]
    return fitting[0] if fitting else [f"task {i + 1}" for i in range(len(matrix))]
