"""What all figures share: a sheet without a screen, a colour a method, lines with intervals.

Lines are means over repeats, bands and bars their 95 % bootstrap intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbrl_bilevel.evaluation.statistics import interval
from mbrl_bilevel.pages.looks import OWN, PALETTE, method_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A row as ``rows.jsonl`` keeps it.
Row = Mapping[str, Any]

#: How reference lines are told apart.
_DASHES = (":", "--", "-.", (0, (1, 4)))
#: Of methods that have no place of their own on the pages of runs; as far from those and each other as is left.
_OTHERS = ("#111111", "#8a5a44", "#d66fb4", "#5f7a12", "#9a9a9a", "#2b8f86")
_ALSO = {
    **{"mse-network": "#5f7a12", "beta-nll-1": "#2b8f86", "nll-mixture": "#8a5a44"},
    **{"bilevel-constant": "#111111", "learner": "#111111", "learner alone": "#111111"},
    **{"sb3-sac": PALETTE[OWN["sac"]][0], "bilevel-bounded": "#111111"},
    **{"pg-identity": "#d66fb4", "pg-beta": "#5f7a12"},
}
#: Lines of a panel at most.
MOST_LINES = 6


def colour(method: str, index: int) -> str:
    """A method's own colour, the same in every figure and on every page, and for each agent with it ("mpc, nll").
    ``index``: its place among the methods of the figure, for those that have no colour of their own."""
    name = method_of(method)
    place = OWN.get(name)
    return _ALSO.get(name, _OTHERS[index % len(_OTHERS)]) if place is None else PALETTE[place][0]


def most_telling(methods: Sequence[str]) -> list[str]:
    """At most MOST_LINES of the methods, in their order: variants give way to those that have a colour of their own
    on the pages of runs. The tables have all."""
    ranked = sorted(
        methods, key=lambda method: (method_of(method) not in OWN, methods.index(method))
    )
    return [method for method in methods if method in ranked[:MOST_LINES]]


def subplots(rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes, as ``matplotlib.pyplot.subplots`` gives them. Without pyplot: whatever backend
    the caller draws with stays as it is, and nothing is left open.

    ``options``: ``figsize`` in inches, and those of ``Figure.subplots`` (``squeeze``, ``sharex`` …).
    """
    # Here: a process that fits one cell of a study draws nothing, and would pay half a second.
    from matplotlib.figure import Figure

    figure = Figure(figsize=options.pop("figsize", None), layout="constrained")
    return figure, figure.subplots(rows, columns, **options)


def draw_band(
    axis: Any, x: Sequence[float], values: Sequence[Sequence[float]], label: str, tint: str
) -> None:
    """Draw the mean of repeats on ``axis``, and its 95 % interval where there are several.

    ``values``: a sequence over ``x`` for each repeat; places where one of them holds None are left out.
    """
    columns = list(zip(*values, strict=True))
    whole = [i for i, column in enumerate(columns) if None not in column]
    x, found = [x[i] for i in whole], [interval(columns[i]) for i in whole]
    axis.plot(x, [f["mean"] for f in found], marker="o", markersize=3, color=tint, label=label)
    if len(values) > 1:
        low, high = ([f[end] for f in found] for end in ("low", "high"))
        axis.fill_between(x, low, high, color=tint, alpha=0.2, linewidth=0)


def draw_references(axis: Any, lines: Sequence[Row], order: Sequence[str]) -> None:
    """Lines within reach of the curves; one that would flatten them is told at the frame instead."""
    low, high = axis.get_ylim()
    room = high - low
    told = {True: 0, False: 0}
    for line in lines:
        value, style = line["mean"], _DASHES[order.index(line["label"]) % len(_DASHES)]
        if low - room <= value <= high + room:
            axis.axhline(
                value, color="0.3", linewidth=1, linestyle=style, label=plain(line["label"])
            )
            low, high = min(low, value - 0.05 * room), max(high, value + 0.05 * room)
            axis.set_ylim(low, high)
            continue
        above, number = value > high, "" if ":" in line["label"] else f": {value:,.0f}"
        away = 0.03 + 0.06 * told[above]
        told[above] += 1
        axis.annotate(
            f"{plain(line['label'])}{number} {'↑' if above else '↓'}",
            xy=(0.98, 1.0 - away if above else away),
            xycoords="axes fraction",
            ha="right",
            va="top" if above else "bottom",
            fontsize=7,
            color="0.3",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def plain(name: str) -> str:
    """As it was typed: matplotlib reads dollars as mathematics, and hides what begins with ``_``."""
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def save(figure: Figure, path: Path, dpi: int = 130) -> Path:
    """Write the figure; its path. Raises OSError."""
    figure.savefig(path, dpi=dpi)
    return path
