"""The figures of continual: matrices, a metric against the tasks seen, forgetting against learning."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from _continual_summary import sequences
from _figures import colour, save
from _rows import Row
from matplotlib.ticker import MaxNLocator

from mbrl_bilevel.statistics import interval

#: How a way of keeping looks; the way of training is the colour.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h", "p")
_TITLES = {
    "nrmse": "RMSE (std of the first task's targets)",
    "nll": "NLL (nats per dimension)",
    "k_nrmse": "open-loop RMSE",
    "return": "return of planning",
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
    names = sequences(rows)
    size = (1.0 + 1.7 * len(methods), 0.6 + 1.9 * len(names))
    figure, axes = plt.subplots(
        len(names), len(methods), figsize=size, layout="constrained", squeeze=False
    )
    for line, sequence in zip(axes, names, strict=True):
        found = [_mean(rows, method, sequence, metric) for method in methods]
        finite = np.concatenate(
            [m[np.isfinite(m)] for m in found if m is not None] or [np.zeros(1)]
        )
        low, high = np.quantile(finite, (0.0, 0.95)) if len(finite) else (0.0, 1.0)
        for axis, method, matrix in zip(line, methods, found, strict=True):
            axis.set_xticks([])
            axis.set_yticks([])
            if matrix is None:
                axis.axis("off")
                continue
            image = axis.imshow(matrix, vmin=low, vmax=high, cmap="viridis")
            if len(matrix) <= 5:
                for (i, j), value in np.ndenumerate(matrix):
                    tint = "white" if value < (low + high) / 2 else "black"
                    axis.text(
                        j, i, f"{value:.2f}", ha="center", va="center", fontsize=6, color=tint
                    )
            axis.set_title(method, fontsize=8)
        line[0].set_ylabel(f"{sequence}\nlearned last", fontsize=8)
        figure.colorbar(image, ax=line, shrink=0.8)
    figure.suptitle(f"{_TITLES[metric]}: tested on (columns) after learning (rows)", fontsize=9)
    return save(figure, folder / f"matrix-{metric}.png")


def draw_seen(
    folder: Path, rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]
) -> Path:
    """The mean of each metric over the tasks seen so far, against their number."""
    names = sequences(rows)
    figure, axes = plt.subplots(
        len(metrics),
        len(names),
        figsize=(1.5 + 3.0 * len(names), 0.8 + 2.6 * len(metrics)),
        layout="constrained",
        squeeze=False,
    )
    for line, metric in zip(axes, metrics, strict=True):
        for axis, sequence in zip(line, names, strict=True):
            for method in methods:
                repeats = [_seen(row[metric]) for row in _mine(rows, method, sequence)]
                if repeats:
                    _curve(axis, np.array(repeats), method, methods)
            axis.set_title(sequence, fontsize=9)
            axis.set_xlabel("tasks learned")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.grid(alpha=0.3)
            _show_most(axis)
        line[0].set_ylabel(_TITLES[metric], fontsize=8)
    _legend(figure, axes)
    return save(figure, folder / "seen.png")


def draw_pareto(
    folder: Path, summary: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]
) -> Path:
    """Forgetting of the first two ``metrics`` against their mean just after learning: better is down, and
    to the left for errors."""
    names = list(dict.fromkeys(line["sequence"] for line in summary))
    metrics = metrics[:2]
    figure, axes = plt.subplots(
        len(metrics),
        len(names),
        figsize=(1.5 + 3.2 * len(names), 6.4),
        layout="constrained",
        squeeze=False,
    )
    for line, metric in zip(axes, metrics, strict=True):
        for axis, sequence in zip(line, names, strict=True):
            for one in summary:
                if one["sequence"] != sequence or one[metric]["backward"] is None:
                    continue
                x, y = one[metric]["learning"], one[metric]["backward"]
                axis.plot(
                    x["mean"], -y["mean"], label=one["method"], **_look(one["method"], methods)
                )
                if y["low"] is not None:
                    tint = _look(one["method"], methods)["color"]
                    axis.plot([x["mean"]] * 2, [-y["low"], -y["high"]], color=tint, linewidth=1)
                    axis.plot([x["low"], x["high"]], [-y["mean"]] * 2, color=tint, linewidth=1)
            axis.axhline(0.0, color="black", linewidth=0.8, linestyle=":")
            axis.set_title(sequence, fontsize=9)
            axis.set_xlabel(f"{_TITLES[metric]}, just learned", fontsize=8)
            axis.grid(alpha=0.3)
        line[0].set_ylabel("forgetting since (−BWT)", fontsize=8)
    _legend(figure, axes)
    return save(figure, folder / "pareto.png")


def _curve(axis: Any, repeats: Any, method: str, methods: Sequence[str]) -> None:
    x = np.arange(1, repeats.shape[1] + 1)
    axis.plot(
        x,
        repeats.mean(0),
        label=method,
        linewidth=1,
        **(_look(method, methods) | {"linestyle": "-"}),
    )
    if len(repeats) > 1 and np.isfinite(repeats).all():
        found = [interval(column) for column in repeats.T]
        low, high = ([f[end] for f in found] for end in ("low", "high"))
        axis.fill_between(
            x, low, high, color=_look(method, methods)["color"], alpha=0.12, linewidth=0
        )


def _show_most(axis: Any) -> None:
    """A method that broke down would hide all the others."""
    values = np.concatenate([line.get_ydata() for line in axis.get_lines()] or [np.zeros(1)])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return
    best, most = values.min(), np.quantile(values, 0.9)
    top = best + 1.5 * (most - best)
    if values.max() > top > best:
        axis.set_ylim(best - 0.05 * (top - best), top)
        axis.annotate("(cut)", (0.02, 0.93), xycoords="axes fraction", fontsize=7)


def _look(method: str, methods: Sequence[str]) -> dict[str, Any]:
    """Colour by the way of training, marker by what is kept."""
    trained = list(dict.fromkeys(name.partition("+")[0] for name in methods))
    kept = list(dict.fromkeys(name.partition("+")[2] or "none" for name in methods))
    base, _, keep = method.partition("+")
    place = kept.index(keep or "none")
    return {
        "color": colour(base, trained.index(base)),
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": "",
        "markersize": 5,
    }


def _legend(figure: Any, axes: Any) -> None:
    found: dict[str, Any] = {}
    for axis in axes.flat:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    figure.legend(
        found.values(),
        found.keys(),
        loc="outside lower center",
        ncols=min(6, len(found)),
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
