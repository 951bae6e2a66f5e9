"""The figures of theory: convergence to U*, moment matching, the table of hypergradients.

One function a figure; each gives its path back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_bilevel.figures.style import Row, save, subplots

#: Solvers that coincide are told apart by their dashes: the later drawn let the earlier through.
_STYLES: dict[str, tuple[str, Any, float]] = {
    "exact_implicit": ("#1b6ca8", "-", 4.0),
    "fisher_implicit": ("#d1495b", "-", 1.6),
    "function_space": ("#edae49", (0, (4, 4)), 1.6),
    "closed_form_gradient": ("#3d3d3d", (0, (1, 3)), 1.6),
    "neumann": ("#66a182", "-", 1.2),
    "unrolled": ("#8d6bb8", "-", 1.2),
    "fisher_implicit_sampled": ("#e07fb0", "-", 1.0),
    "closed_form": ("#2e4057", "none", 1.0),
}

_WHAT = {
    "distance": "‖U − U*‖ / ‖U*‖",
    "gap": "outer objective above its least\n(nats per dimension)",
}


def draw_convergence(path: Path, rows: Sequence[Row], name: str) -> Path:
    """``distance`` to the sample's U*, or the objective's ``gap``, against outer steps."""
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    columns = min(4, len(problems) + 1)
    lines = math.ceil((len(problems) + 1) / columns)
    figure, axes = subplots(
        lines,
        columns,
        figsize=(3.2 * columns, 2.7 * lines),
        sharey=True,
        squeeze=False,
    )
    handles: list[Any] = []
    for axis, problem in zip(axes.flat, problems, strict=False):
        handles = _convergence(axis, [r for r in rows if r["problem"] == problem], name)
        axis.set_title(_title(problem), fontsize=10)
        axis.set_xlabel("outer step")
    for axis in axes[:, 0]:
        axis.set_ylabel(_WHAT[name])
    for axis in axes.flat[len(problems) :]:
        axis.axis("off")
    axes.flat[len(problems)].legend(handles=handles, loc="center", frameon=False, fontsize=9)
    return save(figure, path, dpi=110)


def _title(problem: str) -> str:
    dim, _, form = problem.partition("_")
    return f"{dim[:-1]}-D {form.replace('_', ' ')}".strip()


def _convergence(axis: Any, rows: Sequence[Row], name: str) -> list[Any]:
    floor = 1e-9 if name == "distance" else 1e-12
    handles = []
    by_solver = {row["solver"]: row for row in rows}
    for solver, (tint, dashes, width) in _STYLES.items():
        if solver not in by_solver:
            continue
        values = np.array(by_solver[solver][name])
        shown = np.where(values > floor, values, np.nan)
        label = solver.replace("_", " ")
        if solver == "closed_form":
            (handle,) = axis.plot(
                [1], [max(values[1], floor)], "v", color=tint, label=f"{label} (one step)"
            )
        else:
            (handle,) = axis.plot(shown, color=tint, linestyle=dashes, linewidth=width, label=label)
        handles.append(handle)
    row = by_solver["exact_implicit"]
    handles.append(_predicted(axis, row, name))
    axis.set_yscale("log")
    axis.set_ylim(floor / 2.0, None)
    axis.grid(alpha=0.3)
    return handles


def _predicted(axis: Any, row: Row, name: str) -> Any:
    """The line of the predicted rate, beside the curve from where that is within 10 % of U*."""
    power = 1 if name == "distance" else 2
    values = np.array(row[name])
    start = int(np.argmax(np.array(row["distance"]) < 0.1))
    steps = np.arange(start, len(values))
    line = 3.0 * values[start] * row["predicted"] ** (power * (steps - start))
    label = "predicted rate" if power == 1 else "predicted rate, squared"
    (handle,) = axis.plot(steps, line, color="black", linestyle="--", linewidth=1, label=label)
    return handle


def draw_moments(path: Path, rows: Sequence[Row], methods: Sequence[str]) -> Path:
    """Errors of the mean and of the covariance against the truth, epoch by epoch."""
    figure, axes = subplots(1, 2, figsize=(9, 3.6))
    titles = {
        "mean_error": "mean: RMS error / RMS of the true mean",
        "covariance_error": "covariance: ‖S − Σ‖ / ‖Σ‖",
    }
    styles = ("-", "--", "-", ":")
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for i, method in enumerate(methods):
            curves = np.array([row[name] for row in rows if row["method"] == method])
            epochs = np.arange(curves.shape[1])
            axis.plot(
                epochs,
                curves.mean(0),
                color=f"C{i}",
                linestyle=styles[i],
                label=method,
                linewidth=2,
            )
            axis.fill_between(epochs, curves.min(0), curves.max(0), color=f"C{i}", alpha=0.15)
        axis.set_yscale("log")
        axis.set_xlabel("epoch")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].legend(frameon=False)
    return save(figure, path, dpi=110)


def draw_hypergradients(
    path: Path, errors: Mapping[str, Mapping[str, float]], problems: Sequence[Row]
) -> Path:
    """The relative errors as a table, solver by problem; what is refused stays empty."""
    order = sorted(problems, key=lambda row: (not row["well_specified"], not row["free"]))
    names = [row["problem"] for row in order]
    table = np.array([[errors[s].get(n, np.nan) for n in names] for s in errors])
    figure, axis = subplots(figsize=(2.6 + 0.72 * len(names), 2.4 + 0.42 * len(errors)))
    image = axis.imshow(
        np.log10(np.maximum(table, 1e-12)), cmap="RdYlGn_r", vmin=-9, vmax=0, aspect="auto"
    )
    for (i, j), value in np.ndenumerate(table):
        text = "–" if np.isnan(value) else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
        axis.text(j, i, text, ha="center", va="center", fontsize=8)
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(errors)), [s.replace("_", " ") for s in errors], fontsize=9)
    split = sum(row["well_specified"] for row in order) - 0.5
    axis.axvline(split, color="black", linewidth=2)
    axis.set_title(
        "relative error of the hypergradient (right of the line: misspecified; –: refused)",
        fontsize=10,
    )
    figure.colorbar(image, ax=axis, label="log10", shrink=0.8)
    return save(figure, path, dpi=110)
