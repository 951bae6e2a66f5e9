"""What continual does, once its options are read."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import torch
from options.continual import Args

from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.continual.learner import Learner
from mbrl_bilevel.continual.sequence import run as run_sequence
from mbrl_bilevel.figures.continual import draw_matrices, draw_pareto, draw_seen, drawn
from mbrl_bilevel.studies.agent_summaries import agent_scores
from mbrl_bilevel.studies.cells import Cells, Done, run_cells
from mbrl_bilevel.studies.continual_summaries import against, removed, scored, summarise
from mbrl_bilevel.studies.launching import Result
from mbrl_bilevel.studies.run_folder import RunFolder
from work.continual_agents import learn_agent_cell
from work.continual_tasks import TaskData, make_tasks


def learn_sequences(args: Args, run: RunFolder) -> Result:
    """Fill in the rows that are missing, then summarise and draw."""
    learners = args.agents or args.methods
    keys: list[dict[str, Any]] = [
        {"sequence": sequence, "seed": seed, "method": method}
        for seed in range(args.seed, args.seed + args.seeds)
        for sequence in args.sequences
        for method in learners
    ]
    if args.agents:
        cells = Cells(keys, learn_agent_cell, ("return", "return_before", "train_seconds"))
    else:
        cells = Cells(keys, learn_cell, (*args.metrics, "moved", "train_seconds"))
    rows = run_cells(run, args, cells, "continual", args.launching())
    metrics = tuple(name for name in args.metrics if all(name in row for row in rows))
    summary = list(summarise(rows, learners, metrics))
    figures = [
        *draw_matrices(run.figures, rows, learners, metrics),
        draw_seen(run.figures, rows, learners, metrics),
        draw_pareto(run.figures, summary, learners, metrics),
    ]
    shown = drawn(summary, learners, metrics[0])
    found = {
        **scored(rows, metrics),
        "summary": summary,
        "against": list(against(rows, learners, metrics)),
        "not_drawn": [name for name in learners if name not in shown],
        "sequences": {name: args.sequence(name).kind for name in args.sequences},
    }
    if args.agents:
        found |= {"agents": agent_scores(rows, learners, metrics[-1])}
    else:
        told = [name for name in args.methods if args.recipe(name).told_the_task]
        found |= {"removed": list(removed(rows, learners)), "told_the_task": told}
    short = {
        f"{line['method']}@{line['sequence']}": {
            f"{name}_{part}": _rounded(line[name][part])
            for name in metrics[:2]
            for part in ("final", "learning", "forgetting")
        }
        for line in summary
    }
    return Result(found, {"summary": short, "figures": [str(path) for path in figures]})


def _rounded(found: dict[str, float] | None) -> float | None:
    return None if found is None or not math.isfinite(found["mean"]) else round(found["mean"], 4)


def learn_cell(args: Args, key: Row) -> Done:
    """One method on one sequence: its matrices, and what each task cost."""
    found = make_tasks(args, key["sequence"], key["seed"])
    first, generator = found.tasks[0], torch.Generator().manual_seed(key["seed"])
    start = Learner.start(
        args.recipe(key["method"]),
        first.x,
        first.y,
        generator=generator,
        members=args.members,
        hidden=args.hidden,
        classes=found.classes,
    )
    schedule = args.schedule_with()
    told: dict[str, list[float | None]] = {
        "moved": [],
        "kl_strength": [],
        "steps": [],
        "train_seconds": [],
    }

    def learn(learner: Learner, numbered: tuple[int, TaskData]) -> Learner:
        _, task = numbered
        began = time.perf_counter()
        after = learner.learn(task.x, task.y, task.groups, generator=generator, schedule=schedule)
        assert after.last is not None
        assert after.moved is not None
        told["train_seconds"].append(time.perf_counter() - began)
        told["moved"].append(after.moved)
        told["steps"].append(after.last.steps)
        told["kl_strength"].append(after.last.outer.get("kl_strength"))
        return after

    def evaluate(learner: Learner, numbered: tuple[int, TaskData]) -> Mapping[str, float]:
        number, task = numbered
        return task.evaluate(learner.for_task(number))

    ran = run_sequence(tuple(enumerate(found.tasks)), start, learn, evaluate)
    matrices = {name: matrix.tolist() for name, matrix in ran.matrices.items()}
    before = {f"{name}_before": values.tolist() for name, values in ran.before.items()}
    return Done({**matrices, **before, **told, "tasks": [task.name for task in found.tasks]})
