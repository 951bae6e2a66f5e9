"""What all figures share: a sheet without a screen, a colour a method, lines with intervals.

Lines are means over repeats, bands and bars their 95 % bootstrap intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbrl_bilevel.evaluation.statistics import interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: A row as ``rows.jsonl`` keeps it.
Row = Mapping[str, Any]

#: The colours of figures and pages, (on light, on dark): blue, vermilion, green, violet, ochre, sky; grey for what
#: has no model. They are at least 0.09 apart in OKLab for normal, protan, deutan and tritan eyes (Machado et al.
#: 2009, severity 1), and have a contrast of 3 : 1 on a page's background; a test computes both.
PALETTE = (
    *(("#1860cc", "#6ca8fc"), ("#cc420c", "#fc6c3c"), ("#004a14", "#a8fcd8")),
    *(("#6c0088", "#b84cfc"), ("#b88c50", "#fce454"), ("#0c98de", "#4090b4")),
    ("#777777", "#bcbcbc"),
)
#: The place in PALETTE of the methods that come most often, the same in every figure and on every page.
OWN = {
    **{"bilevel": 0, "nll": 1, "mse": 2, "beta-nll": 3, "faithful": 4, "bilevel-mixture": 5},
    **{"label-smoothing": 2, "sac": 6},
}
#: Of one family with one of these: its hue, paler.
_KIN = {"bilevel-constant": "#8db8ee", "mse-network": "#6f9f7f", "beta-nll-1": "#c39bd3"}
#: What is left to all others.
_OTHERS = ("#2a9d8f", "#e377c2", "#8c564b", "#a7c957", "#222222", "#d4a017", "#9b5de5")


def colour(method: str, index: int) -> str:
    """A method's own colour, the same in every figure, and for each agent with it ("mpc, nll"); of one that has
    none, the one at ``index``."""
    name = method.rpartition(", ")[2]
    if name in OWN:
        return PALETTE[OWN[name]][0]
    return _KIN.get(name, _OTHERS[index % len(_OTHERS)])


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


def save(figure: Figure, path: Path, dpi: int = 130) -> Path:
    """Write the figure; its path. Raises OSError."""
    figure.savefig(path, dpi=dpi)
    return path
