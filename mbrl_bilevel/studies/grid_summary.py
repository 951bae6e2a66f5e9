"""The numbers of a study's tables: each column's returns and costs on each task, and columns compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from mbrl_bilevel.evaluation.statistics import Array, stratified_interval
from mbrl_bilevel.studies.grid import RANDOM, Grid, Task
from mbrl_bilevel.studies.grid_rows import Kept, kept

#: The kept seeds of each column of each task.
Found = Mapping[tuple[str, str], Mapping[int, Kept]]


def read_kept(grid: Grid, store: Path) -> Found:
    """What is kept of each cell."""
    return {
        (task.env_id, column): {
            seed: found
            for seed in task.seeds
            if (found := kept(store, grid.cell(task, column, seed))) is not None
        }
        for task in grid.tasks
        for column in task.steps
    }


def summed_up(grid: Grid, found: Found) -> dict[str, Any]:
    """All numbers of the tables and figures."""
    return {
        "tasks": {
            task.env_id: {c: _column(task, c, found[task.env_id, c]) for c in task.steps}
            for task in grid.tasks
        },
        "comparisons": [
            compared(grid, found, pair, by)
            for pair in grid.compare
            for by in ("plan", "policy")
            if by == "plan" or _plans(found, pair)
        ],
        "missing": [
            cell.name
            for cell in grid.cells()
            if (mine := found[cell.task, cell.column].get(cell.seed)) is None or not mine.finished
        ],
    }


def _column(task: Task, column: str, seeds: Mapping[int, Kept]) -> dict[str, Any]:
    points = []
    for step in task.evaluated(column):
        returns = _returns(seeds, step, "mean")
        points.append(
            {
                "step": step,
                **_spread(returns),
                "missing_seeds": [seed for seed in task.seeds if seed not in returns],
                "policy": _spread(_returns(seeds, step, "policy_mean")),
                "cpu_seconds": _spread(_cpu(task, column, seeds, step)),
            }
        )
    memory = [(run.about.get("metrics") or {}).get("peak_memory_mb") for run in seeds.values()]
    learned = _cpu(task, column, seeds, task.steps[column])
    whole = {seed: spent for seed, spent in learned.items() if spent > 0.0}
    updates = {seed: _updates(seeds[seed], task.steps[column]) for seed in whole}
    return {
        "points": points,
        "peak_memory_mb": max((value for value in memory if value is not None), default=None),
        "steps_per_cpu_second": _mean(task.steps[column] / spent for spent in whole.values()),
        "updates_per_cpu_second": _mean(
            made / whole[seed] for seed, made in updates.items() if made is not None
        ),
    }


def _returns(seeds: Mapping[int, Kept], step: int, *names: str) -> dict[int, float]:
    """Of the seeds that have come to a step: the first of these entries that its row has."""
    rows = {seed: run.rows[step] for seed, run in seeds.items() if step in run.rows}
    values = {
        seed: next((row[name] for name in names if name in row), None) for seed, row in rows.items()
    }
    return {seed: value for seed, value in values.items() if value is not None}


def _cpu(task: Task, column: str, seeds: Mapping[int, Kept], step: int) -> dict[int, float]:
    """Processor seconds of learning up to a step, of the seeds where all of them are known."""
    steps = [each for each in task.evaluated(column) if each <= step]
    spent = {
        seed: [run.rows.get(each, {}).get("cpu_seconds") for each in steps]
        for seed, run in seeds.items()
    }
    return {
        seed: sum(known)
        for seed, parts in spent.items()
        if len(known := [part for part in parts if part is not None]) == len(steps)
    }


def _updates(run: Kept, steps: int) -> int | None:
    """Updates of the learner in so many real steps."""
    resolved = run.about.get("resolved")
    if not resolved or resolved["learner_class"] == "NoLearner":
        return None
    settings = resolved["settings"]
    return int(settings["updates_per_step"] * max(steps - settings["learning_starts"], 0))


def _spread(by_seed: Mapping[int, float]) -> dict[str, Any]:
    given = list(by_seed.values())
    low, high = (min(given), max(given)) if given else (None, None)
    return {"mean": _mean(given), "lowest": low, "highest": high, "n": len(given)}


def _mean(values: Iterable[float]) -> float | None:
    given = list(values)
    return fmean(given) if given else None


def _plans(found: Found, pair: tuple[str, str]) -> bool:
    """Whether some run of these columns also says what its policy alone returns."""
    runs = [run for (_, column), seeds in found.items() if column in pair for run in seeds.values()]
    return any("policy_mean" in row for run in runs for row in run.rows.values())


def compared(grid: Grid, found: Found, pair: tuple[str, str], by: str) -> dict[str, Any]:
    """The difference of two columns over all tasks that have both, paired by seed.

    Returns are scaled: random actions 0, the target 1, at the last target's step that both are to run to.
    Each task counts the same; the 95 % interval is the stratified bootstrap, which draws the seeds of
    each task anew.
    """
    tasks, missing = [], []
    first: list[list[float]] = []
    second: list[list[float]] = []
    for task in grid.tasks:
        step = _common_step(task, pair)
        if step is None:
            continue
        a, b = (_scaled(task, found[task.env_id, column], step, by) for column in pair)
        both = [seed for seed in task.seeds if seed in a and seed in b]
        missing += [f"{task.env_id} seed {seed}" for seed in task.seeds if seed not in both]
        if both:
            first.append([a[seed] for seed in both])
            second.append([b[seed] for seed in both])
            mean = fmean(first[-1]) - fmean(second[-1])
            tasks.append({"task": task.env_id, "step": step, "n": len(both), "difference": mean})
    differences = [
        [x - y for x, y in zip(*each, strict=True)] for each in zip(first, second, strict=True)
    ]
    return {
        "of": list(pair),
        "by": by,
        "tasks": tasks,
        "missing": missing,
        "first": _over_tasks(first),
        "second": _over_tasks(second),
        "difference": _over_tasks(differences),
    }


def _common_step(task: Task, pair: Sequence[str]) -> int | None:
    if not set(pair) <= task.steps.keys():
        return None
    last = min(task.steps[column] for column in pair)
    return max((step for step in task.targets if step <= last), default=None)


def _scaled(task: Task, seeds: Mapping[int, Kept], step: int, by: str) -> dict[int, float]:
    zero = task.lines[RANDOM]
    unit = task.targets[step] - zero
    # An agent without plans has no other return: it acts by its policy.
    names = ("policy_mean", "mean") if by == "policy" else ("mean",)
    return {seed: (value - zero) / unit for seed, value in _returns(seeds, step, *names).items()}


def _over_tasks(strata: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    if not strata:
        return None
    return asdict(stratified_interval(strata, _mean_over_tasks([len(each) for each in strata])))


def _mean_over_tasks(sizes: Sequence[int]) -> Callable[[Array], Array]:
    """The mean of the tasks' means, of values [..., N] that come task by task."""
    weights = [1.0 / (len(sizes) * size) for size in sizes for _ in range(size)]

    def mean(values: Array) -> Array:
        found: Array = values @ weights
        return found

    return mean
