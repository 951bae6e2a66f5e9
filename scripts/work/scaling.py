"""What scaling does, once its options are read: measure row by row, simulate a study, draw, tell."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from options.scaling import ROWS_A_MEMBER, Args

from agents.planners import ICEM
from agents.planners.actions import BoxActions
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.figures.scaling import draw_machines, draw_scaling
from mbrl_bilevel.imagination.particles import imagined_returns
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.models.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.studies.cells import one_thread
from mbrl_bilevel.studies.launching import Result
from mbrl_bilevel.studies.makespan import study_on_machines
from mbrl_bilevel.studies.run_folder import RunFolder
from mbrl_bilevel.training.methods import get_method
from mbrl_bilevel.training.settings import Schedule

#: Dimensions of an action, as of HalfCheetah-v5.
ACTION = 6
#: What grows, in a fit and in a plan.
VARIED = {
    "fit": ("obs_dim", "members", "n_train"),
    "plan": ("obs_dim", "members", "horizon", "population"),
}


def scale(args: Args, run: RunFolder) -> Result:
    """Measure the rows that are missing; then the study, if one was named."""
    keys: list[Row] = [
        {"work": work, "vary": name, "value": value}
        for work, names in VARIED.items()
        for name in names
        for value in sorted(getattr(args, name))
    ]
    machines = None
    if args.study is not None:  # what is wrong with it is told before any work
        machines = study_on_machines(args.study, args.nodes, args.cells_per_node, args.study_times)
    for key in run.progress(keys, "scaling"):
        if run.rows.find(**key) is None:
            run.rows.append(key | _measured(args, key))
    rows = [
        run.rows.require(row, "value", "seconds", "peak_memory_mb", "data_mb") for row in run.rows
    ]
    figures = [draw_scaling(run.figures, rows)]
    metrics: dict[str, Any] = {"rows": rows}
    if machines is not None:
        metrics["machines"] = machines
        figures.append(draw_machines(run.figures, machines))
    run.close()
    if not args.quiet:
        print(_table(rows), file=sys.stderr)
    slopes = {
        f"{work} {name}": _slope(rows, work, name) for work in VARIED for name in VARIED[work]
    }
    return Result(metrics, {"slope": slopes, "figures": [str(path) for path in figures]})


def _measured(args: Args, key: Row) -> Row:
    """The least time of several processes, and the most memory."""
    sizes = {name: getattr(args, name)[0] for names in VARIED.values() for name in names}
    sizes[key["vary"]] = key["value"]
    found = []
    for _ in range(args.repeats):
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=context, initializer=one_thread) as fresh:
            found.append(fresh.submit(measure, args, key["work"], sizes).result())
    most = max(row["peak_memory_mb"] for row in found)
    return {name: min(row[name] for row in found) for name in found[0]} | {"peak_memory_mb": most}


def measure(args: Args, work: str, sizes: Row) -> Row:
    """``seconds`` of a gradient step or of a plan, those that come with every fit (``fixed_seconds``: splits, early
    stopping, the outer level's last word), the peak memory of this process and the size of the data in MB."""
    fewest = max(500, ROWS_A_MEMBER * sizes["members"])
    data = made_steps(sizes["n_train"] if work == "fit" else fewest, sizes["obs_dim"])
    # A process's first fit takes longer.
    _fitted(args, made_steps(fewest, sizes["obs_dim"]), sizes["members"])
    model, seconds, fixed = _fitted(args, data, sizes["members"])
    if work == "plan":
        seconds = _plan_seconds(args, model.frozen(), data, sizes)
    return {
        "seconds": seconds,
        "fixed_seconds": fixed,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024.0,
        "data_mb": sum(column.nbytes for column in vars(data).values()) / 2**20,
    }


def _fitted(args: Args, data: Transitions, members: int) -> tuple[DynamicsModel, float, float]:
    """A model, the seconds of a gradient step, without the first, and those of all else."""
    at: dict[int, float] = {}

    def log(name: str, value: float, step: int) -> None:
        if name == "fit/loss":
            at[step] = time.perf_counter()

    steps = 1 + args.train_steps
    started = time.perf_counter()
    model, _ = fit_dynamics(
        data,
        get_method("bilevel"),
        generator=torch.Generator().manual_seed(0),
        members=members,
        hidden=args.hidden,
        schedule=Schedule(steps=steps, evaluate_every=steps),
        log=log,
    )
    whole = time.perf_counter() - started
    seconds = (at[steps] - at[1]) / args.train_steps
    return model, seconds, whole - args.train_steps * seconds


def _plan_seconds(args: Args, model: DynamicsModel, data: Transitions, sizes: Row) -> float:
    planner = replace(
        ICEM(iterations=4, elite_fraction=0.15),
        horizon=sizes["horizon"],
        population=sizes["population"],
    )
    start = planner.initial_state(1, BoxActions([-1.0] * ACTION, [1.0] * ACTION))
    imagination, generator = Imagination(particles=sizes["members"]), torch.Generator()
    obs = torch.from_numpy(data.obs[:1])
    times = []
    for _ in range(1 + args.plans):
        began = time.perf_counter()
        planner.plan(
            lambda actions: imagined_returns(model, obs, actions, imagination, generator),
            start,
            generator,
        )
        times.append(time.perf_counter() - began)
    return float(np.median(times[1:]))


def made_steps(rows: int, obs_dim: int) -> Transitions:
    """Steps of a noisy linear system, in episodes of 500."""
    random = np.random.default_rng(0)
    obs = random.standard_normal((rows, obs_dim), dtype=np.float32)
    action = random.standard_normal((rows, ACTION), dtype=np.float32)
    next_obs = np.float32(0.9) * obs
    next_obs[:, :ACTION] += np.float32(0.1) * action[:, :obs_dim]
    next_obs += np.float32(0.1) * random.standard_normal(obs.shape, dtype=np.float32)
    never, t = np.zeros(rows, bool), np.arange(rows)
    return Transitions(obs, action, obs[:, 0].copy(), next_obs, never, never, t // 500, t % 500)


def _slope(rows: list[Row], work: str, name: str) -> float | None:
    """How the time grows in the end: log seconds over log size, of the two largest sizes."""
    mine = [row for row in rows if (row["work"], row["vary"]) == (work, name)]
    if len(mine) < 2:
        return None
    (a, s), (b, t) = ((row["value"], row["seconds"]) for row in mine[-2:])
    return round(float(np.log(t / s) / np.log(b / a)), 2)


def _table(rows: list[Row]) -> str:
    lines = [f"{'work':<6}{'size':<12}{'value':>10}{'ms':>10}{'peak MB':>10}{'data MB':>10}"]
    for row in rows:
        lines.append(
            f"{row['work']:<6}{row['vary']:<12}{row['value']:>10,}{1e3 * row['seconds']:>10.2f}"
            f"{row['peak_memory_mb']:>10,.0f}{row['data_mb']:>10,.1f}"
        )
    return "\n".join(lines)
