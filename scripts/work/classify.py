"""What classify does, once its options are read."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from options.classify import Args, wanted
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.evaluation.class_scores import class_scores
from mbrl_bilevel.figures.classify import (
    draw_differences,
    draw_learning_rates,
    draw_reliability,
    draw_rewards,
)
from mbrl_bilevel.models.sklearn import BilevelClassifier
from mbrl_bilevel.studies.cells import Cells, Done, run_cells
from mbrl_bilevel.studies.class_summaries import METRICS, paired, summarise
from mbrl_bilevel.studies.launching import Result
from mbrl_bilevel.studies.run_folder import RunFolder
from mbrl_bilevel.training.class_methods import get_class_method
from work.class_data import Classes, load, split


def classify(args: Args, run: RunFolder) -> Result:
    """Fill in the rows that are missing, then summarise and draw."""
    for dataset in args.datasets:
        for n in args.n_train:
            split(_load(args, dataset), n, args.n_test, args.seed)
    keys: list[dict[str, Any]] = [
        {"method": method, "dataset": dataset, "seed": seed, "n_train": n, "learning_rate": rate}
        for seed in range(args.seed, args.seed + args.seeds)
        for dataset in args.datasets
        for n in args.n_train
        for rate in args.learning_rate
        for method in args.methods
    ]
    cells = Cells(keys, fit_cell, (*METRICS, "count", "confidence", "correct", "train_seconds"))
    rows = run_cells(run, args, cells, "classify", args.launching())
    summary = list(summarise(rows))
    figures = [
        draw_differences(run.figures, rows, args.methods),
        draw_reliability(run.figures, rows, args.methods),
        draw_rewards(run.figures, rows),
        draw_learning_rates(run.figures, rows, args.methods),
    ]
    metrics = {"rows": rows, "summary": summary, "paired": list(paired(rows, args.methods))}
    short = [
        {name: line[name] for name in ("method", "dataset", "n_train")}
        | {name: round(line[name]["mean"], 4) for name in ("accuracy", "nll", "ece")}
        for line in summary
    ]
    return Result(metrics, {"summary": short, "figures": [str(path) for path in figures if path]})


#: Outside references, at scikit-learn's own settings: seed -> an estimator.
REFERENCES: dict[str, Callable[[int], Any]] = {
    "logistic-regression": lambda seed: _logistic(None),
    "logistic-regression-balanced": lambda seed: _logistic("balanced"),
    "hist-gradient-boosting": lambda seed: HistGradientBoostingClassifier(random_state=seed),
}


def _logistic(class_weight: str | None) -> Any:
    return make_pipeline(
        StandardScaler(), LogisticRegression(max_iter=1000, class_weight=class_weight)
    )


def _load(args: Args, dataset: str) -> Classes:
    return load(dataset, args.source(dataset), args.target, args.text, args.missing)


def fit_cell(args: Args, key: Row) -> Done:
    """One classifier: its row, and the curves of its training."""
    method, seed, dataset = key["method"], key["seed"], key["dataset"]
    whole = _load(args, dataset)
    train, test = split(whole, key["n_train"], args.n_test, seed)
    estimator: Any
    if method in REFERENCES:
        estimator = REFERENCES[method](seed)
    else:
        able = get_class_method(method).other is not None
        estimator = BilevelClassifier(
            method,
            objective=wanted(args.objective) if able else "nll",
            hidden=args.hidden,
            members=args.members,
            steps=args.train_steps,
            batch_size=args.batch_size,
            learning_rate=key["learning_rate"],
            random_state=seed,
        )
    started = time.perf_counter()
    estimator.fit(train.x, train.y)
    seconds = time.perf_counter() - started
    probs = np.zeros((len(test.y), len(whole.labels)))
    probs[:, estimator.classes_] = estimator.predict_proba(test.x)
    row: dict[str, object] = asdict(class_scores(probs, test.y))
    row |= {"train_seconds": seconds}
    if not isinstance(estimator, BilevelClassifier):
        return Done(row)
    row |= {"steps": estimator.result_.steps, "outer": dict(estimator.result_.outer)}
    if hasattr(estimator, "reward_matrix_"):
        row |= {"reward_matrix": estimator.reward_matrix_, "labels": whole.labels}
    return Done(row, estimator.result_.history)
