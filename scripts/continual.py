"""Learn the tasks of a sequence one after another by several methods, and tell what each forgets.

A method is written METHOD+KEEP: how the model is trained, and what is kept of earlier tasks. Each
repeat is a new collection, a new split and a new initialisation, the same for every method.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from _args import RunArgs, option_name
from _continual_figures import draw_matrices, draw_pareto, draw_seen
from _continual_summary import METRICS, against, removed, summarise
from _data import never
from _planned import planned_return
from _pool import Cells, Done, run_cells
from _rows import Row
from _run import Result, RunFolder, launch

from agents.collect import collect
from envs.sequences import SEQUENCES, Task, TaskSequence, get_sequence
from mbrl_bilevel.continual import run as run_sequence
from mbrl_bilevel.continual_methods import get_recipe
from mbrl_bilevel.data import group_by_episode, groups_needed
from mbrl_bilevel.dynamics import DynamicsModel
from mbrl_bilevel.errors import InvalidInputError
from mbrl_bilevel.evaluation import evaluate_one_step, evaluate_open_loop
from mbrl_bilevel.fit import Schedule
from mbrl_bilevel.learner import Learner
from mbrl_bilevel.types import Transitions


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of continual."""

    sequences: tuple[str, ...] = ("hopper-mass",)
    """Sequences of tasks: halfcheetah-speed, halfcheetah-behaviour, halfcheetah-gravity,
    halfcheetah-body, halfcheetah-mix, hopper-mass, walker-friction, pusher-goal."""
    context: bool = False
    """Append what varies between the tasks to every observation; for those that change the dynamics."""
    methods: tuple[str, ...] = ("bilevel+kl-seen", "bilevel", "nll+kl-seen", "nll")
    """METHOD+KEEP. Methods are those of compare; kept is none, kl, kl-seen, kl-stored, kl-inferred,
    kl-memory, lwf, generative, replay, der, ewc, online-ewc, joint or alone; a strength goes behind a colon: nll+ewc:1000."""
    n_train: int = 2000
    """Training steps of a task."""
    n_test: int = 1500
    """Test steps of a task, from episodes of their own."""
    memory: int = 500
    """Rows stored by the methods that store any, of all tasks together."""
    seeds: int = 3
    """Repeats: --seed, --seed + 1, …"""
    jobs: int = 1
    """Processes, each with one thread; the rows are the same whatever their number."""
    members: int = 3
    """Ensemble members."""
    hidden: tuple[int, ...] = (128, 128)
    """Width of each hidden layer."""
    train_steps: int = 1000
    """Gradient steps of a task at most; early stopping may end sooner."""
    batch_size: int = 256
    """Rows of a minibatch, per member."""
    learning_rate: float = 1e-3
    """Adam's step size at the start of each task's cosine."""
    horizon: int = 5
    """Steps ahead of the open-loop test."""
    plan_episodes: int = 0
    """Episodes to plan in each task after each, 0 for none; their mean is the return."""
    plan_steps: int = 100
    """Steps of such an episode."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sequences", "methods"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise InvalidInputError(f"{option_name(name)}: give none twice")
        self.require_at_least(50, "n_train", "n_test")
        self.require_at_least(1, "train_steps", "batch_size", "memory", "plan_steps")
        self.require_at_least(1, "seeds", "jobs", "members", "hidden", "horizon", most=100_000)
        self.require_at_least(0, "plan_episodes", most=100_000)
        self.require_positive("learning_rate")
        for name in self.sequences:
            self.sequence(name)
        for name in self.methods:
            get_recipe(name, self.memory)

    def sequence(self, name: str) -> TaskSequence:
        """The one of that name, with --context or not. Raises InvalidInputError if there is none."""
        found = get_sequence(name)
        if not self.context:
            return found
        if found.kind == "shared":
            raise InvalidInputError(
                f"--context: nothing but the data differs in {name}; leave it out"
            )
        return found.with_context()


@dataclass(frozen=True)
class TaskData:
    """A task with the steps to ``train`` on and those to ``test`` on."""

    task: Task
    train: Transitions
    test: Transitions


def main(args: Args, run: RunFolder) -> Result:
    """Fill in the rows that are missing, then summarise and draw."""
    keys: list[dict[str, Any]] = [
        {"sequence": sequence, "seed": seed, "method": method}
        for seed in range(args.seed, args.seed + args.seeds)
        for sequence in args.sequences
        for method in args.methods
    ]
    metrics = (*METRICS, "return") if args.plan_episodes else METRICS
    cells = Cells(keys, learn_cell, (*metrics, "moved", "train_seconds"))
    rows = run_cells(run, args, cells, "continual", args.jobs)
    summary = list(summarise(rows, args.methods, metrics))
    figures = [
        *draw_matrices(run.figures, rows, args.methods, metrics),
        draw_seen(run.figures, rows, args.methods, metrics),
        draw_pareto(run.figures, summary, args.methods),
    ]
    found = {
        "rows": rows,
        "summary": summary,
        "against": list(against(rows, args.methods, metrics)),
        "removed": list(removed(rows, args.methods)),
        "sequences": {name: SEQUENCES[name].kind for name in args.sequences},
    }
    short = {
        f"{line['method']}@{line['sequence']}": {
            f"{name}_{part}": _rounded(line[name][part])
            for name in ("nrmse", "nll")
            for part in ("final", "learning", "forgetting")
        }
        for line in summary
    }
    return Result(found, {"summary": short, "figures": [str(path) for path in figures]})


def _rounded(found: dict[str, float] | None) -> float | None:
    return None if found is None or not math.isfinite(found["mean"]) else round(found["mean"], 4)


@lru_cache(maxsize=2)
def _tasks(args: Args, sequence: str, seed: int) -> list[TaskData]:
    return [
        TaskData(
            task,
            *task.data(collect, rows=args.n_train, test_rows=args.n_test, seed=seed + 1000 * i),
        )
        for i, task in enumerate(args.sequence(sequence).tasks)
    ]


def learn_cell(args: Args, key: Row) -> Done:
    """One method on one sequence: its matrices, and what each task cost."""
    tasks = _tasks(args, key["sequence"], key["seed"])
    generator = torch.Generator().manual_seed(key["seed"])
    start = Learner.start(
        get_recipe(key["method"], args.memory),
        *_columns(tasks[0].train),
        generator=generator,
        members=args.members,
        hidden=args.hidden,
    )
    schedule = Schedule(
        steps=args.train_steps, batch_size=args.batch_size, learning_rate=args.learning_rate
    )
    told: dict[str, list[float]] = {
        "moved": [],
        "kl_strength": [],
        "steps": [],
        "train_seconds": [],
    }

    def learn(learner: Learner, data: TaskData) -> Learner:
        train, began = data.train, time.perf_counter()
        groups = group_by_episode(train.episode, train.t, groups_needed(args.members))
        after = learner.learn(*_columns(train), groups, generator=generator, schedule=schedule)
        assert after.last is not None
        assert after.moved is not None
        told["train_seconds"].append(time.perf_counter() - began)
        told["moved"].append(after.moved)
        told["steps"].append(after.last.steps)
        told["kl_strength"].append(after.last.outer.get("kl_strength", math.nan))
        return after

    def evaluate(learner: Learner, data: TaskData) -> dict[str, float]:
        return _evaluated(args, _dynamics(learner, data), data, key["seed"])

    found = run_sequence(tasks, start, learn, evaluate)
    matrices = {name: matrix.tolist() for name, matrix in found.matrices.items()}
    before = {f"{name}_before": values.tolist() for name, values in found.before.items()}
    return Done({**matrices, **before, **told, "tasks": [data.task.name for data in tasks]})


def _columns(train: Transitions) -> tuple[torch.Tensor, torch.Tensor]:
    """(obs, action) and (Δobs, reward), raw."""
    x = np.concatenate([train.obs, train.action], axis=1)
    y = np.concatenate([train.next_obs - train.obs, train.reward[:, None]], axis=1)
    return torch.from_numpy(x), torch.from_numpy(y)


def _dynamics(learner: Learner, data: TaskData) -> DynamicsModel:
    """What ends an episode is no method's, and no task's data: nothing does."""
    model, obs_dim = learner.model, data.train.obs.shape[1]
    return DynamicsModel(model.policy, model.inputs, model.targets, obs_dim, never)


def _evaluated(args: Args, model: DynamicsModel, data: TaskData, seed: int) -> dict[str, float]:
    one = evaluate_one_step(model, data.test)
    generator = torch.Generator().manual_seed(seed)
    ahead = evaluate_open_loop(model, data.test, generator=generator, steps=(args.horizon,))
    found = {"nrmse": one.nrmse, "nll": one.nll, "k_nrmse": ahead.nrmse[0]}
    if args.plan_episodes:
        env = data.task.make()
        found["return"] = planned_return(model, env, args.plan_episodes, args.plan_steps, seed)
        env.close()
    return found


if __name__ == "__main__":
    launch(Args, main)
