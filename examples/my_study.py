"""A study of your own: methods times seeds on your data, with a run folder that goes on after any stop.

    python examples/my_study.py --out runs/my-study --jobs 2
    python examples/my_study.py --out runs/my-study --jobs 2 --resume

Replace ``fit_one`` by what you want to repeat. It may use any environment or agent: the study only keeps its
rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mbrl_bilevel.evaluation.dynamics import evaluate_regression
from mbrl_bilevel.models.regression import fit_regression
from mbrl_bilevel.studies import (
    Cells,
    Done,
    LauncherArgs,
    Result,
    Row,
    RunFolder,
    launch,
    paired,
    run_cells,
    summarise,
)
from mbrl_bilevel.training.methods import get_method
from mbrl_bilevel.training.settings import Schedule

#: What every finished row holds beside its key.
METRICS = ("rmse", "nll", "crps")


@dataclass(frozen=True, kw_only=True)
class Args(LauncherArgs):
    """Options of the study; --help lists them with these words."""

    methods: tuple[str, ...] = ("bilevel", "nll", "mse")
    """Methods to compare; differences are those of the first to each of the others."""
    seeds: int = 3
    """Repeats: --seed, --seed + 1, …"""
    n_train: int = 500
    """Training rows."""
    train_steps: int = 500
    """Gradient steps at most."""


def fit_one(args: Args, key: Row) -> Done:
    """One method on one draw of the data. All it depends on is in ``args`` and ``key``."""
    random = np.random.default_rng(key["seed"])
    x = random.uniform(-3.0, 3.0, (args.n_train + 1000, 1))
    y = np.sin(x) + (0.05 + 0.2 * np.abs(x)) * random.normal(size=x.shape)
    inputs, targets = torch.from_numpy(x).float(), torch.from_numpy(y).float()
    n = args.n_train
    model, fitted = fit_regression(
        inputs[:n],
        targets[:n],
        np.arange(n),  # each row by itself; rows of one episode would share a number
        get_method(key["method"]),
        generator=torch.Generator().manual_seed(key["seed"]),
        hidden=(64, 64),
        schedule=Schedule(steps=args.train_steps),
    )
    found = evaluate_regression(model, inputs[n:], targets[n:])
    return Done({name: getattr(found, name) for name in METRICS}, fitted.history)


def main(args: Args, run: RunFolder) -> Result:
    """Run the cells that are not in the folder yet, then sum up all of them."""
    keys: list[Row] = [
        {"method": method, "dataset": "sine", "n_train": args.n_train, "seed": seed}
        for seed in range(args.seed, args.seed + args.seeds)
        for method in args.methods
    ]
    rows = run_cells(run, args, Cells(keys, fit_one, METRICS), "my study", args.launching())
    summary = list(summarise(rows, args.methods, METRICS))
    metrics = {
        "rows": rows,
        "summary": summary,
        "paired": list(paired(rows, args.methods, METRICS)),
    }
    return Result(metrics, {line["method"]: line["nll"]["mean"] for line in summary})


if __name__ == "__main__":
    launch(Args, main)
