"""The figure of plan: a panel an environment, a bar a planner, a point an episode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mbrl_bilevel.figures.style import Row, save, subplots


def draw_planners(path: Path, rows: Sequence[Row], planners: Sequence[str]) -> Path:
    """Mean return, and that of each episode."""
    names = list(dict.fromkeys(row["env_id"] for row in rows))
    figure, axes = subplots(1, len(names), figsize=(3.6 * len(names), 3.6), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for i, planner in enumerate(planners):
            found = [r["return"] for r in rows if (r["env_id"], r["planner"]) == (name, planner)]
            if found:
                axis.bar(i, np.mean(found), color="0.8" if i < 2 else "#7fb3d5")
                axis.plot([i] * len(found), found, "k.", markersize=4)
        axis.set_xticks(range(len(planners)), planners, rotation=30, ha="right", fontsize=8)
        axis.set_title(name, fontsize=10)
        axis.grid(axis="y", alpha=0.3)
    axes[0, 0].set_ylabel("return of an episode")
    return save(figure, path)
