"""Tune every method with the same budget of trials, on data sets that no result is reported on.

Half of a method's trials are a Halton sequence, the same settings for each method; the others are
proposed by Optuna's TPE (Bergstra 2011) in rounds of fixed size, so that nothing depends on --jobs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import optuna
import torch
from _args import naming, option_name
from _data import Source, Split, never, steps_split
from _figures import draw_trials
from _pool import Cells, Done, run_cells
from _rows import Row
from _run import Result, RunArgs, RunFolder, launch
from scipy.stats import qmc

from mbrl_bilevel.base.errors import DivergedError, InvalidInputError
from mbrl_bilevel.data.rows import sample_segments
from mbrl_bilevel.evaluation.dynamics import evaluate_one_step
from mbrl_bilevel.models.dynamics import fit_dynamics
from mbrl_bilevel.training.fit import Schedule
from mbrl_bilevel.training.methods import get_method

#: What is tuned, on a logarithmic scale, alike for every method: options of ``fit.Schedule``.
SPACE: Mapping[str, tuple[float, float]] = {
    "learning_rate": (3e-4, 1e-2),
    "weight_decay": (1e-6, 1e-1),
}
#: Trials of a method that are proposed at once.
_ROUND = 4


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of tune."""

    methods: tuple[str, ...] = ("bilevel", "nll", "mse")
    """How the models are trained; every method gets as many trials."""
    env_id: tuple[str, ...] = ("Swimmer-v5", "Reacher-v5")
    """Gymnasium environments to tune on: others than those that are reported."""
    minari: tuple[str, ...] = ()
    """Minari data sets to tune on, instead of --env-id."""
    import_module: str | None = None
    """Module to import first; it registers an environment of your own."""
    env_timeout: float | None = None
    """Seconds that one call of the environment may take; none: no limit."""
    trials: int = 16
    """Trials of each method."""
    repeats: int = 1
    """Repeats of each trial: new data, a new split and a new initialisation."""
    n_train: int = 1000
    """Training transitions of each data set."""
    n_test: int = 2000
    """Transitions of other episodes that a trial is judged on."""
    jobs: int = 1
    """Processes, each with one thread; the trials are the same whatever their number."""
    members: int = 5
    """Ensemble members."""
    hidden: tuple[int, ...] = (200, 200)
    """Width of each hidden layer."""
    train_steps: int = 2000
    """Gradient steps at most; early stopping may end sooner."""
    segment: int = 50
    """Training data is taken in stretches of at most this many steps, from many episodes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "train_steps", "segment", "n_test")
        self.require_at_least(1, "trials", "repeats", "jobs", "members", "hidden", most=100_000)
        self.require_at_least(50, "n_train")
        if self.env_timeout is not None:
            self.require_positive("env_timeout")
        for name in ("methods", "env_id"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InvalidInputError(
                    f"{option_name(name)}: give at least one value, and none twice"
                )
        with naming("--methods"):
            for method in self.methods:
                get_method(method)

    @property
    def sources(self) -> list[Source]:
        """The data sets that a trial is judged on."""
        if self.minari:
            return [Source(name, minari=name) for name in self.minari]
        return [Source(name, env_id=name) for name in self.env_id]


def main(args: Args, run: RunFolder) -> Result:
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


if __name__ == "__main__":
    launch(Args, main)
