"""Train dynamics models by several methods on the same data and compare them on unseen episodes.

Each repeat is a new collection, a new split and a new initialisation; within it every method gets
the same rows, the same network and the same number of gradient steps.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from _args import option_name
from _data import collect_split, minari_split, table_split
from _figures import draw_calibration, draw_errors, draw_open_loop
from _pool import Cells, Done, run_cells
from _rows import Row
from _run import Result, RunArgs, RunFolder, launch
from stable_baselines3.common.evaluation import evaluate_policy

from agents.mpc import MPC, MPCSettings
from envs.make import make_env
from envs.rules import termination_rule
from mbrl_bilevel.data import sample_segments
from mbrl_bilevel.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.errors import InvalidInputError
from mbrl_bilevel.evaluation import (
    LEVELS,
    OneStep,
    evaluate_one_step,
    evaluate_open_loop,
    evaluate_regression,
)
from mbrl_bilevel.fit import Schedule
from mbrl_bilevel.methods import get_method
from mbrl_bilevel.model_env import Imagination
from mbrl_bilevel.regression import fit_regression
from mbrl_bilevel.statistics import interval
from mbrl_bilevel.types import FitResult, Rule, Transitions

#: Metrics that are summarised, and whether a lower value is better.
METRICS = ("rmse", "nrmse", "nll", "member_nll", "crps", "calibration_error", "coverage_90")


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of compare."""

    env_id: str = "HalfCheetah-v5"
    """Gymnasium environment with Box observations and actions; its data are collected."""
    minari: str | None = None
    """Minari data set to take the steps from, instead of --env-id."""
    csv: Path | None = None
    """Table (.csv, .csv.gz, .npz) to fit --target in, instead of --env-id."""
    target: tuple[str, ...] = ()
    """Columns of --csv to predict from all the others."""
    import_module: str | None = None
    """Module to import first; it registers an environment of your own."""
    env_timeout: float | None = None
    """Seconds that one call of the environment may take; none: no limit."""
    methods: tuple[str, ...] = ("bilevel", "nll", "mse")
    """How the models are trained: bilevel, bilevel-temperature, bilevel-constant,
    bilevel-k-step, bilevel-mixture, nll,
    mse, mse-network, beta-nll, beta-nll-1, faithful, nll-mixture, k-step, paper, paper-exponential."""
    n_train: tuple[int, ...] = (1000,)
    """Numbers of training transitions, each at least 50."""
    seeds: int = 3
    """Repeats: --seed, --seed + 1, …"""
    jobs: int = 1
    """Processes, each with one thread; the rows are the same whatever their number."""
    members: int = 5
    """Ensemble members."""
    hidden: tuple[int, ...] = (200, 200)
    """Width of each hidden layer."""
    train_steps: int = 2000
    """Gradient steps at most; early stopping may end sooner."""
    batch_size: int = 256
    """Rows of a minibatch, per member."""
    learning_rate: float = 1e-3
    """Adam's step size at the start of the cosine."""
    segment: int = 50
    """Training data is taken in stretches of at most this many steps, from many episodes."""
    n_test: int = 4000
    """Test transitions at most, from whole episodes of their own; at most a fifth of a table."""
    horizons: tuple[int, ...] = (1, 5, 10, 20)
    """Steps ahead of the open-loop test; null where no test episode is long enough."""
    plan_episodes: int = 0
    """Episodes to plan with each model; their mean is the row's return."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "train_steps", "batch_size", "segment", "n_test")
        self.require_at_least(1, "seeds", "jobs", "members", "hidden", "horizons", most=100_000)
        self.require_at_least(0, "plan_episodes", most=100_000)
        self.require_positive("learning_rate")
        if self.env_timeout is not None:
            self.require_positive("env_timeout")
        for name in ("methods", "n_train", "horizons", "hidden"):
            values, option = getattr(self, name), option_name(name)
            if not values or (name != "hidden" and len(set(values)) < len(values)):
                raise InvalidInputError(f"{option}: give at least one value, and none twice")
        self.require_at_least(50, "n_train")
        for method in self.methods:
            get_method(method)
        if self.csv is not None and self.minari is not None:
            raise InvalidInputError("--csv and --minari: give one source of data")
        if (self.csv is None) != (not self.target):
            raise InvalidInputError("--csv and --target go together: name the columns to predict")
        if self.plan_episodes and (self.csv is not None or self.minari is not None):
            raise InvalidInputError("--plan-episodes needs an environment to plan in: use --env-id")
        self.schedule()

    def schedule(self) -> Schedule:
        """How long and how fast each model is trained."""
        return Schedule(
            steps=self.train_steps, batch_size=self.batch_size, learning_rate=self.learning_rate
        )

    @property
    def dataset(self) -> str:
        """The name of the data in the rows."""
        return (
            self.csv.name.partition(".")[0] if self.csv is not None else self.minari or self.env_id
        )


def main(args: Args, run: RunFolder) -> Result:
    """Fill in the rows that are missing, then summarise and draw."""
    if args.csv is not None:
        table_split(args.csv, args.target, args.seed, args.n_test)
    elif args.minari is not None:
        minari_split(args.minari, args.seed, args.n_test)
    else:
        _make(args).close()
    keys: list[dict[str, Any]] = [
        {"method": method, "dataset": args.dataset, "seed": seed, "n_train": n}
        for seed in range(args.seed, args.seed + args.seeds)
        for n in args.n_train
        for method in args.methods
    ]
    ahead = () if args.csv is not None else ("k", "k_nrmse", "k_coverage_90")
    cells = Cells(keys, fit_cell, (*METRICS, "coverage", *ahead))
    rows = run_cells(run, args, cells, "compare", args.jobs)
    summary = list(_summarise(rows, args))
    figures = [
        draw_errors(run.figures, rows, args.methods),
        draw_calibration(run.figures, rows, args.methods),
    ]
    if ahead:
        figures.append(draw_open_loop(run.figures, rows, args.methods))
    metrics = {
        "rows": rows,
        "summary": summary,
        "paired": list(_paired(rows, args)),
        "levels": LEVELS,
    }
    short = {
        f"{line['method']}@{line['n_train']}": {
            name: round(line[name]["mean"], 4) for name in ("nrmse", "nll", "coverage_90")
        }
        for line in summary
    }
    return Result(metrics, {"summary": short, "figures": [str(path) for path in figures]})


def _make(args: Args) -> gym.Env[Any, Any]:
    return make_env(args.env_id, import_module=args.import_module, timeout=args.env_timeout)


@lru_cache(maxsize=2)
def _split(args: Args, seed: int) -> tuple[Transitions, Transitions]:
    """(training pool, test set of other episodes) of one repeat."""
    if args.minari is not None:
        return minari_split(args.minari, seed, args.n_test)
    env = _make(args)
    found = collect_split(env, seed, max(args.n_train), args.n_test)
    env.close()
    return found


def fit_cell(args: Args, key: Row) -> Done:
    """One model: its row, and the curves of its training."""
    return _table_cell(args, key) if args.csv is not None else _dynamics_cell(args, key)


def _dynamics_cell(args: Args, key: Row) -> Done:
    pool, test = _split(args, key["seed"])
    random = np.random.default_rng([key["seed"], key["n_train"]])
    data = sample_segments(pool, key["n_train"], args.segment, random)
    started = time.perf_counter()
    model, fitted = fit_dynamics(
        data,
        get_method(key["method"]),
        # The same for every method: the same folds and the same initial weights of the mean.
        generator=torch.Generator().manual_seed(key["seed"]),
        members=args.members,
        hidden=args.hidden,
        schedule=args.schedule(),
        termination=_rule(args),
    )
    row = _one_step_row(evaluate_one_step(model, test), fitted, time.perf_counter() - started)
    row |= _open_loop(args, model, test, key["seed"])
    if args.plan_episodes:
        row |= _returns(args, model, key["method"], key["seed"])
    return Done(row, fitted.history)


def _table_cell(args: Args, key: Row) -> Done:
    assert args.csv is not None
    (x, y), (test_x, test_y) = table_split(args.csv, args.target, key["seed"], args.n_test)
    n = key["n_train"]
    if n > len(x):
        raise InvalidInputError(
            f"--n-train: {n} rows were asked for, but {len(x)} are there beside the test rows"
        )
    started = time.perf_counter()
    model, fitted = fit_regression(
        torch.from_numpy(x[:n]),
        torch.from_numpy(y[:n]),
        np.arange(n),
        get_method(key["method"]),
        generator=torch.Generator().manual_seed(key["seed"]),
        members=args.members,
        hidden=args.hidden,
        schedule=args.schedule(),
    )
    seconds = time.perf_counter() - started
    found = evaluate_regression(model, torch.from_numpy(test_x), torch.from_numpy(test_y))
    return Done(_one_step_row(found, fitted, seconds), fitted.history)


def _one_step_row(found: OneStep, fitted: FitResult, seconds: float) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(found, name) for name in METRICS}
    return row | {"coverage": found.coverage, "train_seconds": seconds, "steps": fitted.steps}


def _rule(args: Args) -> Rule | None:
    """The known termination of the environment; data alone has none."""
    if args.minari is not None:
        return None
    env = _make(args)
    rule = termination_rule(env)
    env.close()
    return rule


def _open_loop(args: Args, model: DynamicsModel, test: Transitions, seed: int) -> dict[str, Any]:
    """At each of the horizons; None at those that no test episode is long enough for."""
    longest = int(np.bincount(test.episode).max())
    steps = [k for k in args.horizons if k <= longest]
    errors: dict[int, float] = {}
    covered: dict[int, float] = {}
    if steps:
        generator = torch.Generator().manual_seed(seed)
        found = evaluate_open_loop(model, test, generator=generator, steps=steps)
        errors = dict(zip(steps, found.nrmse, strict=True))
        covered = dict(zip(steps, found.coverage_90, strict=True))
    return {
        "k": args.horizons,
        "k_nrmse": [errors.get(k) for k in args.horizons],
        "k_coverage_90": [covered.get(k) for k in args.horizons],
    }


def _returns(args: Args, model: DynamicsModel, method: str, seed: int) -> dict[str, Any]:
    env = _make(args)
    settings = MPCSettings(
        method=method,
        members=args.members,
        hidden=args.hidden,
        imagination=Imagination(particles=args.members),
    )
    agent = MPC(env, settings, termination=termination_rule(env), seed=seed)
    agent.model = model
    agent.env.seed(seed)
    returns: Any
    returns, _ = evaluate_policy(
        agent,
        agent.env,
        n_eval_episodes=args.plan_episodes,
        return_episode_rewards=True,
        warn=False,
    )
    env.close()
    return {"return": float(np.mean(returns)), "returns": [float(r) for r in returns]}


def _summarise(rows: Sequence[dict[str, Any]], args: Args) -> Iterator[dict[str, Any]]:
    names = METRICS + (("return",) if args.plan_episodes else ())
    for n in args.n_train:
        for method in args.methods:
            mine = [r for r in rows if r["method"] == method and r["n_train"] == n]
            if not mine:  # all of its repeats failed
                continue
            line: dict[str, Any] = {"method": method, "n_train": n}
            yield line | {name: interval(_numbers(r[name] for r in mine)) for name in names}


def _paired(rows: Sequence[dict[str, Any]], args: Args) -> Iterator[dict[str, Any]]:
    """The first method minus each other one, repeat by repeat: negative is better."""
    first, *others = args.methods
    for n in args.n_train:
        for other in others:
            ours, theirs = (
                {r["seed"]: r for r in rows if r["method"] == m and r["n_train"] == n}
                for m in (first, other)
            )
            both = sorted(ours.keys() & theirs.keys())  # a repeat may have failed for one
            if not both:
                continue
            line: dict[str, Any] = {"method": first, "minus": other, "n_train": n}
            for name in ("nrmse", "nll", "member_nll", "crps", "calibration_error"):
                pairs = zip(
                    _numbers(ours[seed][name] for seed in both),
                    _numbers(theirs[seed][name] for seed in both),
                    strict=True,
                )
                line[name] = interval([a - b for a, b in pairs])
            yield line


def _numbers(values: Iterable[float | None]) -> list[float]:
    """As rows.jsonl gives them back: what was not finite is null there."""
    return [math.nan if value is None else value for value in values]


if __name__ == "__main__":
    launch(Args, main)
