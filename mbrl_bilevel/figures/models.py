"""Dynamics models compared: errors, likelihoods, coverage, predicted rollouts, and trials of tuning.

Lines are means over repeats, bands and bars their 95 % bootstrap intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_bilevel.evaluation.levels import LEVELS
from mbrl_bilevel.evaluation.statistics import interval
from mbrl_bilevel.figures.style import Row, colour, draw_band, most_telling, save, subplots

#: Bands that can lie over each other in one panel and still be told apart.
_MOST_BANDS = 3


def draw_errors(folder: Path, rows: Sequence[Row], methods: Sequence[str]) -> Path:
    """One-step error, likelihood and coverage against the number of training rows, a column a data
    set."""
    panels = (
        ("nrmse", "RMSE (target std), lower is better"),
        ("nll", "NLL (nats), lower is better"),
        ("coverage_90", "coverage of the 90 % interval"),
    )
    methods = most_telling(methods)
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    figure, axes = subplots(
        len(panels),
        len(names),
        figsize=(max(4.2, 3.0 * len(names)), 8.4),
        squeeze=False,
        sharex="col",
    )
    for column, dataset in enumerate(names):
        mine = [row for row in rows if row["dataset"] == dataset]
        for axis, (name, title) in zip(axes[:, column], panels, strict=True):
            _against_size(axis, mine, methods, name)
            if column == 0:
                axis.set_ylabel(title)
        _clip_catastrophes(axes[1, column])
        axes[0, column].set_title(dataset, fontsize=10)
        axes[-1, column].axhline(0.9, color="black", linestyle=":", linewidth=1)
        axes[-1, column].set_xlabel("training rows")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), 5), frameon=False
    )
    return save(figure, folder / "errors.png")


def _against_size(axis: Any, rows: Sequence[Row], methods: Sequence[str], name: str) -> None:
    sizes = sorted({row["n_train"] for row in rows})
    for i, method in enumerate(methods):
        found = [_interval(rows, method, n, name) for n in sizes]
        shift = 1.0 + 0.03 * (i - (len(methods) - 1) / 2)
        mean = np.array([f["mean"] for f in found], dtype=float)
        low = np.array([_or(f["low"], f["mean"]) for f in found], dtype=float)
        high = np.array([_or(f["high"], f["mean"]) for f in found], dtype=float)
        axis.errorbar(
            np.array(sizes) * shift,
            mean,
            # The bootstrap of a skewed sample may leave its mean just outside.
            yerr=np.clip([mean - low, high - mean], 0.0, None),
            label=method,
            color=colour(method, i),
            marker="o",
            markersize=4,
            capsize=3,
        )
    axis.set_xscale("log")
    axis.set_xticks(sizes, [str(n) for n in sizes])
    axis.minorticks_off()
    axis.grid(alpha=0.3)


def _clip_catastrophes(axis: Any) -> None:
    """A likelihood that broke down would hide all the others: the axis ends at three times the way from
    the best value to the median."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axis.get_lines()])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return
    best, median, worst = values.min(), np.median(values), values.max()
    top = best + 3.0 * (median - best)
    if worst > top > best:
        axis.set_ylim(best - 0.05 * (top - best), top)
        axis.annotate("(cut)", (0.02, 0.94), xycoords="axes fraction", fontsize=8)


def draw_open_loop(folder: Path, rows: Sequence[Row], methods: Sequence[str]) -> Path:
    """Open-loop error, likelihood and coverage against the number of steps, at the largest data size;
    a row a data set."""
    methods = most_telling(methods)
    largest = max(row["n_train"] for row in rows)
    names = list(dict.fromkeys(row["dataset"] for row in rows))
    figure, axes = subplots(len(names), 3, figsize=(11.5, 3.3 * len(names)), squeeze=False)
    panels = (
        ("k_nrmse", "open-loop error (state std), lower is better"),
        ("k_nll", "NLL (nats per dimension), lower is better"),
        ("k_coverage_90", "coverage of the particles' 90 % interval"),
    )
    for line, dataset in zip(axes, names, strict=True):
        for axis, (name, title) in zip(line, panels, strict=True):
            for i, method in enumerate(methods):
                mine = [
                    r
                    for r in rows
                    if (r["method"], r["n_train"], r["dataset"]) == (method, largest, dataset)
                ]
                if mine:
                    draw_band(
                        axis, mine[0]["k"], [r[name] for r in mine], method, colour(method, i)
                    )
            axis.set_xlabel("steps ahead")
            axis.set_title(title, fontsize=10)
            axis.grid(alpha=0.3)
        line[0].set_yscale("log")
        _clip_catastrophes(line[1])
        line[0].set_ylabel(f"{dataset}, n = {largest}")
        line[2].axhline(0.9, color="black", linestyle=":", linewidth=1)
    axes[0, 0].legend(frameon=False, fontsize=8)
    return save(figure, folder / "open_loop.png")


