"""What a plot shows, in words and as a table: for who cannot see it, and for who wants the numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mbrl_bilevel.pages.blocks import Better, Line, Plot
from mbrl_bilevel.pages.means import said
from mbrl_bilevel.pages.ranking import best_of

BETTER: dict[Better | None, str] = {
    "lower": "lower is better ↓",
    "higher": "higher is better ↑",
    "level": "nearest to the dashed line is best",
    None: "",
}
#: Lines that are told of, and shown at first.
MOST_LINES = 6


def summary(plot: Plot) -> str:
    """A few sentences: what is drawn against what, where each line begins and ends, who is best."""
    against = f" against {plot.x_title}" if plot.x_title else ""
    sentences = [f"{plot.y_title[:1].upper()}{plot.y_title[1:]}{against}."]
    sentences += [_course(line, plot.joined) for line in plot.lines[:MOST_LINES]]
    if len(plot.lines) > MOST_LINES:
        sentences.append(f"{len(plot.lines) - MOST_LINES} more are in the table.")
    sentences += [f"Dashed line, {name}: {said(value)}." for name, value in plot.references.items()]
    if plot.diagonal:
        sentences.append("Dotted: the diagonal, where both are the same.")
    sentences += _winner(plot)
    return " ".join(sentences)


def data_rows(plot: Plot) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """The head and the rows of the table below a plot."""
    rows = [
        [line.name, _place(x), said(y.mean), *_ends(y.low, y.high), str(y.n)]
        for line in plot.lines
        for x, y in zip(line.x, line.y, strict=True)
    ]
    return ("", plot.x_title or "where", plot.y_title, "from", "to", "repeats"), rows


def frame_of(plot: Plot) -> tuple[float, float] | None:
    """The part of the axis that is shown at first, where a line that broke down would hide all the others;
    None shows everything."""
    if plot.y_range is not None or plot.log_y or plot.better not in ("lower", "higher"):
        return plot.y_range
    sign = 1.0 if plot.better == "lower" else -1.0
    found = [sign * y.mean for line in plot.lines for y in line.y if math.isfinite(y.mean)]
    found += [sign * value for value in plot.references.values()]
    if not found:
        return None
    best, most, worst = np.quantile(found, (0.0, 0.8, 1.0))
    end = most + 2.0 * (most - best)
    if worst <= end or most <= best:
        return None
    ends = (sign * float(best - 0.1 * (end - best)), sign * float(end))
    return min(ends), max(ends)


def _course(line: Line, joined: bool) -> str:
    shown = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y.mean)]
    if not shown:
        return f"{line.name}: nothing finite to draw."
    if not joined or len(shown) == 1:
        points = ", ".join(
            f"{y} at {_place(x)}" if _place(x) != line.name else str(y) for x, y in shown[:8]
        )
        return f"{line.name}: {points}."
    (x0, y0), (x1, y1) = shown[0], shown[-1]
    return f"{line.name}: from {said(y0.mean)} at {_place(x0)} to {y1} at {_place(x1)}."


def _winner(plot: Plot) -> list[str]:
    """Who has the best last point, of lines that end at the same place."""
    ends = [(line.name, line.x[-1], line.y[-1].mean) for line in plot.lines if line.x]
    if plot.better not in ("lower", "higher") or len({x for _, x, _ in ends}) != 1 or len(ends) < 2:
        return []
    best = best_of([("", value) for *_, value in ends], plot.better)
    names = [name for (name, *_), marked in zip(ends, best, strict=True) if marked]
    return [f"Best at {_place(ends[0][1])}: {', '.join(names)}."] if names else []


def _place(x: float | str) -> str:
    return x if isinstance(x, str) else said(x)


def _ends(low: float | None, high: float | None) -> list[str]:
    return ["–" if end is None else said(end) for end in (low, high)]
