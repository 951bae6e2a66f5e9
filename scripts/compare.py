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
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from _args import option_name
from _figures import draw_calibration, draw_errors, draw_open_loop
from _pool import Cells, Done, run_cells
from _rows import Row
from _run import Result, RunArgs, RunFolder, launch
from stable_baselines3.common.evaluation import evaluate_policy

from agents.collect import RandomBehaviour, collect
from agents.mpc import MPC, MPCSettings
from envs.make import make_env
from envs.rules import termination_rule
from mbrl_bilevel.data import sample_segments
from mbrl_bilevel.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.errors import InvalidInputError
from mbrl_bilevel.evaluation import LEVELS, evaluate_one_step, evaluate_open_loop, interval
from mbrl_bilevel.fit import Schedule
from mbrl_bilevel.methods import get_method
from mbrl_bilevel.model_env import Imagination
from mbrl_bilevel.types import Transitions

#: Metrics that are summarised, and whether a lower value is better.
METRICS = ("rmse", "nrmse", "nll", "member_nll", "crps", "calibration_error", "coverage_90")


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of compare."""

    env_id: str = "HalfCheetah-v5"
    """Gymnasium environment with Box observations and actions."""
    import_module: str | None = None
    """Module to import first; it registers an environment of your own."""
    env_timeout: float | None = None
    """Seconds that one call of the environment may take; none: no limit."""
    methods: tuple[str, ...] = ("bilevel", "nll", "mse")
    """How the models are trained: bilevel, bilevel-constant, nll, mse."""
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
    """Test transitions at most, from whole episodes of their own."""
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


def main(args: Args, run: RunFolder) -> Result:
    """Fill in the rows that are missing, then summarise and draw."""
    _make(args).close()
    keys: list[dict[str, Any]] = [
        {"method": method, "dataset": args.env_id, "seed": seed, "n_train": n}
        for seed in range(args.seed, args.seed + args.seeds)
        for n in args.n_train
        for method in args.methods
    ]
    cells = Cells(keys, fit_cell, (*METRICS, "coverage", "k", "k_nrmse", "k_coverage_90"))
    rows = run_cells(run, args, cells, "compare", args.jobs)
    summary = list(_summarise(rows, args))
    figures = [
        draw_errors(run.figures, rows, args.methods),
        draw_open_loop(run.figures, rows, args.methods),
        draw_calibration(run.figures, rows, args.methods),
    ]
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
def _collected(args: Args, seed: int) -> tuple[Transitions, Transitions]:
    """(training pool, test set of other episodes) of one repeat, collected afresh."""
    env = _make(args)
    random = np.random.default_rng([seed, 0])
    behaviour = RandomBehaviour(env.action_space, random)  # type: ignore[arg-type]
    steps = max(2 * max(args.n_train), 10_000) + 2 * args.n_test
    everything = collect(env, behaviour, steps, seed=seed)
    env.close()
    return _by_episode(everything, args.n_test, random)


def _by_episode(
    everything: Transitions, n_test: int, random: np.random.Generator
) -> tuple[Transitions, Transitions]:
    episodes = random.permutation(np.unique(everything.episode))
    lengths = np.bincount(everything.episode)[episodes]
    held = int(np.searchsorted(np.cumsum(lengths), n_test)) + 1
    if held >= len(episodes):
        raise InvalidInputError(
            f"--n-test: {n_test} test steps leave no episode to train on; ask for fewer"
        )
    in_test = np.isin(everything.episode, episodes[:held])
    return everything[~in_test], everything[in_test]


def fit_cell(args: Args, key: Row) -> Done:
    """One model: its row, and the curves of its training."""
    method, seed, n_train = key["method"], key["seed"], key["n_train"]
    pool, test = _collected(args, seed)
    data = sample_segments(pool, n_train, args.segment, np.random.default_rng([seed, n_train]))
    env = _make(args)
    schedule = Schedule(
        steps=args.train_steps, batch_size=args.batch_size, learning_rate=args.learning_rate
    )
    started = time.perf_counter()
    model, fitted = fit_dynamics(
        data,
        get_method(method),
        # The same for every method: the same folds and the same initial weights of the mean.
        generator=torch.Generator().manual_seed(seed),
        members=args.members,
        hidden=args.hidden,
        schedule=schedule,
        termination=termination_rule(env),
    )
    seconds = time.perf_counter() - started
    one = evaluate_one_step(model, test)
    row = {name: getattr(one, name) for name in METRICS}
    row |= {"coverage": one.coverage, "train_seconds": seconds, "steps": fitted.steps}
    row |= _open_loop(args, model, test, seed)
    if args.plan_episodes:
        row |= _returns(args, model, method, seed)
    env.close()
    return Done(row, fitted.history)


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