def draw_rollout(folder: Path, rows: Sequence[Row], methods: Sequence[str]) -> list[Path]:
    """A predicted rollout with its 90 % band against the true one: a figure a data set, a panel an observation, the
    first three methods that have one. Rows without one are passed over."""
    paths = []
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        found = {
            row["method"]: row["rollout"]
            for row in rows
            if row["dataset"] == dataset and row.get("rollout")
        }
        drawn = [method for method in methods if method in found][:_MOST_BANDS]
        if not drawn:
            continue
        truth = np.array(found[drawn[0]]["truth"])
        columns = min(truth.shape[1], 2)
        lines = -(-truth.shape[1] // columns)
        size = (4.4 * columns, 2.3 * lines + 0.7)
        figure, axes = subplots(lines, columns, figsize=size, sharex=True, squeeze=False)
        steps = np.arange(1, len(truth) + 1)
        for dim, axis in enumerate(axes.flat[: truth.shape[1]]):
            for method in drawn:
                band = {name: np.array(value)[:, dim] for name, value in found[method].items()}
                tint = colour(method, methods.index(method))
                axis.fill_between(
                    steps, band["low"], band["high"], color=tint, alpha=0.1, linewidth=0
                )
                for end in ("low", "high"):  # of bands that lie over each other
                    axis.plot(steps, band[end], color=tint, linewidth=0.8)
                axis.plot(steps, band["mean"], color=tint, linewidth=2, label=method)
            axis.plot(
                steps, truth[:, dim], color="black", linewidth=1, linestyle="--", label="true"
            )
            span = np.ptp(truth[:, dim]) + 1e-6
            axis.set_ylim(truth[:, dim].min() - span, truth[:, dim].max() + span)
            axis.set_ylabel(f"observation {dim}")
            axis.grid(alpha=0.3)
        for axis in axes.flat[truth.shape[1] :]:
            axis.set_axis_off()
        for axis in axes[-1]:
            axis.set_xlabel("steps ahead")
        figure.suptitle(
            f"{dataset}: predicted (mean, 90 %) and true; bands may leave the frame", fontsize=10
        )
        figure.legend(
            *axes[0, 0].get_legend_handles_labels(),
            loc="outside lower center",
            ncols=len(drawn) + 1,
            frameon=False,
        )
        paths.append(save(figure, folder / f"rollout-{dataset.replace('/', '-')}.png"))
    return paths


def draw_pooled(folder: Path, against: Sequence[Row]) -> Path:
    """The first method against each other one over all data: ratios of errors, differences of
    likelihoods; ensembles filled, single models hollow. Left of the line the first is better."""
    panels = (
        ("nrmse", "RMSE, ratio", 1.0),
        ("ncrps", "CRPS, ratio", 1.0),
        ("nll", "NLL, interquartile mean difference (nats)", 0.0),
        ("calibration_error", "calibration error, difference", 0.0),
    )
    figure, axes = subplots(1, len(panels), figsize=(14, 1.6 + 0.45 * len(against)), sharey=True)
    for axis, (name, title, even) in zip(axes, panels, strict=True):
        for place, line in enumerate(against):
            for shift, key in ((-0.12, name), (0.12, f"member_{name}")):
                found = line.get(key)
                if found is not None and name == "nll":
                    found = found["iqm"]  # one broken likelihood would be all of the mean
                if found is None:
                    continue
                tint, middle = colour(line["against"], place + 1), found["estimate"]
                if found["low"] is not None:  # with one repeat there is no interval
                    axis.plot([found["low"], found["high"]], [place + shift] * 2, color=tint)
                face = tint if key == name else "white"
                axis.plot(middle, place + shift, "o", color=tint, markerfacecolor=face)
        axis.axvline(even, color="black", linestyle=":", linewidth=1)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3, axis="x")
    axes[0].set_yticks(range(len(against)), [line["against"] for line in against])
    axes[0].invert_yaxis()
    figure.suptitle(
        f"{against[0]['method']} against others: left of the line it is better (filled: ensembles, hollow: single models)"
    )
    return save(figure, folder / "pooled.png")


