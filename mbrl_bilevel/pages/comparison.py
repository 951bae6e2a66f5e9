"""What compare found: the table, errors against the data, calibration, error k steps ahead, all data together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from mbrl_bilevel.evaluation.levels import LEVELS
from mbrl_bilevel.evaluation.statistics import mean, stratified_interval
from mbrl_bilevel.pages.blocks import Block, Cell, Column, Line, Plot, Section, Table
from mbrl_bilevel.pages.folders import Run
from mbrl_bilevel.pages.means import Mean, mean_of
from mbrl_bilevel.pages.tables import LEVEL, METRICS, comparison_table, lines_of
from mbrl_bilevel.pages.together import together

#: Columns of the table, where the rows have them.
_COLUMNS = ("nrmse", "nll", "ncrps", "calibration_error", "coverage_90", "return", "train_seconds")
#: Data sets with plots of their own; the tables have all.
_MOST_PANELS = 4


def comparison(runs: Sequence[Run]) -> list[Section]:
    """None of them where no dynamics models were compared."""
    frame = compared(runs)
    if frame.empty:
        return []
    sections = [_one_step(frame), _calibration(frame), _ahead(frame), _pooled(frame)]
    return [section for section in sections if section is not None]


def compared(runs: Sequence[Run]) -> pd.DataFrame:
    """The rows of compare, of several runs together; ``method`` is what the page calls it."""
    mine = [run for run in runs if run.script == "compare"]
    found = together(
        mine, lambda _, row: (row["method"], (row["dataset"], row["n_train"]), row["seed"])
    )
    return pd.DataFrame([{**row, "method": label} for label, _, row in found])


def _one_step(frame: pd.DataFrame) -> Section:
    metrics = [name for name in _COLUMNS if name in frame]
    blocks: list[Block] = [comparison_table(frame, ["dataset", "n_train"], metrics)]
    sizes = sorted(frame["n_train"].unique())
    if len(sizes) > 1:
        for dataset in _panels(frame):
            here = frame[frame["dataset"] == dataset]
            for name in ("nrmse", "nll"):
                lines = list(lines_of(here, "n_train", name))
                title, better = METRICS[name]
                said = f"{dataset}: {title}"
                blocks.append(Plot(said, "training rows", title, lines, better, log_x=True))
    largest = frame[frame["n_train"] == sizes[-1]]
    if frame["dataset"].nunique() > 1 or len(sizes) == 1:
        for name in ("nrmse", "nll"):
            title, better = METRICS[name]
            said = f"{title}, {sizes[-1]:,.0f} training rows"
            lines = list(lines_of(largest, "dataset", name))
            blocks.append(Plot(said, "", title, lines, better, joined=False))
    lead = (
        "Every method gets the same rows, network and number of gradient steps, and is judged one step ahead on "
        "episodes it has not seen. Means over repeats with 95 % bootstrap intervals; the best mean of each data "
        "set and size is marked."
    )
    return Section("Comparison of models", lead, blocks)


def _panels(frame: pd.DataFrame) -> list[str]:
    return list(frame["dataset"].unique()[:_MOST_PANELS])


def _calibration(frame: pd.DataFrame) -> Section | None:
    """Mean over the data sets of each repeat, then over repeats."""
    if "coverage" not in frame:
        return None
    here = frame[frame["coverage"].map(lambda c: isinstance(c, list) and len(c) == len(LEVELS))]
    blocks: list[Block] = []
    sizes = sorted(here["n_train"].unique())
    for n in dict.fromkeys([*sizes[:1], *sizes[-1:]]):
        lines = []
        for method, mine in here[here["n_train"] == n].groupby("method", sort=False):
            repeats = [np.mean(list(g), axis=0) for _, g in mine.groupby("seed")["coverage"]]
            means = [mean_of(list(column)) for column in np.array(repeats).T]
            lines.append(Line(str(method), LEVELS, means))
        blocks.append(
            Plot(
                title=f"Calibration, {n:,.0f} training rows",
                x_title="nominal coverage of central intervals",
                y_title="share of test targets inside",
                lines=lines,
                diagonal=True,
                y_range=(0.0, 1.0),
            )
        )
    lead = (
        "Best on the diagonal. Below it a model is too sure of itself, above it too cautious. Means over data "
        "sets, then over repeats."
    )
    return Section("Calibration", lead, blocks) if blocks else None


def _ahead(frame: pd.DataFrame) -> Section | None:
    """Error and coverage when the model runs on alone, at the largest number of rows."""
    names = [name for name in ("k_nrmse", "k_coverage_90") if name in frame]
    if "k" not in frame or not names:
        return None
    here = frame[
        (frame["n_train"] == frame["n_train"].max()) & frame["k"].map(lambda k: isinstance(k, list))
    ]
    long = here[["method", "dataset", "seed", "k", *names]].explode(["k", *names])
    long[["k", *names]] = long[["k", *names]].astype(float)
    blocks: list[Block] = []
    for dataset in _panels(long):
        mine = long[(long["dataset"] == dataset)].dropna(subset=names, how="all")
        if mine.empty:
            continue
        lines = list(lines_of(mine, "k", "k_nrmse"))
        title, unit = f"{dataset}: error k steps ahead", "open-loop RMSE (state std)"
        blocks.append(Plot(title, "steps ahead", unit, lines, "lower", log_x=True, log_y=True))
        if "k_coverage_90" in names:
            lines = list(lines_of(mine, "k", "k_coverage_90"))
            title, unit = f"{dataset}: coverage k steps ahead", "share inside the 90 % interval"
            wanted = {"wanted": LEVEL}
            blocks.append(
                Plot(
                    title,
                    "steps ahead",
                    unit,
                    lines,
                    "level",
                    wanted,
                    log_x=True,
                    y_range=(0.0, 1.0),
                )
            )
    lead = (
        "The model runs on alone from a real state, under the recorded actions; its particles against what really "
        "came. At the largest number of training rows."
    )
    more = frame["dataset"].nunique() - _MOST_PANELS
    if more > 0:
        lead += f" Of {more} more data sets the numbers are in the runs' rows."
    return Section("Error k steps ahead", lead, blocks) if blocks else None


def _pooled(frame: pd.DataFrame) -> Section | None:
    """The first method against each other one, over all data sets and sizes; repeats are paired."""
    methods = list(frame["method"].unique())
    if len(methods) < 2:
        return None
    first, rows = methods[0], []
    for other in methods[1:]:
        line = [Cell(other, look=other)]
        for name in ("nrmse", "nll"):
            ratio = name == "nrmse"
            strata = list(_differences(frame, first, other, name, ratio))
            if not strata:
                line += [Cell("no pair is finite"), Cell("–")]
                continue
            found = stratified_interval(strata, mean)
            scale = math.exp if ratio else float
            ends = [
                None if v is None else scale(v) for v in (found.estimate, found.low, found.high)
            ]
            m = Mean(float(ends[0] or 0.0), ends[1], ends[2], n=2)
            won = float(np.mean([stratum.mean() < 0.0 for stratum in strata]))
            line += [Cell.of(m), Cell(f"{100.0 * won:.0f} %", won)]
        rows.append(line)
    columns = [
        Column(f"{first} against"),
        Column("RMSE, ratio (below 1: the first is better)"),
        Column("won"),
        Column("NLL, difference in nats (below 0: the first is better)"),
        Column("won"),
    ]
    lead = (
        "Geometric means of ratios and means of differences of repeats that share a split, with stratified 95 % "
        "bootstrap intervals (Agarwal et al. 2021); won: the share of data sets and sizes where the first is better."
    )
    return Section(
        f"{first} against the others, all data together",
        lead,
        [Table("Paired repeats", columns, rows)],
    )


def _differences(
    frame: pd.DataFrame, first: str, other: str, name: str, ratio: bool
) -> Iterator[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Of each data set and size, over the repeats that both finished with a number."""
    wide = frame.pivot_table(
        index=["dataset", "n_train", "seed"],
        columns="method",
        values=name,
        aggfunc="first",
        sort=False,
    )
    if not {first, other} <= set(wide):
        return
    pairs = wide[[first, other]].dropna()
    if ratio:
        pairs = pairs[(pairs > 0.0).all(axis=1)]
    for _, mine in pairs.groupby(level=["dataset", "n_train"], sort=False):
        a, b = mine[first].to_numpy(float), mine[other].to_numpy(float)
        yield np.log(a / b) if ratio else a - b
