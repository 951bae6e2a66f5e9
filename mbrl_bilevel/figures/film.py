"""The strip of curves below a video: what happened, and what the model imagined from every so many steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mbrl_bilevel.figures.style import colour, subplots

Array = npt.NDArray[np.float64]
Picture = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Curve:
    """One number of an episode: ``true`` [T + 1], and what was imagined of it, ``mean``, ``low`` and ``high``
    [T + 1], NaN where nothing was."""

    name: str
    true: Array
    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class Strip:
    """The curves as one picture. Of each panel: the pixel column of step 0, how many pixels a step is wide, and
    the rows from its top to its bottom."""

    picture: Picture
    panels: Sequence[tuple[float, float, slice]]

    def at(self, step: int) -> Picture:
        """The picture with a mark at this step."""
        marked = self.picture.copy()
        for first, width, rows in self.panels:
            column = round(first + step * width)
            marked[rows, column : column + 2] = (200, 30, 30)
        return marked


def draw_strip(
    curves: Sequence[Curve], starts: Sequence[int], size: tuple[int, int], columns: int
) -> Strip:
    """``starts``: the steps at which imagination begins anew; ``size`` (width, height) in pixels."""
    rows = math.ceil(len(curves) / columns)
    figure, axes = subplots(
        rows, columns, figsize=(size[0] / 100, size[1] / 100), squeeze=False, sharex=True
    )
    for axis, curve in zip(axes.flat, curves, strict=False):
        _draw(axis, curve, starts)
    for axis in axes.flat[len(curves) :]:
        axis.set_axis_off()
    for axis in axes[-1]:
        axis.set_xlabel("step", fontsize=8)
    handles, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper left", ncols=3, fontsize=8, frameon=False)
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    figure.set_dpi(100)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())[: size[1], : size[0], :3].copy()
    panels = []
    for axis in axes.flat[: len(curves)]:
        zero, one = axis.transData.transform([(0.0, 0.0), (1.0, 0.0)])[:, 0]
        box = axis.get_window_extent()
        rows_of = slice(round(size[1] - box.y1), round(size[1] - box.y0))
        panels.append((float(zero), float(one - zero), rows_of))
    return Strip(picture, panels)


def _draw(axis: Any, curve: Curve, starts: Sequence[int]) -> None:
    steps = np.arange(len(curve.true))
    tint = colour("bilevel", 0)
    axis.fill_between(
        steps, curve.low, curve.high, color=tint, alpha=0.3, linewidth=0, label="its 90 % interval"
    )
    axis.plot(steps, curve.mean, color=tint, linewidth=1.2, label="imagined")
    axis.plot(steps, curve.true, color="black", linewidth=1.2, label="what happened")
    for start in starts:
        axis.axvline(start, color="0.6", linewidth=0.6, linestyle=":")
    # One wide interval must not flatten the curve that it is about.
    low, high = np.nanmin(curve.true), np.nanmax(curve.true)
    room = max(high - low, 1e-6)
    axis.set_ylim(low - 0.6 * room, high + 0.6 * room)
    axis.set_xlim(0, len(steps) - 1)
    axis.set_title(curve.name, fontsize=8)
    axis.tick_params(labelsize=7)