def draw_calibration(folder: Path, rows: Sequence[Row], methods: Sequence[str]) -> Path:
    """What the central intervals cover against what they should, at the smallest and the largest data
    size, over all data sets."""
    methods = most_telling(methods)
    sizes = sorted({row["n_train"] for row in rows})
    ends = list(dict.fromkeys((sizes[0], sizes[-1])))
    figure, axes = subplots(1, len(ends), figsize=(4.4 * len(ends), 4.0), squeeze=False)
    for axis, n in zip(axes[0], ends, strict=True):
        axis.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1, label="calibrated")
        for i, method in enumerate(methods):
            mine = [r for r in rows if r["method"] == method and r["n_train"] == n]
            if mine:
                draw_band(axis, LEVELS, [r["coverage"] for r in mine], method, colour(method, i))
        axis.set_xlabel("nominal coverage")
        axis.set_title(f"calibration, n = {n}", fontsize=10)
    axes[0, 0].set_ylabel("covered on test data")
    axes[0, 0].legend(frameon=False, fontsize=8)
    return save(figure, folder / "calibration.png")


def draw_trials(folder: Path, rows: Sequence[Row], methods: Sequence[str]) -> Path:
    """The value of each trial against its step size; the best of each method filled."""
    figure, axis = subplots(figsize=(6.4, 4.2))
    for i, method in enumerate(methods):
        mine = [r for r in rows if r["method"] == method and r["value"] is not None]
        if not mine:
            continue
        best = min(mine, key=lambda row: float(row["value"]))
        for row in mine:
            face = colour(method, i) if row is best else "none"
            label = method if row is best else None
            axis.plot(
                row["learning_rate"],
                row["value"],
                "o",
                color=colour(method, i),
                markerfacecolor=face,
                label=label,
            )
    axis.set_xscale("log")
    axis.set_xlabel("learning rate")
    axis.set_ylabel("held-out NLL (nats per dimension; lower is better)")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    return save(figure, folder / "trials.png")


def draw_overview(path: Path, rows: Sequence[Row], methods: Sequence[str]) -> Path:
    """One-step error, k-step error and coverage of the 90 % interval, side by side."""
    figure, axes = subplots(1, 4, figsize=(14, 3.4))
    dots = (
        ("nrmse", "one-step RMSE (target std), lower is better"),
        ("coverage_90", "coverage, one step"),
    )
    for axis, (name, title) in zip(axes[[0, 2]], dots, strict=True):
        for i, method in enumerate(methods):
            _dot(axis, i, [r[name] for r in rows if r["method"] == method], colour(method, i))
        axis.set_xticks(range(len(methods)), methods)
        axis.set_xlim(-0.5, len(methods) - 0.5)
        axis.set_title(title, fontsize=10)
    lines = (
        ("k_nrmse", "open-loop error (state std), lower is better"),
        ("k_coverage_90", "coverage, k steps"),
    )
    for axis, (name, title) in zip(axes[[1, 3]], lines, strict=True):
        for i, method in enumerate(methods):
            mine = [r for r in rows if r["method"] == method]
            if mine:
                draw_band(axis, mine[0]["k"], [r[name] for r in mine], method, colour(method, i))
        axis.set_xlabel("steps ahead")
        axis.set_title(title, fontsize=10)
    for axis in axes[2:]:
        axis.axhline(0.9, color="black", linestyle=":", linewidth=1, label="as it should be")
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[1].legend(frameon=False, fontsize=8)
    return save(figure, path)


def _dot(axis: Any, place: float, values: Sequence[float], tint: str) -> None:
    """Each repeat faint, their mean and its 95 % interval."""
    axis.plot([place] * len(values), values, "o", color=tint, alpha=0.35, markersize=4)
    found = interval(values)
    axis.plot([place], [found["mean"]], "o", color=tint, markersize=7)
    if found["low"] is not None:
        axis.plot([place] * 2, [found["low"], found["high"]], color=tint, linewidth=2)


def _interval(rows: Sequence[Row], method: str, n: int, name: str) -> Mapping[str, Any]:
    found = [r[name] for r in rows if r["method"] == method and r["n_train"] == n]
    return interval([math.nan if value is None else value for value in found] or [math.nan])


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
