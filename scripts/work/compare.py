"""What compare does, once its options are read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces.utils import flatdim
from options.compare import Args
from options.sources import Source
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from agents.common.device import chosen_device
from envs.known.endings import termination_rule
from envs.known.names import observation_names
from envs.tasks.appended import task_dims
from envs.tasks.make import require_time_limit
from mbrl_bilevel.base.errors import BilevelError, InvalidInputError
from mbrl_bilevel.base.records import FitResult, Rule, Transitions
from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.data.splits import sample_segments
from mbrl_bilevel.evaluation.dynamics import (
    OneStep,
    evaluate_one_step,
    evaluate_open_loop,
    evaluate_regression,
    evaluate_returns,
    rollout_band,
)
from mbrl_bilevel.evaluation.levels import LEVELS
from mbrl_bilevel.figures.models import (
    draw_calibration,
    draw_errors,
    draw_open_loop,
    draw_pooled,
    draw_rollout,
)
from mbrl_bilevel.models.dynamics import (
    DynamicsModel,
    fit_dynamics,
    fit_dynamics_side_by_side,
    weights_by_name,
)
from mbrl_bilevel.models.regression import (
    Regression,
    fit_regression,
    fit_regression_side_by_side,
)
from mbrl_bilevel.studies.cells import Cells, Done, Outcome, SideBySide, run_cells
from mbrl_bilevel.studies.launching import Result
from mbrl_bilevel.studies.run_folder import RunFolder
from mbrl_bilevel.studies.summaries import paired, pooled, summarise
from mbrl_bilevel.training.methods import get_method
from work.planned_returns import planned_returns
from work.steps_data import Split, never, open_env, steps_split, table_split


def compare(args: Args, run: RunFolder) -> Result:
    """Fill in the rows that are missing, then summarise and draw."""
    for source in args.sources:  # what is wrong with them is told before the first fit
        _check(args, source)
    # Repeats outermost: a study that is stopped has whole ones.
    keys: list[dict[str, Any]] = [
        {"method": method, "dataset": source.name, "seed": seed, "n_train": n}
        for seed in range(args.seed, args.seed + args.seeds)
        for source in args.sources
        for n in args.n_train
        for method in args.methods
    ]
    ahead = () if args.csv else ("k", "k_nrmse", "k_nll", "k_coverage_90")
    task = ("task_rmse", "task_nll") if args.distractor else ()
    extra = () if args.csv else ("return_error", *task)
    beside = SideBySide(args.side_by_side, fit_cells)
    columns = (*METRICS, "coverage", *ahead, *extra)
    cells = Cells(keys, fit_cell, columns, side_by_side=beside)
    rows = run_cells(run, args, cells, "compare", args.launching())
    returns = ("return",) if args.plan_episodes else ()
    summary = list(summarise(rows, args.methods, METRICS + extra + returns))
    figures = [
        draw_errors(run.figures, rows, args.methods),
        draw_calibration(run.figures, rows, args.methods),
    ]
    if ahead:
        figures.append(draw_open_loop(run.figures, rows, args.methods))
        figures += draw_rollout(run.figures, rows, args.methods)
    against = list(pooled(rows, args.methods))
    if against:
        figures.append(draw_pooled(run.figures, against))
    metrics = {
        "rows": [{k: v for k, v in row.items() if k != "rollout"} for row in rows],
        "summary": summary,
        "paired": list(paired(rows, args.methods, PAIRED + extra + returns)),
        "pooled": against,
        "levels": LEVELS,
    }
    short = {
        f"{line['method']}@{line['dataset']}@{line['n_train']}": {
            name: _rounded(line[name]["mean"])
            for name in ("nrmse", "nll", "coverage_90", *extra, *returns)
        }
        for line in summary
    }
    return Result(metrics, {"summary": short, "figures": [str(path) for path in figures]})


def _check(args: Args, source: Source) -> None:
    """Raises InvalidInputError for data that cannot be had, or is too little, or is of another environment than
    the one to plan in."""
    if source.csv is not None:
        (x, _), _ = table_split(source, args.seed, args.n_test)
        _require_rows(args, len(x))
    pool = None
    if source.csv is None and source.env_id is None:
        pool = _split(args, source.name, args.seed).pool
        _require_rows(args, len(pool))
    env_id = source.env_id or args.plan_env
    if env_id is None:
        return
    env = open_env(args, env_id, source.distractor)
    if args.plan_episodes and args.plan_steps is None:
        require_time_limit(env, env_id, "give --plan-steps")
    if args.plan_episodes and pool is not None:
        widths = [pool.obs.shape[1], pool.action.shape[1]]
        wanted = [flatdim(space) for space in (env.observation_space, env.action_space)]
        if widths != wanted:
            raise InvalidInputError(
                f"--plan-env {env_id!r} has {wanted[0]} observation and {wanted[1]} action dimensions, "
                f"{source.name!r} has {widths[0]} and {widths[1]}; give the environment of the data"
            )
    env.close()


def _require_rows(args: Args, found: int) -> None:
    if (most := max(args.n_train)) > found:
        raise InvalidInputError(
            f"--n-train: {most} rows were asked for, but {found} are there beside the test rows"
        )


#: Metrics that are summarised.
METRICS = (
    *("rmse", "nrmse", "nll", "crps", "ncrps", "calibration_error", "coverage_90"),
    *("member_rmse", "member_nrmse", "member_nll", "member_crps", "member_ncrps"),
    *("member_calibration_error", "scaled_nll", "dispersion"),
)


#: Those whose differences are told.
PAIRED = (
    "nrmse",
    "nll",
    "ncrps",
    "calibration_error",
    "member_nrmse",
    "member_nll",
    "member_ncrps",
)


#: A predicted rollout is drawn of this many steps and observations.
ROLLOUT = (50, 4)


def _rounded(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _split(args: Args, dataset: str, seed: int) -> Split:
    """Collected once for all methods and sizes, of as many repeats as go side by side."""
    return _splits(max(2, args.side_by_side))(args, dataset, seed)


@lru_cache(maxsize=1)
def _splits(size: int) -> Callable[[Args, str, int], Split]:
    return lru_cache(maxsize=size)(_made_split)


def _made_split(args: Args, dataset: str, seed: int) -> Split:
    return steps_split(
        args.source(dataset),
        args,
        seed,
        largest=max(args.n_train),
        n_test=args.n_test,
        segment=args.segment,
    )


def fit_cell(args: Args, key: Row) -> Done:
    """One model: its row, and the curves of its training."""
    started = time.perf_counter()
    if args.csv:
        x, y = _table_rows(args, key)
        table_model, fitted = fit_regression(
            x,
            y,
            np.arange(len(x)),
            get_method(key["method"]),
            generator=_draws(key),
            **_how(args, key),
        )
        seconds = time.perf_counter() - started
        return _table_row(args, key, table_model, fitted, seconds)
    split = _split(args, key["dataset"], key["seed"])
    model, fitted = fit_dynamics(
        _steps(args, key, split),
        get_method(key["method"]),
        generator=_draws(key),
        outer_transitions=split.outer,
        termination=_ending(args, key),
        **_how(args, key),
    )
    return _dynamics_row(args, key, split, model, fitted, time.perf_counter() - started)


def fit_cells(args: Args, keys: Sequence[Row]) -> list[Outcome]:
    """Several, which differ in their seed, side by side; the time of each is a part of that of all."""
    started = time.perf_counter()
    first, draws = keys[0], [_draws(key) for key in keys]
    method, how = get_method(first["method"]), _how(args, first)
    if args.csv:
        rows: Any = [partial(_table_row, args, key) for key in keys]
        tables = [_table_rows(args, key) for key in keys]
        fits: Any = fit_regression_side_by_side(tables, method, generators=draws, **how)
    else:
        splits = [_split(args, key["dataset"], key["seed"]) for key in keys]
        each = list(zip(keys, splits, strict=True))
        rows = [partial(_dynamics_row, args, key, split) for key, split in each]
        fits = fit_dynamics_side_by_side(
            [_steps(args, key, split) for key, split in each],
            method,
            generators=draws,
            outer_transitions=[split.outer for split in splits],
            termination=_ending(args, first),
            **how,
        )
    seconds = (time.perf_counter() - started) / len(keys)
    return [
        found if isinstance(found, BilevelError) else row(*found, seconds)
        for row, found in zip(rows, fits, strict=True)
    ]


def _draws(key: Row) -> torch.Generator:
    """The same for every method: the same folds and the same initial weights of the mean."""
    return torch.Generator().manual_seed(key["seed"])


def _how(args: Args, key: Row) -> dict[str, Any]:
    schedule = args.schedule(key["method"])
    network = {"members": args.members, "hidden": args.hidden}
    return {**network, "schedule": schedule, "device": chosen_device(args.device)}


def _steps(args: Args, key: Row, split: Split) -> Transitions:
    """What a model is fitted to."""
    random = np.random.default_rng([key["seed"], key["n_train"]])
    return sample_segments(split.pool, key["n_train"], args.segment, random)


def _ending(args: Args, key: Row) -> Rule | None:
    """What ends an episode is no method's: without a rule, nothing does."""
    env_id = args.source(key["dataset"]).env_id or args.plan_env
    return never if env_id is None else _rule(args, env_id)


