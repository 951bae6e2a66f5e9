"""The figures of classify: differences to the first method, reliability, rewards, learning rates.

Points are means over repeats, bars their 95 % bootstrap intervals; those of shares of rows are Wilson's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_bilevel.evaluation.statistics import interval
from mbrl_bilevel.figures.style import Row, colour, most_telling, save, subplots
from mbrl_bilevel.studies.class_summaries import differences

_PANELS = (("accuracy", "accuracy"), ("nll", "NLL (nats)"), ("ece", "ECE"))
#: Heat maps at most, and methods in one reliability diagram.
_MOST = 6


def draw_differences(folder: Path, rows: Sequence[Row], methods: Sequence[str]) -> Path | None:
    """The first method minus each other, paired by repeat, averaged over the data sets.

    A size a row, a score a column. None with fewer than two methods.
    """
    first, *others = methods
    if not others:
        return None
    rates = sorted({row["learning_rate"] for row in rows})
    sizes = sorted({row["n_train"] for row in rows})
    figure, axes = subplots(
        len(sizes),
        len(_PANELS),
        figsize=(11, 1.0 + (0.7 + 0.26 * len(others)) * len(sizes)),
        squeeze=False,
        sharex="col",  # sizes are compared
    )
    for line, n in zip(axes, sizes, strict=True):
        here = [row for row in rows if row["n_train"] == n and row["learning_rate"] == rates[0]]
        for axis, (name, title) in zip(line, _PANELS, strict=True):
            for i, other in enumerate(others):
                found = differences(here, first, other, name, "all")
                if found:
                    _bar(axis, i, found, colour(other, i))
            axis.axvline(0.0, color="black", linewidth=1)
            if name == "accuracy":
                axis.locator_params(axis="x", nbins=5)
            else:  # some methods are ten times further away than the close ones
                axis.set_xscale("symlog", linthresh=0.01)
            axis.set_yticks(range(len(others)), others if axis is line[0] else [], fontsize=8)
            axis.set_ylim(len(others) - 0.4, -0.6)
            axis.grid(alpha=0.3, axis="x")
            better = "right" if name == "accuracy" else "left"
            size = f"n = {n}" if n else "four fifths"
            axis.set_title(f"{title}, {size} ({better}: {first} is better)", fontsize=8)
    figure.suptitle(f"{first} minus the method named, mean over data sets", fontsize=10)
    return save(figure, folder / "differences.png")


def _bar(axis: Any, place: float, values: Sequence[float], tint: str) -> None:
    found = interval(values)
    mean = float(found["mean"] or 0.0)
    low = mean if found["low"] is None else float(found["low"])
    high = mean if found["high"] is None else float(found["high"])
    # The bootstrap of a skewed sample may leave its mean just outside.
    bars = np.clip([[mean - low], [high - mean]], 0.0, None)
    axis.errorbar([mean], [place], xerr=bars, marker="o", color=tint, capsize=3)


def draw_reliability(folder: Path, rows: Sequence[Row], methods: Sequence[str]) -> Path:
    """Accuracy against confidence, the test rows of all data sets and repeats pooled; a size a panel.

    Bins with fewer than 20 rows are left out. Bars are Wilson's 95 % intervals of a share of so many rows; below,
    how many there are.
    """
    sizes = sorted({row["n_train"] for row in rows})
    rates = sorted({row["learning_rate"] for row in rows})
    figure, axes = subplots(
        2,
        len(sizes),
        figsize=(4.6 * len(sizes), 5.0),
        squeeze=False,
        height_ratios=(4, 1),
        sharex=True,
    )
    for axis, below, n in zip(*axes, sizes, strict=True):
        axis.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
        for i, method in enumerate(methods[:_MOST]):
            mine = [
                row
                for row in rows
                if (row["method"], row["n_train"], row["learning_rate"]) == (method, n, rates[0])
            ]
            if not mine:
                continue
            count, confidence, correct = (
                np.array([row[name] for row in mine], dtype=float)
                for name in ("count", "confidence", "correct")
            )
            total = count.sum(0)
            kept = total >= 20
            weights = count[:, kept] / total[kept]
            right = (weights * correct[:, kept]).sum(0)
            axis.errorbar(
                (weights * confidence[:, kept]).sum(0),
                right,
                yerr=_wilson(right, total[kept]),
                marker="o",
                markersize=3,
                capsize=2,
                color=colour(method, i),
                label=method,
            )
            middles = (np.arange(len(total)) + 0.5) / len(total)
            below.plot(middles, total, marker="o", markersize=2, color=colour(method, i))
        below.set_xlabel("confidence")
        below.set_yscale("log")
        below.grid(alpha=0.3)
        axis.set_title(f"n = {n}" if n else "four fifths of the table", fontsize=10)
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("accuracy (on the diagonal: calibrated)")
    axes[1][0].set_ylabel("test rows")
    axes[0][0].legend(frameon=False, fontsize=8)
    return save(figure, folder / "reliability.png")


def _wilson(share: Any, n: Any) -> Any:
    """How far below and above a share [bins] of ``n`` rows its 95 % score interval reaches: [2, bins]. E. B. Wilson,
    Probable inference, the law of succession, and statistical inference, 1927."""
    z = 1.96
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    # Rounding may put an end of a share of 0 or 1 on its wrong side.
    return np.clip([share - middle + half, middle + half - share], 0.0, None)


def draw_rewards(folder: Path, rows: Sequence[Row]) -> Path | None:
    """Inferred reward matrices, mean over repeats: one heat map a data set, for the method whose
    matrix moves. A column's mean is taken off: adding a number to a column changes nothing."""
    moving = [row for row in rows if row["method"] == "bilevel-matrix" and "reward_matrix" in row]
    largest = max((row["n_train"] for row in moving), default=0)
    if any(row["n_train"] == 0 for row in moving):
        largest = 0  # zero stands for four fifths
    kept = [row for row in moving if row["n_train"] == largest]
    names = list(dict.fromkeys(row["dataset"] for row in kept))[:_MOST]
    if not names:
        return None
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, axes = subplots(lines, columns, figsize=(3.6 * columns, 3.5 * lines), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    found = {name: _centred([r for r in kept if r["dataset"] == name]) for name in names}
    edge = max(np.abs(matrix).max() for matrix in found.values())  # one scale: they are compared
    for axis, (name, matrix) in zip(axes.flat, found.items(), strict=False):
        mine = [row for row in kept if row["dataset"] == name]
        image = axis.imshow(matrix, cmap="RdBu_r", vmin=-edge, vmax=edge)
        labels = mine[0]["labels"]
        axis.set_xticks(range(len(labels)), labels, rotation=45, ha="right", fontsize=7)
        axis.set_yticks(range(len(labels)), labels, fontsize=7)
        axis.set_xlabel("true class")
        axis.set_title(name, fontsize=10)
    figure.colorbar(image, ax=axes, shrink=0.6, label="reward, a column's mean taken off")
    for line in axes:
        line[0].set_ylabel("answer")
    return save(figure, folder / "reward_matrices.png")


def _centred(rows: Sequence[Row]) -> Any:
    matrix = np.mean([row["reward_matrix"] for row in rows], axis=0)
    return matrix - matrix.mean(0)


def draw_learning_rates(folder: Path, rows: Sequence[Row], methods: Sequence[str]) -> Path | None:
    """Accuracy and NLL against the learning rate, a data set a column. None with one rate only."""
    rates = sorted({row["learning_rate"] for row in rows})
    if len(rates) < 2:
        return None
    # Here: a process that fits one cell of a study draws nothing.
    from matplotlib.ticker import LogLocator, NullLocator

    names = list(dict.fromkeys(row["dataset"] for row in rows))
    figure, axes = subplots(2, len(names), figsize=(3.6 * len(names), 6), squeeze=False)
    for column, name in enumerate(names):
        for axis, metric in zip(axes[:, column], ("accuracy", "nll"), strict=True):
            for i, method in enumerate(most_telling(methods)):
                found = [
                    interval(values)
                    for rate in rates
                    if (values := _values(rows, method, name, rate, metric))
                ]
                if len(found) < len(rates):
                    continue
                mean = [f["mean"] for f in found]
                axis.plot(rates, mean, marker="o", markersize=3, color=colour(method, i))
                if all(f["low"] is not None for f in found):
                    axis.fill_between(
                        rates,
                        [f["low"] for f in found],
                        [f["high"] for f in found],
                        color=colour(method, i),
                        alpha=0.2,
                        linewidth=0,
                    )
                axis.plot([], [], color=colour(method, i), label=method)
            axis.set_xscale("log")
            axis.set_ylabel(f"{metric}, {'higher' if metric == 'accuracy' else 'lower'} is better")
            if metric == "nll":  # a rate that is far too small would flatten the others
                axis.set_yscale("log")
                axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_locator(NullLocator())
            axis.grid(alpha=0.3)
        axes[0, column].set_title(name, fontsize=10)
        axes[1, column].set_xlabel("learning rate")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return save(figure, folder / "learning_rates.png")


def _values(
    rows: Sequence[Row], method: str, dataset: str, rate: float, metric: str
) -> list[float]:
    wanted = {"method": method, "dataset": dataset, "learning_rate": rate}
    return [row[metric] for row in rows if wanted.items() <= row.items()]
