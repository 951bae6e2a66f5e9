"""Tables and lines of methods compared on data sets, for compare and classify alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from mbrl_bilevel.pages.blocks import Better, Cell, Column, Line, Table
from mbrl_bilevel.pages.means import grouped
from mbrl_bilevel.pages.ranking import best_of

#: Column -> (title, which is good).
METRICS: dict[str, tuple[str, Better | None]] = {
    "nrmse": ("RMSE (target std)", "lower"),
    "nll": ("NLL (nats)", "lower"),
    "ncrps": ("CRPS (target std)", "lower"),
    "calibration_error": ("calibration error", "lower"),
    "coverage_90": ("coverage of the 90 % interval", "level"),
    "return": ("return of planning in it", "higher"),
    "accuracy": ("accuracy", "higher"),
    "balanced_accuracy": ("balanced accuracy", "higher"),
    "ece": ("expected calibration error", "lower"),
    "brier": ("Brier score", "lower"),
    "train_seconds": ("seconds of training", "lower"),
}
#: What the 90 % interval should cover.
LEVEL = 0.9

_KEYS = {"dataset": "data", "n_train": "training rows", "learning_rate": "learning rate"}


def comparison_table(frame: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> Table:
    """A row a method in each group of equal ``by``; the best of the group is marked in each column."""
    keys = [*by, "method"]
    order = list(frame.groupby(keys, sort=False).groups)
    columns = [Column(_KEYS.get(name, name)) for name in keys]
    cells: list[list[Cell]] = [
        [*(_key_cell(value) for value in key[:-1]), Cell(str(key[-1]), look=str(key[-1]))]
        for key in order
    ]
    for name in metrics:
        title, better = METRICS[name]
        found = dict(grouped(frame, keys, name))
        means = [found[key] for key in order]
        best = [False] * len(order)
        if better is not None:
            best = best_of(
                [(key[:-1], m.mean) for key, m in zip(order, means, strict=True)], better, LEVEL
            )
        columns.append(Column(f"{title}{f', best: {LEVEL}' if better == 'level' else ''}", better))
        for line, m, marked in zip(cells, means, best, strict=True):
            line.append(Cell.of(m, marked))
    counts = frame.groupby(keys, sort=False)["seed"].nunique()
    columns.append(Column("repeats"))
    for line, key in zip(cells, order, strict=True):
        line.append(Cell(str(counts[key]), float(counts[key])))
    return Table("Means over repeats [95 % interval]", columns, cells)


def _key_cell(value: object) -> Cell:
    if isinstance(value, float):
        return Cell(f"{value:,.6g}", value)
    return Cell(str(value))


def lines_of(frame: pd.DataFrame, x: str, value: str) -> Iterator[Line]:
    """A line for each method, in the order in which they first come."""
    for method, mine in frame.groupby("method", sort=False):
        found = {key: m for (key,), m in grouped(mine, [x], value)}
        order = list(found) if x == "dataset" else sorted(found)
        yield Line(str(method), order, [found[key] for key in order])
