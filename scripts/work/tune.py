"""What tune does, once its options are read."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from options.sources import Source
from options.tune import Args

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
from work.tuning_studies import SPACE, MethodStudy, best


def tune(args: Args, run: RunFolder) -> Result:
    """Propose, try, tell, in rounds; then the best settings of each method."""
    for source in args.sources:  # what is wrong with them is told before the first fit
        _split(args, source, args.seed)
    launcher = args.launching()
    studies = [MethodStudy(args, method, run.path) for method in args.methods]
    # First what this run proposed before it was stopped, where a storage remembers it.
    keys = new = [key for study in studies for key in study.own()]
    rows: list[Row] = []
    with launcher.session():
        while True:
            if new:
                rows = run_cells(run, args, Cells(keys, try_settings, ("value",)), "tune", launcher)
                for study in studies:
                    study.tell(rows)
            new = [key for study in studies for key in study.ask(_ROUND)]
            if not new:
                break
            keys = [*keys, *new]
    if args.storage is not None:
        rows = [row for study in studies for row in study.rows()]
    found = {s.method: best([r for r in rows if r["method"] == s.method]) for s in studies}
    figure = draw_trials(run.figures, rows, args.methods)
    short = {
        method: mine and {**mine["settings"], "nll": mine["value"]}
        for method, mine in found.items()
    }
    return Result(
        {"best": {m: b for m, b in found.items() if b}, "trials": rows},
        {"best": short, "figures": [str(figure)]},
    )


#: Trials of a method that are proposed at once.
_ROUND = 4


def try_settings(args: Args, key: Row) -> Done:
    """One trial: the mean over data sets and repeats of the ensemble's test NLL per dimension; None
    where a model diverged."""
    try:
        values = [
            _judged(args, source, key, seed)
            for source in args.sources
            for seed in range(args.seed, args.seed + args.seeds)
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
