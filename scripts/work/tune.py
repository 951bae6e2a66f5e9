"""What tune does, once its options are read."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np
import optuna
import torch
from options.sources import Source
from options.tune import Args
from scipy.stats import qmc

from mbrl_bilevel.base.errors import DivergedError
from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.data.splits import sample_segments
from mbrl_bilevel.evaluation.dynamics import evaluate_one_step
from mbrl_bilevel.figures.models import draw_trials
from mbrl_bilevel.models.dynamics import fit_dynamics
from mbrl_bilevel.studies.cells import Cells, Done, run_cells
from mbrl_bilevel.studies.launching import Result
from mbrl_bilevel.studies.run_folder import RunFolder
from mbrl_bilevel.training.methods import get_method
from mbrl_bilevel.training.settings import Schedule
from work.steps_data import Split, never, steps_split


def tune(args: Args, run: RunFolder) -> Result:
    """Propose, try, tell, in rounds; then the best settings of each method."""
    for source in args.sources:  # what is wrong with them is told before the first fit
        _split(args, source, args.seed)
    studies = {method: _study(args) for method in args.methods}
    keys: list[Row] = []
    rows: list[Row] = []
    for first in range(0, args.trials, _ROUND):
        asked = {
            (method, number): study.ask(
                {
                    n: optuna.distributions.FloatDistribution(*ends, log=True)
                    for n, ends in SPACE.items()
                }
            )
            for method, study in studies.items()
            for number in range(first, min(first + _ROUND, args.trials))
        }
        keys += [{"method": m, "trial": n, **trial.params} for (m, n), trial in asked.items()]
        rows = run_cells(run, args, Cells(keys, try_settings, ("value",)), "tune", args.jobs)
        values = {(row["method"], row["trial"]): row["value"] for row in rows}
        for (method, number), trial in asked.items():
            value = values.get((method, number))
            failed = optuna.trial.TrialState.FAIL if value is None else None
            studies[method].tell(trial, value, state=failed)
    best = {method: _best(rows, method) for method in args.methods}
    figure = draw_trials(run.figures, rows, args.methods)
    short = {
        method: found and {**found["settings"], "nll": found["value"]}
        for method, found in best.items()
    }
    return Result(
        {"best": {m: b for m, b in best.items() if b}, "trials": rows},
        {"best": short, "figures": [str(figure)]},
    )


#: What is tuned, on a logarithmic scale, alike for every method: options of ``fit.Schedule``.
SPACE: Mapping[str, tuple[float, float]] = {
    "learning_rate": (3e-4, 1e-2),
    "weight_decay": (1e-6, 1e-1),
}


#: Trials of a method that are proposed at once.
_ROUND = 4


def try_settings(args: Args, key: Row) -> Done:
    """One trial: the mean over data sets and repeats of the ensemble's test NLL per dimension; None
    where a model diverged."""
    try:
        values = [
            _judged(args, source, key, seed)
            for source in args.sources
            for seed in range(args.seed, args.seed + args.repeats)
        ]
    except DivergedError:
        values = [math.nan]
    value = float(np.mean(values))
    return Done({"value": value if math.isfinite(value) else None})


def _judged(args: Args, source: Source, key: Row, seed: int) -> float:
    split = _split(args, source, seed)
    data = sample_segments(
        split.pool, args.n_train, args.segment, np.random.default_rng([seed, args.n_train])
    )
    model, _ = fit_dynamics(
        data,
        get_method(key["method"]),
        generator=torch.Generator().manual_seed(seed),
        members=args.members,
        hidden=args.hidden,
        schedule=Schedule(steps=args.train_steps, **{name: key[name] for name in SPACE}),
        termination=never,  # what ends an episode is not tuned
    )
    return evaluate_one_step(model, split.test).nll


@lru_cache(maxsize=16)
def _split(args: Args, source: Source, seed: int) -> Split:
    return steps_split(
        source, args, seed, largest=args.n_train, n_test=args.n_test, segment=args.segment
    )


def _study(args: Args) -> optuna.Study:
    """A method's study, its first half of trials put in the queue."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spread = -(-args.trials // 2)
    study = optuna.create_study(
        sampler=optuna.samplers.TPESampler(seed=args.seed % 2**32, n_startup_trials=spread)
    )
    for settings in _halton(spread, args.seed):
        study.enqueue_trial(settings)
    return study


def _halton(count: int, seed: int) -> Iterator[dict[str, float]]:
    points = qmc.Halton(len(SPACE), rng=np.random.default_rng(seed)).random(count)
    for point in points:
        yield {
            name: float(low * (high / low) ** u)
            for (name, (low, high)), u in zip(SPACE.items(), point, strict=True)
        }


def _best(rows: Sequence[Row], method: str) -> Row | None:
    """The settings of the lowest value; None if every trial of the method diverged."""
    mine = [row for row in rows if row["method"] == method and row["value"] is not None]
    if not mine:
        return None
    found = min(mine, key=lambda row: (row["value"], row["trial"]))
    return {"settings": {name: found[name] for name in SPACE}, "value": found["value"]}
