"""The figures of continual: matrices, a metric against the tasks seen, forgetting against learning."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.evaluation.statistics import interval
from mbrl_bilevel.figures.style import save, subplots
from mbrl_bilevel.pages.looks import PALETTE
from mbrl_bilevel.studies.continual_summaries import HIGHER, sequences

#: Matrices side by side.
_ABREAST = 6
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p")
#: Methods with a colour and a name; the others are grey.
_MOST = 6
_GREY = "#c4c4c4"
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
    """The mean of each metric over the tasks seen so far, against their number."""
    names = sequences(rows)
    looks = _looks(rows, methods, metrics)
    figure, axes = subplots(
        len(metrics),
        len(names),
        figsize=(1.5 + 3.0 * len(names), 0.8 + 2.6 * len(metrics)),
        squeeze=False,
    )
    for line, metric in zip(axes, metrics, strict=True):
        for axis, sequence in zip(line, names, strict=True):
            for method in methods:
                repeats = [_seen(row[metric]) for row in _mine(rows, method, sequence)]
                if repeats:
                    _curve(axis, np.array(repeats), method, looks.get(method))
            axis.set_title(sequence, fontsize=9)
            axis.set_xlabel("tasks learned")
            axis.locator_params(axis="x", integer=True)
            axis.grid(alpha=0.3)
            _show_most(axis, "y", metric in HIGHER)
        line[0].set_ylabel(_said(metric), fontsize=8)
    _legend(figure, axes, len(methods) > len(looks))
    return save(figure, folder / "seen.png")


def draw_pareto(
    folder: Path, summary: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]
) -> Path:
    """Forgetting of the first two ``metrics`` against their mean just after learning: better is down, and
    to the left for errors."""
    names = list(dict.fromkeys(line["sequence"] for line in summary))
    metrics = metrics[:2]
    looks = _looks(summary, methods, metrics)
    figure, axes = subplots(
        len(metrics),
        len(names),
        figsize=(1.5 + 3.2 * len(names), 6.4),
        squeeze=False,
    )
    for line, metric in zip(axes, metrics, strict=True):
        for axis, sequence in zip(line, names, strict=True):
            here = [
                one
                for one in summary
                if one["sequence"] == sequence and one[metric]["backward"] is not None
            ]
            for one in here:
                x, y = one[metric]["learning"], one[metric]["backward"]
                look = looks.get(one["method"])
                named = {"label": one["method"]} if look else {"zorder": 1}
                axis.plot(x["mean"], -y["mean"], **named, **(look or _UNNAMED))
            axis.locator_params(axis="x", nbins=4)
            _show_most(axis, "x", metric in HIGHER)
            _show_most(axis, "y")
            axis.autoscale_view()
            axis.autoscale(False)
            for one in here:
                if one["method"] in looks:
                    _cross(axis, one[metric], looks[one["method"]]["color"])
            axis.axhline(0.0, color="black", linewidth=0.8, linestyle=":")
            axis.set_title(sequence, fontsize=9)
            axis.set_xlabel(f"just learned: {_said(metric)}", fontsize=8)
            axis.grid(alpha=0.3)
        line[0].set_ylabel("forgotten since (lower is better)", fontsize=8)
    _legend(figure, axes, len(methods) > len(looks))
    return save(figure, folder / "pareto.png")


def _cross(axis: Any, found: Row, tint: Any) -> None:
    """The intervals, faint: they are many."""
    x, y = found["learning"], found["backward"]
    if y["low"] is not None:
        bars = {"color": tint, "linewidth": 0.8, "alpha": 0.3, "zorder": 1}
        axis.plot([x["mean"]] * 2, [-y["low"], -y["high"]], **bars)
        axis.plot([x["low"], x["high"]], [-y["mean"]] * 2, **bars)


def _curve(axis: Any, repeats: Any, method: str, look: dict[str, Any] | None) -> None:
    x = np.arange(1, repeats.shape[1] + 1)
    if look is None:
        axis.plot(x, repeats.mean(0), color=_GREY, linewidth=0.8, zorder=1)
        return
    axis.plot(x, repeats.mean(0), label=method, linewidth=1.4, **(look | {"linestyle": "-"}))
    if len(repeats) > 1 and np.isfinite(repeats).all():
        found = [interval(column) for column in repeats.T]
        low, high = ([f[end] for f in found] for end in ("low", "high"))
        axis.fill_between(x, low, high, color=look["color"], alpha=0.12, linewidth=0)


def _show_most(axis: Any, along: str, higher: bool = False) -> None:
    """Leave out what lies far on the bad side, a method that broke down would hide all the others, and
    farther still on the good side (what was never learned is not forgotten)."""
    get = "get_ydata" if along == "y" else "get_xdata"
    values = np.concatenate([getattr(line, get)() for line in axis.get_lines()] or [np.zeros(1)])
    values = values[np.isfinite(values)] * (-1.0 if higher else 1.0)
    if len(values) == 0:
        return
    middle, most = np.quantile(values, (0.1, 0.85))
    best = max(values.min(), middle - 1.6 * (most - middle))
    end, margin = best + 1.6 * (most - best), 0.05 * (most - best)
    if not (values.max() > end > best or values.min() < best):
        return
    limits = (-end, -best + margin) if higher else (best - margin, end)
    (axis.set_ylim if along == "y" else axis.set_xlim)(*limits)
    place = (0.02, 0.93) if along == "y" else (0.88, 0.02)
    axis.annotate("(cut)", place, xycoords="axes fraction", fontsize=7)


#: How a method without a name looks.
_UNNAMED: dict[str, Any] = {"color": _GREY, "marker": "o", "linestyle": "", "markersize": 4}


def _looks(
    rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The methods that have a name, and how they look: the first, learning on with nothing kept, and of each way of
    training the one that ends best in the first metric."""
    final = {method: _final(rows, method, metrics[0]) for method in methods}
    sign = -1.0 if metrics[0] in HIGHER else 1.0
    ranked = sorted(methods, key=lambda method: (math.isnan(final[method]), sign * final[method]))
    plain = [method for method in methods if "+" not in method]
    best = {method.partition("+")[0]: method for method in reversed(ranked)}
    ways = dict.fromkeys(method.partition("+")[0] for method in methods)
    named = list(dict.fromkeys([methods[0], *plain[:1], *(best[w] for w in ways), *ranked]))[:_MOST]
    shown = [method for method in methods if method in named]
    return {
        method: {
            "color": PALETTE[place][0],
            "marker": _MARKERS[place],
            "linestyle": "",
            "markersize": 5,
        }
        for place, method in enumerate(shown)
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


def _legend(figure: Any, axes: Any, others: bool) -> None:
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if others:
        found["all other methods"] = axes[0, 0].plot([], [], **_UNNAMED)[0]
    figure.legend(
        found.values(),
        found.keys(),
        loc="outside lower center",
        ncols=max(1, min(len(found), int(figure.get_figwidth() / 1.9))),
        frameon=False,
        fontsize=8,
    )


def _seen(matrix: Any) -> list[float]:
    values = np.array(matrix, dtype=float)
    return [float(values[i, : i + 1].mean()) for i in range(len(values))]


def _mine(rows: Sequence[Row], method: str, sequence: str) -> list[Row]:
    return [row for row in rows if (row["method"], row["sequence"]) == (method, sequence)]


def _mean(rows: Sequence[Row], method: str, sequence: str, metric: str) -> Any:
    found = [np.array(row[metric], dtype=float) for row in _mine(rows, method, sequence)]
    return np.mean(found, axis=0) if found else None
