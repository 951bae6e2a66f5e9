"""Return against real steps of one training run, or of its repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_bilevel.figures.style import Row, colour, draw_band, draw_references, save, subplots


def draw_returns(
    path: Path,
    curves: Mapping[str, Sequence[Sequence[Row]]],
    lines: Mapping[str, float],
    title: str,
) -> Path:
    """Return against real steps: one curve a method over its repeats, and reference lines."""
    figure, axis = subplots(figsize=(6.0, 4.0))
    for i, (method, repeats) in enumerate(curves.items()):
        steps = [point["step"] for point in repeats[0]]
        values = [[point["mean"] for point in repeat] for repeat in repeats]
        draw_band(axis, steps, values, method, colour(method, i))
    means: list[float | None] = [
        point["mean"] for repeats in curves.values() for line in repeats for point in line
    ]
    cut = _leave_out_ruins(axis, means)
    shown = [{"label": f"{name}: {value:.1f}", "mean": value} for name, value in lines.items()]
    draw_references(axis, shown, [str(line["label"]) for line in shown])
    axis.set_xlabel("real environment steps")
    axis.set_ylabel(f"return (higher is better{cut})")
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return save(figure, path)


def _leave_out_ruins(axis: Any, values: Sequence[float | None]) -> str:
    """One evaluation far below all the others would flatten them: the axis then ends at three times the way from
    the best to the median; gives the words that say so."""
    finite = np.array([v for v in values if v is not None and np.isfinite(v)], dtype=float)
    if len(finite) < 4:
        return ""
    best, middle = finite.max(), np.median(finite)
    end = best - 3.0 * (best - middle)
    if not finite.min() < end < best:
        return ""
    axis.set_ylim(end, best + 0.15 * (best - end))
    return "; the lowest are cut off"
