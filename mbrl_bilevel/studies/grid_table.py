"""The Markdown of a study's tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mbrl_bilevel.studies.grid import Grid, Task

_EXPLAINED = """\
Returns: mean over seeds (lowest to highest; how many seeds), each seed the mean of its evaluation's
episodes, after so many real steps. "policy alone": the same agent without a plan. "–": not declared;
"missing": declared and not there yet. Nothing is filled in.

CPU seconds are those of learning (acting, fitting, updating), without evaluations; peak memory is the
process's, the highest of the seeds.
"""

_COMPARED = """\
Scaled returns: random actions are 0, the target 1, on each task at its last target that both are to run to.
Means over tasks, each counting the same; differences are paired by seed, with 95 % intervals of the
stratified bootstrap, which draws the seeds of each task anew (with few seeds it is too narrow: with three by
about 18 %).
"""


def document(grid: Grid, summary: Mapping[str, Any]) -> str:
    """All tables of a study; ``summary`` as study_table makes it."""
    parts = ["Made by `scripts/study_table.py`.\n", _EXPLAINED, _compared(summary["comparisons"])]
    for task in grid.tasks:
        parts.append(_task(grid, task, summary["tasks"][task.env_id]))
    missing = summary["missing"]
    parts.append(
        f"## Missing\n\n{len(missing)} cells are not finished: {', '.join(missing)}.\n"
        if missing
        else "All cells are finished.\n"
    )
    return "\n".join(parts)


def _compared(comparisons: Sequence[Mapping[str, Any]]) -> str:
    rows = []
    for each in comparisons:
        a, b = each["of"]
        policy = " (policy alone)" if each["by"] == "policy" else ""
        tasks = ", ".join(
            f"{t['task']} {_number(t['difference'])} ({t['n']})" for t in each["tasks"]
        )
        rows.append(
            [
                f"{a} − {b}{policy}",
                *(_interval(each[name]) for name in ("first", "second", "difference")),
                tasks or "none",
                ", ".join(each["missing"]) or "none",
            ]
        )
    head = ["columns", "first", "second", "first − second", "by task (seeds)", "missing"]
    return f"## Over tasks\n\n{_COMPARED}\n{_table(head, rows)}"


def _task(grid: Grid, task: Task, columns: Mapping[str, Any]) -> str:
    evaluated = {step for column in task.steps for step in task.evaluated(column)}
    shown = sorted(evaluated & {*grid.shown, *task.targets})
    returns, costs = [], []
    for column, found in columns.items():
        points = {point["step"]: point for point in found["points"]}
        returns.append([column, *(_return(task, points.get(step)) for step in shown)])
        if any(point["policy"]["n"] for point in points.values()):
            alone = [_return(task, points.get(step), "policy") for step in shown]
            returns.append([f"{column}, policy alone", *alone])
        costs.append(
            [
                column,
                *(_cost(points.get(step)) for step in shown),
                *(_number(found[name]) for name in _COSTS.values()),
            ]
        )
    targets = [_number(task.targets[step]) if step in task.targets else "–" for step in shown]
    steps = [f"{step} steps" for step in shown]
    lines = "; ".join(f"{name} {_number(value)}" for name, value in task.lines.items())
    published = "; ".join(f"{p.name} {_number(p.value)} after {p.step}" for p in task.published)
    told = f"{lines or 'no reference lines'}. " + (f"Published: {published}." if published else "")
    return (
        f"## {task.env_id}\n\n{told.strip()}\n\n"
        + _table(["return", *steps], [["target", *targets], *returns])
        + "\n"
        + _table(["cost", *(f"CPU s to {step}" for step in shown), *_COSTS], costs)
    )


_COSTS = {
    "peak memory, MB": "peak_memory_mb",
    "steps per CPU s": "steps_per_cpu_second",
    "updates per CPU s": "updates_per_cpu_second",
}


def _return(task: Task, point: Mapping[str, Any] | None, part: str | None = None) -> str:
    if point is None:
        return "–"
    found = point if part is None else point[part]
    if not found["n"]:
        return "missing"
    low, high = _number(found["lowest"]), _number(found["highest"])
    all_seeds = len(task.seeds)
    count = (
        f"{found['n']} seeds" if found["n"] == all_seeds else f"{found['n']} of {all_seeds} seeds"
    )
    return f"{_number(found['mean'])} ({low} to {high}; {count})"


def _cost(point: Mapping[str, Any] | None) -> str:
    return "–" if point is None else _number(point["cpu_seconds"]["mean"])


def _interval(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "missing"
    if found["low"] is None:
        return f"{_number(found['estimate'])} (no interval)"
    return f"{_number(found['estimate'])} ({_number(found['low'])} to {_number(found['high'])})"


def _number(value: float | None) -> str:
    """Three digits or more, with a true minus."""
    if value is None:
        return "missing"
    size = abs(value)
    text = f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"
    return text.replace("-", "−")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