def _dynamics_row(
    args: Args, key: Row, split: Split, model: DynamicsModel, fitted: FitResult, seconds: float
) -> Done:
    model = model.to("cpu")
    env_id = args.source(key["dataset"]).env_id or args.plan_env
    row = _one_step_row(evaluate_one_step(model, split.test), fitted, seconds)
    if split.noise_nll is not None:
        row["noise_nll"] = split.noise_nll
        row["truth_nrmse"] = evaluate_one_step(model, split.clean).nrmse
    row |= _open_loop(args, model, split.clean, key["seed"])
    row["return_error"] = _return_error(args, model, split.clean, key["seed"])
    if args.distractor is not None:
        assert env_id is not None
        env = open_env(args, env_id, args.distractor)
        own = evaluate_one_step(model, split.test, observations=task_dims(env))
        row |= {"task_rmse": own.nrmse, "task_nll": own.nll}
        row["weights"] = weights_by_name(fitted, (*observation_names(env), "reward"))
        env.close()
    if key["seed"] == args.seed and key["n_train"] == max(args.n_train):
        row["rollout"] = _rollout(model, split.clean)
    if args.plan_episodes:
        assert env_id is not None
        row |= _returns(args, env_id, model, key["seed"])
    return Done(row, fitted.history)


def _rollout(model: DynamicsModel, test: Transitions) -> dict[str, Any]:
    """The arrays of a predicted rollout, as long as the test episodes allow."""
    steps, dims = ROLLOUT
    steps = min(steps, int(np.bincount(test.episode).max()))
    band = rollout_band(model, test, steps, generator=torch.Generator().manual_seed(0))
    return {name: value[:, :dims].tolist() for name, value in band.items()}


