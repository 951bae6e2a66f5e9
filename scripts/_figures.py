"""The figures of the scripts: matplotlib without a screen, one function a figure.

Lines are means over repeats, bands and bars their 95 % bootstrap intervals.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from mbrl_bilevel.evaluation import LEVELS
from mbrl_bilevel.statistics import interval

mpl.use("Agg")
import matplotlib.pyplot as plt  # after the backend is chosen

Row = Mapping[str, Any]

# Baselines of one family share a hue; apart also for the colour-blind, with a marker of their own.
_COLOURS = {
    "bilevel": "#1b6ca8",
    "bilevel-constant": "#7fb3d5",
    "nll": "#d1495b",
    "mse": "#edae49",
    "mse-network": "#a67c00",
    "beta-nll": "#7b2d8b",
    "beta-nll-1": "#c39bd3",
    "faithful": "#2e8b57",
}


def colour(method: str, index: int) -> str:
    """A method's own colour, the same in every figure."""
    return _COLOURS.get(method, f"C{index + 3}")


def draw_errors(folder: Path, rows: Sequence[Row], methods: Sequence[str]) -> Path:
    """One-step error, likelihood and coverage against the number of training transitions."""
    panels = (
        ("nrmse", "one-step RMSE (in target std)"),
        ("nll", "test NLL (nats per dimension)"),
        ("coverage_90", "coverage of the 90 % interval"),
    )
    figure, axes = plt.subplots(1, len(panels), figsize=(12, 3.6), layout="constrained")
    sizes = sorted({row["n_train"] for row in rows})
    for axis, (name, title) in zip(axes, panels, strict=True):
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
                capsize=3,
            )
        axis.set_xscale("log")
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.minorticks_off()
        axis.set_xlabel("training rows")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    axes[-1].axhline(0.9, color="black", linestyle=":", linewidth=1)
    axes[0].legend(frameon=False)
    return _save(figure, folder / "errors.png")


def draw_open_loop(folder: Path, rows: Sequence[Row], methods: Sequence[str]) -> Path:
    """Open-loop error and coverage against the number of steps, at the largest data size."""
    largest = max(row["n_train"] for row in rows)
    figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
    for axis, name, title in (
        (axes[0], "k_nrmse", f"open-loop error (in state std), n = {largest}"),
        (axes[1], "k_coverage_90", "coverage of the particles' 90 % interval"),
    ):
        for i, method in enumerate(methods):
            mine = [r for r in rows if r["method"] == method and r["n_train"] == largest]
            if mine:
                _band(axis, mine[0]["k"], [r[name] for r in mine], method, colour(method, i))
        axis.set_xlabel("steps ahead")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    axes[1].axhline(0.9, color="black", linestyle=":", linewidth=1)
    axes[0].legend(frameon=False)
    return _save(figure, folder / "open_loop.png")


def draw_calibration(folder: Path, rows: Sequence[Row], methods: Sequence[str]) -> Path:
    """What the central intervals cover against what they should, at the smallest data size."""
    smallest = min(row["n_train"] for row in rows)
    figure, axis = plt.subplots(figsize=(4.4, 4.0), layout="constrained")
    axis.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1, label="calibrated")
    for i, method in enumerate(methods):
        mine = [r for r in rows if r["method"] == method and r["n_train"] == smallest]
        if mine:
            _band(axis, LEVELS, [r["coverage"] for r in mine], method, colour(method, i))
    axis.set_xlabel("nominal coverage")
    axis.set_ylabel("covered on test data")
    axis.set_title(f"calibration, n = {smallest}", fontsize=10)
    axis.legend(frameon=False)
    return _save(figure, folder / "calibration.png")


def draw_returns(
    path: Path,
    curves: Mapping[str, Sequence[Sequence[Row]]],
    lines: Mapping[str, float],
    title: str,
) -> Path:
    """Return against real steps: one curve a method over its repeats, and reference lines."""
    figure, axis = plt.subplots(figsize=(6.0, 4.0), layout="constrained")
    for i, (method, repeats) in enumerate(curves.items()):
        steps = [point["step"] for point in repeats[0]]
        values = [[point["mean"] for point in repeat] for repeat in repeats]
        _band(axis, steps, values, method, colour(method, i))
    styles = (":", "--", "-.")
    for style, (name, value) in zip(styles, lines.items(), strict=False):
        axis.axhline(
            value, color="black", linewidth=1, linestyle=style, label=f"{name}: {value:.1f}"
        )
    axis.set_xlabel("real environment steps")
    axis.set_ylabel("return")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8)
    return _save(figure, path)


def draw_overview(path: Path, rows: Sequence[Row], methods: Sequence[str]) -> Path:
    """One-step error, k-step error and coverage of the 90 % interval, side by side."""
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.4), layout="constrained")
    bars = (("nrmse", "one-step RMSE (in target std)"), ("coverage_90", "coverage, one step"))
    for axis, (name, title) in zip(axes[[0, 2]], bars, strict=True):
        for i, method in enumerate(methods):
            values = [r[name] for r in rows if r["method"] == method]
            axis.bar(i, np.mean(values), color=colour(method, i), alpha=0.6)
            axis.plot([i] * len(values), values, "k.", markersize=5)
        axis.set_xticks(range(len(methods)), methods)
        axis.set_title(title, fontsize=10)
    lines = (("k_nrmse", "open-loop error (in state std)"), ("k_coverage_90", "coverage, k steps"))
    for axis, (name, title) in zip(axes[[1, 3]], lines, strict=True):
        for i, method in enumerate(methods):
            mine = [r for r in rows if r["method"] == method]
            if mine:
                _band(axis, mine[0]["k"], [r[name] for r in mine], method, colour(method, i))
        axis.set_xlabel("steps ahead")
        axis.set_title(title, fontsize=10)
    for axis in axes[2:]:
        axis.axhline(0.9, color="black", linestyle=":", linewidth=1)
        axis.set_ylim(0.0, 1.02)
    for axis in axes:
        axis.grid(alpha=0.3)
    axes[1].legend(frameon=False, fontsize=8)
    return _save(figure, path)


def _interval(rows: Sequence[Row], method: str, n: int, name: str) -> Mapping[str, Any]:
    found = [r[name] for r in rows if r["method"] == method and r["n_train"] == n]
    return interval([math.nan if value is None else value for value in found] or [math.nan])


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _band(
    axis: Any, x: Sequence[float], values: Sequence[Sequence[float]], label: str, tint: str
) -> None:
    columns = list(zip(*values, strict=True))
    whole = [i for i, column in enumerate(columns) if None not in column]
    x, found = [x[i] for i in whole], [interval(columns[i]) for i in whole]
    axis.plot(x, [f["mean"] for f in found], marker="o", markersize=3, color=tint, label=label)
    if len(values) > 1:
        low, high = ([f[end] for f in found] for end in ("low", "high"))
        axis.fill_between(x, low, high, color=tint, alpha=0.2, linewidth=0)


def _save(figure: Any, path: Path) -> Path:
    figure.savefig(path, dpi=130)
    plt.close(figure)
    return path
