"""What work costs as its sizes grow, and a study on more and more machines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

from mbrl_bilevel.figures.style import Row, save, subplots

#: Names of the sizes as they stand below an axis.
_SIZES = {
    "obs_dim": "observation dimensions",
    "members": "ensemble members",
    "n_train": "rows",
    "horizon": "steps of a plan",
    "population": "candidates",
}


def draw_scaling(folder: Path, rows: Sequence[Row]) -> Path:
    """Milliseconds of a gradient step and of a plan against each size, on double logarithmic axes; dotted: in
    proportion to the size, through the last point."""
    panels = list(dict.fromkeys((row["work"], row["vary"]) for row in rows))
    columns = max(sum(work == name for work, _ in panels) for name in ("fit", "plan"))
    figure, axes = subplots(2, columns, figsize=(3.6 * columns, 6.4), squeeze=False)
    for line, work in zip(axes, ("fit", "plan"), strict=True):
        mine = [vary for name, vary in panels if name == work]
        for axis, vary in zip(line, mine, strict=False):
            points = [
                (r["value"], 1e3 * r["seconds"])
                for r in rows
                if (r["work"], r["vary"]) == (work, vary)
            ]
            sizes, times = zip(*sorted(points), strict=True)
            axis.loglog(sizes, times, "o-", color="#111111")
            along = [times[-1] * size / sizes[-1] for size in sizes]
            axis.loglog(sizes, along, ":", color="0.6", label="in proportion to the size")
            axis.set_xlabel(_SIZES[vary])
            axis.set_ylim(0.5 * min(times), 2.0 * max(times))
            axis.set_xticks(sizes, [_short(size) for size in sizes], fontsize=7)
            _plainly(axis)
            axis.set_title("a gradient step" if work == "fit" else "a plan", fontsize=10)
            axis.grid(alpha=0.3)
        line[0].set_ylabel("milliseconds")
        line[0].legend(fontsize=7, loc="upper left")
        for axis in line[len(mine) :]:
            axis.set_axis_off()
    return save(figure, folder / "scaling.png")


def draw_machines(folder: Path, rows: Sequence[Row]) -> Path:
    """Hours of a study against the number of machines; dotted: its longest cell."""
    figure, axis = subplots(figsize=(4.6, 3.4))
    nodes = [row["nodes"] for row in rows]
    axis.loglog(nodes, [row["hours"] for row in rows], "o-", color="#111111", label="the study")
    axis.axhline(rows[0]["longest"], linestyle=":", color="0.4", label="its longest cell")
    axis.set_xticks(nodes, [f"{count}" for count in nodes])
    _plainly(axis)
    axis.set_xlabel("machines")
    axis.set_ylabel("hours")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    return save(figure, folder / "machines.png")


def _short(size: int) -> str:
    """5k, 1M."""
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if size >= unit:
            return f"{size / unit:g}{name}"
    return str(size)


def _plainly(axis: Any) -> None:
    """Numbers as they are on a logarithmic axis, and few of them."""
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.yaxis.set_minor_locator(NullLocator())
