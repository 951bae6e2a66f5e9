"""The figures of continual: matrices, a metric against the tasks seen, forgetting against learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.ticker import NullLocator

from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.evaluation.statistics import interval
from mbrl_bilevel.figures.style import save, subplots
from mbrl_bilevel.pages.looks import PALETTE, Looks
from mbrl_bilevel.studies.continual_summaries import HIGHER, sequences

#: Matrices side by side.
_ABREAST = 6
_MARKERS = ("o", "s", "^", "D", "v", "P")
#: Methods that are drawn; the others are in metrics.json alone.
_MOST = 6
#: Most values fill less than this part of the range where something broke down.
_BROKEN = 12.0
_TITLES = {
    "rmse": "RMSE (std of the first task's targets)",
    "nll": "NLL (nats per dimension)",
    "k_rmse": "open-loop RMSE",
    "return": "return",
    "success": "success",
    "accuracy": "accuracy",
    "ece": "expected calibration error",
}


def draw_matrices(
    folder: Path, rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]
) -> list[Path]:
    """R of each method on each sequence, the mean over repeats: a row what was learned last, a column what
    is tested. One figure a metric; colours are shared along a sequence."""
    return [_draw_matrix(folder, rows, methods, metric) for metric in metrics]


def _draw_matrix(folder: Path, rows: Sequence[Row], methods: Sequence[str], metric: str) -> Path:
    names, columns = sequences(rows), min(len(methods), _ABREAST)
    lines = math.ceil(len(methods) / columns)
    size = (1.6 + 1.9 * columns, 0.7 + 2.0 * lines * len(names))
    figure, axes = subplots(lines * len(names), columns, figsize=size, squeeze=False)
    for place, sequence in enumerate(names):
        block = axes[place * lines : (place + 1) * lines]
        found = [_mean(rows, method, sequence, metric) for method in methods]
        low, high, cut = _range([m for m in found if m is not None], metric)
        for axis, method, matrix in zip_longest(block.flat, methods, found):
            axis.set_xticks([])
            axis.set_yticks([])
            if matrix is None:
                axis.axis("off")
                continue
            image = axis.imshow(matrix, vmin=low, vmax=high, cmap=_colours(metric))
            _write(axis, image, matrix)
            axis.set_title(method, fontsize=8)
        for axis in block[:, 0]:
            axis.set_ylabel(f"{sequence}\nlearned last", fontsize=8)
        figure.colorbar(image, ax=block, shrink=0.8, extend=cut)
    figure.suptitle(
        f"{_TITLES[metric]}: tested on (columns)\nafter learning (rows); dark is good", fontsize=9
    )
    return save(figure, folder / f"matrix-{metric}.png")


def _colours(metric: str) -> str:
    return "viridis_r" if metric in HIGHER else "viridis"


def _range(found: Sequence[Any], metric: str) -> tuple[float, float, str]:
    """Ends of the colours, and which of them is ``cut``: a method that broke down would leave one colour to
    all the others."""
    values = np.concatenate([m[np.isfinite(m)] for m in found] or [np.zeros(1)])
    if len(values) == 0:
        return 0.0, 1.0, "neither"
    low, high = float(values.min()), float(values.max())
    if metric in HIGHER:
        least = high - 2.0 * (high - float(np.quantile(values, 0.25)))
        return (least, high, "min") if low < least < high else (low, high, "neither")
    most = low + 2.0 * (float(np.quantile(values, 0.75)) - low)
    return (low, most, "max") if low < most < high else (low, high, "neither")


def _write(axis: Any, image: Any, matrix: Any) -> None:
    """The numbers, where there is room for them."""
    if len(matrix) > 5:
        return
    for (i, j), value in np.ndenumerate(matrix):
        red, green, blue, _ = image.to_rgba(value)
        tint = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
        text = f"{value:.2f}" if abs(value) < 10 else f"{value:.0f}"
        axis.text(j, i, text, ha="center", va="center", fontsize=6, color=tint)


def draw_seen(
    folder: Path, rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]
) -> Path:
    """The mean of each metric over the tasks seen so far, against their number, of the methods ``drawn``; bands
    are intervals over repeats."""
    names = sequences(rows)
    looks = _looks(drawn(rows, methods, metrics[0]))
    figure, axes = subplots(
        len(metrics),
        len(names),
        figsize=(1.5 + 3.0 * len(names), 0.8 + 2.6 * len(metrics)),
        squeeze=False,
    )
    for line, metric in zip(axes, metrics, strict=True):
        for axis, sequence in zip(line, names, strict=True):
            ends = []
            for method, look in looks.items():
                repeats = [_seen(row[metric]) for row in _mine(rows, method, sequence)]
                if repeats:
                    ends += _curve(axis, np.array(repeats), method, look)
            axis.set_title(sequence, fontsize=9)
            axis.set_xlabel("tasks learned")
            axis.locator_params(axis="x", integer=True)
            axis.grid(alpha=0.3)
            _frame(axis, "y", ends)
        line[0].set_ylabel(_said(metric), fontsize=8)
    _legend(figure, axes, len(methods) - len(looks))
    return save(figure, folder / "seen.png")


def draw_pareto(
    folder: Path, summary: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]
) -> Path:
    """``Transfer.forgetting`` of the first two ``metrics`` against ``Transfer.learning``, their mean just after each
    task, of the methods ``drawn``, with intervals: better is down, and to the left for errors."""
    names = list(dict.fromkeys(line["sequence"] for line in summary))
    metrics = metrics[:2]
    looks = _looks(drawn(summary, methods, metrics[0]))
    figure, axes = subplots(
        len(metrics),
        len(names),
        figsize=(1.5 + 3.2 * len(names), 6.4),
        squeeze=False,
    )
    for line, metric in zip(axes, metrics, strict=True):
        for axis, sequence in zip(line, names, strict=True):
            across: list[float] = []
            up = [0.0]
            for one in summary:
                look, found = looks.get(one["method"]), one[metric]
                if look is None or one["sequence"] != sequence or found["forgetting"] is None:
                    continue
                x, y = (_whiskers(found[part]) for part in ("learning", "forgetting"))
                bars = {"color": look["color"], "linewidth": 1.0, "alpha": 0.5, "zorder": 1}
                axis.plot(x, [y[1]] * 3, **bars)
                axis.plot([x[1]] * 3, y, **bars)
                axis.plot(x[1], y[1], label=one["method"], **look)
                across, up = [*across, *x], [*up, *y]
            _frame(axis, "x", across)
            _frame(axis, "y", up)
            axis.axhline(0.0, color="black", linewidth=0.8, linestyle=":")
            axis.set_title(sequence, fontsize=9)
            axis.set_xlabel(f"just learned: {_said(metric)}", fontsize=8)
            axis.grid(alpha=0.3)
        line[0].set_ylabel(
            "forgetting: the end against just learned\n(lower is better)", fontsize=8
        )
    _legend(figure, axes, len(methods) - len(looks))
    return save(figure, folder / "pareto.png")


def drawn(found: Sequence[Row], methods: Sequence[str], metric: str) -> list[str]:
    """At most six of the ``methods``, those that the figures show, in their order: the first, learning on with
    nothing kept, of each way of training the one that ends best in ``metric``, then the best of all. ``found`` are rows or
    the summary."""
    final = {method: _final(found, method, metric) for method in methods}
    sign = -1.0 if metric in HIGHER else 1.0
    ranked = sorted(methods, key=lambda method: (math.isnan(final[method]), sign * final[method]))
    plain = [method for method in methods if "+" not in method]
    best = {method.partition("+")[0]: method for method in reversed(ranked)}
    ways = dict.fromkeys(method.partition("+")[0] for method in methods)
    named = list(dict.fromkeys([methods[0], *plain[:1], *(best[w] for w in ways), *ranked]))[:_MOST]
    return [method for method in methods if method in named]


def _whiskers(found: Row) -> list[float]:
    """Low end, mean and high end; the mean thrice where one repeat has no interval."""
    ends = (found["low"], found["mean"], found["high"])
    return [float(found["mean"] if end is None else end) for end in ends]


def _curve(axis: Any, repeats: Any, method: str, look: dict[str, Any]) -> list[float]:
    """Draw the mean and its band; every value that was drawn."""
    x, mean = np.arange(1, repeats.shape[1] + 1), repeats.mean(0)
    axis.plot(x, mean, label=method, linewidth=1.4, **(look | {"linestyle": "-"}))
    if len(repeats) == 1 or not np.isfinite(repeats).all():
        return list(mean)
    found = [interval(column) for column in repeats.T]
    low, high = ([f[end] for f in found] for end in ("low", "high"))
    axis.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)
    return [*mean, *low, *high]


def _frame(axis: Any, along: str, found: Sequence[float]) -> None:
    """Limits that hold all of ``found``; logarithmic beyond what most of it fills, where one method that broke down
    would squeeze all the others into a line."""
    values = np.array(found, dtype=float)
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return
    low, high = float(values.min()), float(values.max())
    first, last = np.quantile(values, (0.15, 0.75))
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    if high - low > _BROKEN * max(last - first, 1e-12) and high - low > _BROKEN * 1e-3:
        reach = max(abs(float(first)), abs(float(last)), 1e-3)
        getattr(axis, f"set_{along}scale")("symlog", linthresh=reach)
        low, high = (
            low - 0.3 * max(abs(low), reach) * (low < 0.0) - 0.1 * reach,
            high + 0.3 * max(abs(high), reach),
        )
        margin = 0.0
        decades = [10.0**k for k in range(-3, 12) if 3.0 * reach < 10.0**k]
        ticks = [round(float(first), 1) + 0.0, *decades, *(-one for one in decades)]
        ticks = [one for one in ticks if low <= one <= high]
        getattr(axis, f"set_{along}ticks")(ticks, [f"{one:g}" for one in ticks])
        getattr(axis, f"{along}axis").set_minor_locator(NullLocator())
    elif along == "x":
        axis.locator_params(axis="x", nbins=4)
    getattr(axis, f"set_{along}lim")(low - margin, high + margin)


def _looks(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """How each of these methods looks; its colour is the one that it has on a page."""
    colours = Looks([methods])
    return {
        method: {
            "color": PALETTE[colours[method].colour][0],
            "marker": _MARKERS[place],
            "linestyle": "",
            "markersize": 5,
        }
        for place, method in enumerate(methods)
    }


def _final(rows: Sequence[Row], method: str, metric: str) -> float:
    """The mean after the last task, of rows and of summaries alike; NaN where there is none."""
    found = []
    for row in rows:
        if row["method"] == method:
            value = row[metric]
            found.append(value["final"]["mean"] if "final" in value else np.mean(value[-1]))
    return float(np.mean(found)) if found else math.nan


def _said(metric: str) -> str:
    return f"{_TITLES[metric]}\n({'higher' if metric in HIGHER else 'lower'} is better)"


def _legend(figure: Any, axes: Any, others: int) -> None:
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        found.values(),
        found.keys(),
        loc="outside lower center",
        ncols=max(1, min(len(found), int(figure.get_figwidth() / 1.9))),
        frameon=False,
        fontsize=8,
        title=f"{others} more methods are in metrics.json" if others else None,
        title_fontsize=8,
    )


def _seen(matrix: Any) -> list[float]:
    values = np.array(matrix, dtype=float)
    return [float(values[i, : i + 1].mean()) for i in range(len(values))]


def _mine(rows: Sequence[Row], method: str, sequence: str) -> list[Row]:
    return [row for row in rows if (row["method"], row["sequence"]) == (method, sequence)]


def _mean(rows: Sequence[Row], method: str, sequence: str, metric: str) -> Any:
    found = [np.array(row[metric], dtype=float) for row in _mine(rows, method, sequence)]
    return np.mean(found, axis=0) if found else None
