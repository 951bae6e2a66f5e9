"""Return against real steps of one training run, or of its repeats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from mbrl_bilevel.figures.style import Row, colour, draw_band, save, subplots


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
    return save(figure, path)