def _table_rows(args: Args, key: Row) -> tuple[Tensor, Tensor]:
    (x, y), _ = table_split(args.source(key["dataset"]), key["seed"], args.n_test)
    n = key["n_train"]
    return torch.from_numpy(x[:n]), torch.from_numpy(y[:n])


def _table_row(args: Args, key: Row, model: Regression, fitted: FitResult, seconds: float) -> Done:
    _, (x, y) = table_split(args.source(key["dataset"]), key["seed"], args.n_test)
    found = evaluate_regression(model.to("cpu"), torch.from_numpy(x), torch.from_numpy(y))
    return Done(_one_step_row(found, fitted, seconds), fitted.history)


def _one_step_row(found: OneStep, fitted: FitResult, seconds: float) -> dict[str, Any]:
    row: dict[str, Any] = {name: getattr(found, name) for name in METRICS}
    return row | {"coverage": found.coverage, "train_seconds": seconds, "steps": fitted.steps}


def _rule(args: Args, env_id: str) -> Rule | None:
    """The known termination of the environment."""
    env = open_env(args, env_id, args.distractor)
    rule = termination_rule(env)
    env.close()
    return rule


def _return_error(args: Args, model: DynamicsModel, test: Transitions, seed: int) -> float:
    """Of as many steps as the test episodes allow."""
    steps = min(args.return_steps, int(np.bincount(test.episode).max()))
    return evaluate_returns(model, test, generator=torch.Generator().manual_seed(seed), steps=steps)


def _open_loop(args: Args, model: DynamicsModel, test: Transitions, seed: int) -> dict[str, Any]:
    """At each of the horizons; None at those that no test episode is long enough for."""
    longest = int(np.bincount(test.episode).max())
    steps = [k for k in args.horizons if k <= longest]
    found_at: dict[str, dict[int, float]] = {}
    if steps:
        generator = torch.Generator().manual_seed(seed)
        found = evaluate_open_loop(model, test, generator=generator, steps=steps)
        for name in ("nrmse", "nll", "coverage_90"):
            found_at[name] = dict(zip(steps, getattr(found, name), strict=True))
    at = {
        f"k_{name}": [found_at.get(name, {}).get(k) for k in args.horizons]
        for name in ("nrmse", "nll", "coverage_90")
    }
    return {"k": args.horizons, **at}


def _returns(args: Args, env_id: str, model: DynamicsModel, seed: int) -> dict[str, Any]:
    """Episodes side by side, planned in one batch; their starts are the same for every method."""
    rule = _rule(args, env_id)
    envs = DummyVecEnv(
        [lambda: _cut(args, open_env(args, env_id, args.distractor))] * args.plan_episodes
    )
    returns = planned_returns(model, rule, envs, args.plan_episodes, seed)
    envs.close()
    return {"return": float(np.mean(returns)), "returns": returns}


def _cut(args: Args, env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return env if args.plan_steps is None else gym.wrappers.TimeLimit(env, args.plan_steps)
