"""The figures of a study: a panel a task, a line a column."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from mbrl_bilevel.figures.style import colour, save, subplots
from mbrl_bilevel.studies.grid import Grid, Task

_STYLES = (":", "--", "-.")
_MARKERS = "sD^vP*"


def draw_against_steps(path: Path, grid: Grid, summary: Mapping[str, Any]) -> Path:
    """Mean return and its lowest to highest seed against real steps, with targets and published returns."""
    figure, axes = _panels(grid)
    for axis, task in zip(axes, grid.tasks, strict=True):
        _curves(axis, grid, summary["tasks"][task.env_id], lambda point: point["step"])
        _lines(axis, task)
        if task.targets:
            steps, values = zip(*task.targets.items(), strict=True)
            axis.plot(steps, values, "x", color="black", label="target")
        names = list(dict.fromkeys(each.name for each in task.published))
        for marker, name in zip(cycle(_MARKERS), names, strict=False):
            mine = [(p.step, p.value) for p in task.published if p.name == name]
            steps, values = zip(*mine, strict=True)
            axis.plot(steps, values, marker, color="0.5", label=f"{name}, published")
        _finish(axis, "real environment steps (log)")
    return save(figure, path)


def draw_against_cpu(path: Path, grid: Grid, summary: Mapping[str, Any]) -> Path:
    """Mean return against the mean processor seconds of learning."""
    figure, axes = _panels(grid)
    for axis, task in zip(axes, grid.tasks, strict=True):
        _curves(
            axis, grid, summary["tasks"][task.env_id], lambda p: p["cpu_seconds"]["mean"] or None
        )
        _lines(axis, task)
        _finish(axis, "CPU seconds of learning (log)")
    return save(figure, path)


def _panels(grid: Grid) -> tuple[Any, list[Any]]:
    wide = min(3, len(grid.tasks))
    tall = math.ceil(len(grid.tasks) / wide)
    size = (4.2 * wide, 3.4 * tall)
    figure, axes = subplots(tall, wide, figsize=size, squeeze=False)
    for axis, task in zip(axes.flat, grid.tasks, strict=False):
        axis.set_title(task.env_id, fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes.flat[len(grid.tasks) :]:
        axis.set_axis_off()
    for row in axes:
        row[0].set_ylabel("return (higher is better)")
    return figure, list(axes.flat[: len(grid.tasks)])


def _curves(axis: Any, grid: Grid, columns: Mapping[str, Any], x_of: Any) -> None:
    """Where as many seeds have come as to any step: a mean over others would jump."""
    names = list(grid.columns)
    for column, found in columns.items():
        most = max(point["n"] for point in found["points"])
        whole = [p for p in found["points"] if most == p["n"] > 0 and x_of(p) is not None]
        if not whole:
            continue
        x = [x_of(point) for point in whole]
        low, mean, high = ([p[name] for p in whole] for name in ("lowest", "mean", "highest"))
        tint = colour(column, names.index(column))
        label = f"{column} ({most} seed{'s' if most > 1 else ''})"
        axis.plot(x, mean, marker="o", markersize=3, color=tint, label=label)
        axis.fill_between(x, low, high, color=tint, alpha=0.2, linewidth=0)


def _lines(axis: Any, task: Task) -> None:
    for style, (name, value) in zip(cycle(_STYLES), task.lines.items(), strict=False):
        axis.axhline(value, color="0.3", linewidth=1, linestyle=style, label=name)


def _finish(axis: Any, label: str) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.tick_params(labelsize=8)
    axis.set_xlabel(label)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=6, framealpha=0.8, edgecolor="none")
