"""What the outer level inferred, as far as the rows hold it: reward matrices, and its values by name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from mbrl_bilevel.pages.blocks import Block, Cell, Column, Matrix, Plot, Section, Table
from mbrl_bilevel.pages.classes import classified
from mbrl_bilevel.pages.comparison import compared
from mbrl_bilevel.pages.folders import Run
from mbrl_bilevel.pages.means import grouped
from mbrl_bilevel.pages.returns import curves, evaluations

#: Matrices of more classes than this cannot be read; and no more of them than that.
_MOST_CLASSES, _MOST_MATRICES = 12, 6
#: Values of one name over training that have a plot.
_MOST_PLOTS = 6
#: How the names of what a report says of its solver begin.
_OF_THE_SOLVER = ("hypergradient_", "inner_", "linear_", "updates")


def inferred(runs: Sequence[Run]) -> Section | None:
    """None where no row tells of an outer level."""
    tables = [
        frame
        for frame in (compared(runs), classified(runs))
        if not frame.empty and "outer" in frame
    ]
    blocks: list[Block] = [_values(frame, of_the_solver=False) for frame in tables]
    blocks += _while_learning(runs)
    blocks += _matrices(classified(runs))
    blocks += [_values(frame, of_the_solver=True) for frame in tables]
    blocks = [block for block in blocks if not isinstance(block, Table) or block.rows]
    if not blocks:
        return None
    lead = (
        "The outer level chooses the reward of the inner one by held-out data. What it came to: its values by the "
        "names of its report, and reward matrices, where the reward of a right answer is on the diagonal."
    )
    return Section("The inferred reward", lead, blocks)


def _values(frame: pd.DataFrame, of_the_solver: bool) -> Table:
    """The mean over repeats of each value: of the reward, or of the solver that found it."""
    rows = [
        {"method": row["method"], "dataset": row["dataset"], "name": name, "value": value}
        for row in frame.to_dict("records")
        if isinstance(row["outer"], dict)
        for name, value in row["outer"].items()
        if name.startswith(_OF_THE_SOLVER) is of_the_solver
    ]
    cells = [
        [
            Cell(data),
            Cell(method, look=method),
            Cell(name),
            Cell.of(mean),
            Cell(str(mean.n), mean.n),
        ]
        for (data, method, name), mean in (
            grouped(pd.DataFrame(rows), ["dataset", "method", "name"], "value") if rows else ()
        )
    ]
    columns = [Column(n) for n in ("data", "method", "value", "mean [95 % interval]", "repeats")]
    title = "How the outer solver went" if of_the_solver else "Values of the reward"
    return Table(title, columns, cells)


def _while_learning(runs: Sequence[Run]) -> list[Block]:
    """Of train: each value against real steps."""
    frame = evaluations(runs)
    if frame.empty or "outer" not in frame:
        return []
    told = pd.DataFrame(
        [row if isinstance(row, dict) else {} for row in frame["outer"]], index=frame.index
    ).astype(float)
    keys = ["env_id", "label", "step"]
    told = told.drop(columns=keys, errors="ignore")
    frame = frame[keys].join(told)
    return [
        Plot(
            f"{env_id}: {name}",
            "real environment steps",
            name,
            list(curves(here.dropna(subset=[name]), name)),
        )
        for env_id, here in frame.groupby("env_id", sort=False)
        for name in [name for name in told if here[name].notna().any()][:_MOST_PLOTS]
    ]


def _matrices(frame: pd.DataFrame) -> list[Block]:
    if frame.empty or "reward_matrix" not in frame:
        return []
    found: list[Block] = []
    mine = frame[
        frame["reward_matrix"].map(lambda m: isinstance(m, list) and len(m) <= _MOST_CLASSES)
    ]
    for dataset, here in mine.groupby("dataset", sort=False):
        shown = []
        for method, repeats in here.groupby("method", sort=False):
            matrices = [
                m
                for m in repeats["reward_matrix"]
                if len(m) == len(repeats["reward_matrix"].iloc[0])
            ]
            labels = repeats["labels"].iloc[0] if "labels" in repeats else None
            names = (
                labels
                if isinstance(labels, list)
                else [f"class {i}" for i in range(len(matrices[0]))]
            )
            shown.append((str(method), np.mean(matrices, axis=0), names, len(matrices)))
        # One scale for the matrices of a data set.
        values = np.concatenate([m.ravel() for _, m, *_ in shown])
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)
        found += [
            Matrix(
                title=f"{dataset}, {method}: reward",
                row_title="answer",
                row_names=names,
                column_names=names,
                values=m.tolist(),
                low=low,
                high=high,
                look=method,
                note=f"Column: the true class. Mean of {count} repeat{'s' * (count > 1)}. One scale for {dataset}.",
            )
            for method, m, names, count in shown
        ]
    return found[:_MOST_MATRICES]
