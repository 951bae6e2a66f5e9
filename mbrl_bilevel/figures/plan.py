"""The figure of plan: a panel an environment, a column a planner."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_bilevel.evaluation.statistics import interval
from mbrl_bilevel.figures.style import Row, colour, save, subplots

#: Drawn as lines: what acts without looking ahead.
_REFERENCES = {"nothing": ("doing nothing", ":"), "random-actions": ("random actions", "--")}


def draw_planners(path: Path, rows: Sequence[Row], planners: Sequence[str]) -> Path:
    """Mean return with its 95 % interval, each episode beside it; doing nothing and random actions as lines."""
    names = list(dict.fromkeys(row["env_id"] for row in rows))
    shown = [planner for planner in planners if planner not in _REFERENCES]
    figure, axes = subplots(1, len(names), figsize=(3.6 * len(names), 3.9), squeeze=False)
    handles: dict[str, Any] = {}
    for axis, name in zip(axes[0], names, strict=True):
        mine = [row for row in rows if row["env_id"] == name]
        for i, planner in enumerate(shown):
            found = [row["return"] for row in mine if row["planner"] == planner]
            if found:
                _column(axis, i, found, colour(planner, i))
        for planner, (label, dashes) in _REFERENCES.items():
            if found := [row["return"] for row in mine if row["planner"] == planner]:
                level = float(np.mean(found))
                axis.axhline(level, color="0.3", linewidth=1, linestyle=dashes, label=label)
        axis.set_xticks(range(len(shown)), shown, fontsize=9)
        axis.set_xlim(-0.6, len(shown) - 0.4)
        axis.set_title(name, fontsize=10)
        axis.grid(axis="y", alpha=0.3)
        drawn, labels = axis.get_legend_handles_labels()
        handles |= dict(zip(labels, drawn, strict=True))
    axes[0, 0].set_ylabel("return of an episode (higher is better)")
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )
    return save(figure, path)


def _column(axis: Any, place: int, values: Sequence[float], tint: str) -> None:
    axis.plot([place + 0.15] * len(values), values, ".", color=tint, alpha=0.5, markersize=5)
    found = interval(values)
    if found["low"] is not None:
        axis.plot([place] * 2, [found["low"], found["high"]], color=tint, linewidth=2)
    axis.plot([place], [found["mean"]], "o", color=tint, markersize=7)
