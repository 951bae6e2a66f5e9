"""The figures of theory: convergence to U*, moment matching, the table of hypergradients.

One function a figure; each gives its path back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_bilevel.figures.style import Row, colour, draw_band, save, subplots

#: Colours far apart for all eyes, and dashes where lines come near each other.
_STYLES: dict[str, tuple[str, Any, float]] = {
    "exact_implicit": ("#1860cc", "-", 3.0),
    "fisher_implicit": ("#cc420c", "--", 1.6),
    "function_space": ("#8a5a44", (0, (4, 4)), 1.6),
    "closed_form_gradient": ("#5f7a12", (0, (1, 3)), 1.6),
    "neumann": ("#004a14", ":", 1.6),
    "unrolled": ("#b88c50", "-.", 1.6),
    "fisher_implicit_sampled": ("#6c0088", "-", 1.2),
    "closed_form": ("#111111", "none", 1.0),
}

_WHAT = {
    "distance": "‖U − U*‖ / ‖U*‖ (lower is better)",
    "gap": "outer objective above its least\n(nats/dim., lower is better)",
}


def draw_convergence(path: Path, rows: Sequence[Row], name: str) -> Path:
    """``distance`` to the sample's U*, or the objective's ``gap``, against outer steps.

    Solvers whose steps are those of the exact one on every problem are named beside it, not drawn over it.
    """
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
    same = _as_exact(rows, name)
    handles: list[Any] = []
    for axis, problem in zip(axes.flat, problems, strict=False):
        mine = [r for r in rows if r["problem"] == problem and r["solver"] not in same]
        handles = _convergence(axis, mine, name, same)
        axis.set_title(_title(problem), fontsize=10)
        axis.set_xlabel("outer step")
    for axis in axes[:, 0]:
        axis.set_ylabel(_WHAT[name])
    for axis in axes.flat[len(problems) :]:
        axis.axis("off")
    axes.flat[len(problems)].legend(handles=handles, loc="center", frameon=False, fontsize=9)
    return save(figure, path, dpi=110)


def _as_exact(rows: Sequence[Row], name: str) -> list[str]:
    """The solvers that are within 1 % of the exact one at every step of every problem, as far as float64 tells."""
    found = {(row["problem"], row["solver"]): row[name] for row in rows}
    apart = {
        solver
        for (problem, solver), values in found.items()
        if (exact := found.get((problem, "exact_implicit"))) is not None
        and (len(values) != len(exact) or not np.allclose(values, exact, rtol=1e-2, atol=1e-9))
    }
    return [
        solver
        for solver in _STYLES
        if solver != "exact_implicit" and solver not in apart and any(s == solver for _, s in found)
    ]


def _title(problem: str) -> str:
    dim, _, form = problem.partition("_")
    return f"{dim[:-1]}-D {form.replace('_', ' ')}".strip()


def _convergence(axis: Any, rows: Sequence[Row], name: str, same: Sequence[str]) -> list[Any]:
    floor = 1e-9 if name == "distance" else 1e-12
    handles = []
    by_solver = {row["solver"]: row for row in rows}
    for solver, (tint, dashes, width) in _STYLES.items():
        if solver not in by_solver:
            continue
        values = np.array(by_solver[solver][name])
        shown = np.where(values > floor, values, np.nan)
        label = solver.replace("_", " ")
        if solver == "exact_implicit" and same:
            label += "\n(the same: " + ",\n".join(each.replace("_", " ") for each in same) + ")"
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


_MOMENTS = {
    "PG, U = U*": "#111111",
    "PG, U learned": colour("bilevel", 0),
    "PG, U = I": "#8a5a44",
    "NLL": colour("nll", 0),
}


def draw_moments(path: Path, rows: Sequence[Row], methods: Sequence[str]) -> Path:
    """Errors of the mean and of the covariance against the truth, epoch by epoch, with 95 % intervals."""
    figure, axes = subplots(1, 2, figsize=(9, 3.6))
    titles = {
        "mean_error": "mean: RMS error / RMS of the true mean (lower is better)",
        "covariance_error": "covariance: ‖S − Σ‖ / ‖Σ‖ (lower is better)",
    }
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        for method in methods:
            curves = [row[name] for row in rows if row["method"] == method]
            draw_band(axis, range(len(curves[0])), curves, method, _MOMENTS[method])
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
    shades = np.log10(np.maximum(table, 1e-12))
    image = axis.imshow(shades, cmap="cividis_r", vmin=-9, vmax=0, aspect="auto")
    for (i, j), value in np.ndenumerate(table):
        text = "–" if np.isnan(value) else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
        ink = "white" if shades[i, j] > -4 else "black"  # NaN: on white
        axis.text(j, i, text, ha="center", va="center", fontsize=8, color=ink)
    axis.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axis.set_yticks(range(len(errors)), [s.replace("_", " ") for s in errors], fontsize=9)
    split = sum(row["well_specified"] for row in order) - 0.5
    axis.axvline(split, color="black", linewidth=2)
    axis.set_title(
        "relative error of the hypergradient, lower is better (right of the line: misspecified; –: refused)",
        fontsize=10,
    )
    figure.colorbar(image, ax=axis, label="log10 of the relative error", shrink=0.8)
    return save(figure, path, dpi=110)
