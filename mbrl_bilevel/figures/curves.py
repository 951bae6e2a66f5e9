"""The figure of curves: a panel an environment, a line an agent."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from mbrl_bilevel.figures.style import Row, colour, draw_references, plain, save, subplots


def draw_curves(path: Path, points: Sequence[Row], references: Sequence[Row]) -> Path:
    """Mean return with its 95 % interval against real steps, on a logarithmic axis."""
    names = list(dict.fromkeys(point["env_id"] for point in points))
    names_of_lines = list(dict.fromkeys(line["label"] for line in references))
    labels = list(dict.fromkeys(point["label"] for point in points))
    columns = min(3, len(names))
    shape = (math.ceil(len(names) / columns), columns)
    figure, axes = subplots(*shape, figsize=(4.0 * columns, 3.2 * shape[0]), squeeze=False)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    for axis, name in zip(axes.flat, names, strict=False):
        for i, label in enumerate(labels):
            mine = [p for p in points if (p["env_id"], p["label"]) == (name, label)]
            if not mine:
                continue
            tint = colour(label, i)
            steps = [p["step"] for p in mine]
            means = [p["mean"] for p in mine]
            dashes = "--" if label.startswith("mbpo") else "-"
            axis.plot(
                steps, means, dashes, marker="o", markersize=3, color=tint, label=plain(label)
            )
            low, high = ([_bound(p, end) for p in mine] for end in ("low", "high"))
            axis.fill_between(steps, low, high, color=tint, alpha=0.2, linewidth=0)
        lines = [line for line in references if line["env_id"] == name]
        draw_references(axis, lines, names_of_lines)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_title(plain(name), fontsize=10)
        axis.grid(alpha=0.3)
        axis.set_xlabel("real environment steps (log)")
    for axis in axes[:, 0]:
        axis.set_ylabel("return (higher is better)")
    _one_legend(figure, axes)
    with warnings.catch_warnings():
        # A letter that the font lacks is drawn as a box.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        return save(figure, path)


def _one_legend(figure: Any, axes: Any) -> None:
    """Of all panels together, above them: a panel's own hides its lines."""
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, name in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    figure.legend(
        found.values(),
        found.keys(),
        loc="outside upper center",
        ncols=min(2 * axes.shape[1], len(found)),
        frameon=False,
        fontsize=8,
    )


def _bound(point: Row, end: str) -> float:
    value: float = point["mean"] if point[end] is None else point[end]
    return value
