"""Train classifiers by several methods on the same rows of a table and compare them on the others.

Each repeat is a new split and a new initialisation; within it every method gets the same rows, the
same folds, the same network and the same number of gradient steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _args import naming, option_name
from _class_data import SETS, Classes, load, split
from _classify_figures import draw_differences, draw_learning_rates, draw_reliability, draw_rewards
from _pool import Cells, Done, run_cells
from _rows import Row
from _run import Result, RunArgs, RunFolder, launch
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from envs.datasets.tables import Missing, Text
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.evaluation.class_scores import class_scores
from mbrl_bilevel.evaluation.statistics import interval
from mbrl_bilevel.models.sklearn import BilevelClassifier
from mbrl_bilevel.training.class_methods import get_class_method
from mbrl_bilevel.training.fit import Schedule

#: Columns that are summarised; accuracies are the better the higher, the others the lower.
METRICS = ("accuracy", "balanced_accuracy", "nll", "ece", "brier")

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


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of classify."""

    data: tuple[str, ...] = ()
    """scikit-learn's own sets: wine, iris, breast_cancer, digits; all of them without --csv."""
    csv: tuple[Path, ...] = ()
    """Tables (.csv, .csv.gz, .npz) to classify."""
    target: str = "target"
    """The column of --csv that holds the class."""
    text: Text = "refuse"
    """one-hot: a column of --csv with text becomes one column for each of its values."""
    missing: Missing = "refuse"
    """drop: leave out rows of --csv that lack a value; fill: take the column's median, and say where."""
    methods: tuple[str, ...] = (
        "bilevel",
        "nll",
        "label-smoothing",
        "temperature-scaling",
        "logistic-regression",
        "hist-gradient-boosting",
    )
    """How the classifiers are trained: bilevel, bilevel-matrix, bilevel-lambda, nll,
    temperature-scaling, label-smoothing, smoothing-temperature, focal, pg-identity, pg-beta; and
    outside references: logistic-regression, logistic-regression-balanced, hist-gradient-boosting."""
    objective: str = "nll"
    """What the outer level wants: nll, balanced_accuracy, or costs as rows y of answers ŷ, such as
    "0,1;5,0". Methods without an outer level, and references, go on wanting likelihood."""
    n_train: tuple[int, ...] = (0,)
    """Numbers of training rows; 0 means four fifths of the table."""
    n_test: int = 3000
    """Test rows at most, of those not trained on."""
    seeds: int = 3
    """Repeats: --seed, --seed + 1, …"""
    jobs: int = 1
    """Processes, each with one thread; the rows are the same whatever their number."""
    members: int = 20
    """Ensemble members; of each five, each holds out another fifth of the rows."""
    hidden: tuple[int, ...] = (64,)
    """Width of each hidden layer."""
    train_steps: int = 600
    """Gradient steps at most; early stopping may end sooner."""
    batch_size: int = 64
    """Rows of a minibatch, per member."""
    learning_rate: tuple[float, ...] = (3e-3,)
    """Adam's step sizes at the start of the cosine; several make a figure of their range."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "train_steps", "batch_size", "n_test")
        self.require_at_least(1, "seeds", "jobs", "members", "hidden", most=100_000)
        self.require_at_least(0, "n_train")
        for name in ("methods", "n_train", "learning_rate"):
            values, option = getattr(self, name), option_name(name)
            if not values or len(set(values)) < len(values):
                raise InvalidInputError(f"{option}: give at least one value, and none twice")
        with naming("--methods"):
            for method in self.methods:
                if method not in REFERENCES:
                    get_class_method(method)
        if len(set(self.datasets)) < len(self.datasets):
            raise InvalidInputError("--data, --csv: two tables have the same name; rename one")
        for rate in self.learning_rate:
            Schedule(learning_rate=rate)
        _wanted(self.objective)

    def source(self, dataset: str) -> Path | None:
        """The table of that name; None for scikit-learn's own."""
        return next((path for path in self.csv if _name(path) == dataset), None)

    @property
    def datasets(self) -> tuple[str, ...]:
        """The names of the data in the rows."""
        return (*self.data, *map(_name, self.csv)) or tuple(SETS)


def _name(path: Path) -> str:
    return path.name.partition(".")[0]


def _wanted(objective: str) -> Any:
    """A name, or the cost matrix that ``objective`` spells. Raises InvalidInputError."""
    if objective in ("nll", "balanced_accuracy"):
        return objective
    try:
        return [[float(cost) for cost in row.split(",")] for row in objective.split(";")]
    except ValueError:
        raise InvalidInputError(
            f'--objective must be nll, balanced_accuracy or costs like "0,1;5,0"; got {objective!r}'
        ) from None


def main(args: Args, run: RunFolder) -> Result:
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
    rows = run_cells(run, args, cells, "classify", args.jobs)
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
        able = get_class_method(method).outer_other is not None
        estimator = BilevelClassifier(
            method,
            objective=_wanted(args.objective) if able else "nll",
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


def summarise(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Each method's scores on each data set and size."""
    for key in _once(rows, "method", "dataset", "n_train", "learning_rate"):
        mine = [row for row in rows if key.items() <= row.items()]
        names = (*METRICS, "train_seconds")
        yield key | {name: interval([row[name] for row in mine]) for name in names}


def paired(rows: Sequence[Row], methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The first method minus each other one: on each data set, and over all of them.

    Over all, a repeat's value is the mean of its differences over the data sets that both finished.
    """
    first, *others = methods
    for other in others:
        for key in _once(rows, "n_train", "learning_rate"):
            here = [row for row in rows if key.items() <= row.items()]
            datasets = [found["dataset"] for found in _once(here, "dataset")]
            for dataset in (*datasets, "all"):
                line = {"method": first, "minus": other, "dataset": dataset} | key
                for name in METRICS:
                    found = differences(here, first, other, name, dataset)
                    if found:
                        line[name] = interval(found)
                yield line


def differences(
    rows: Sequence[Row], first: str, other: str, name: str, dataset: str
) -> list[float]:
    """``first`` minus ``other``, a value a seed; ``dataset`` "all" takes the mean over data sets."""
    value = {(row["method"], row["dataset"], row["seed"]): row[name] for row in rows}
    by_seed: dict[int, list[float]] = {}
    for (method, where, seed), ours in value.items():
        theirs = value.get((other, where, seed))
        if method == first and theirs is not None and dataset in (where, "all"):
            by_seed.setdefault(seed, []).append(ours - theirs)
    return [float(np.mean(found)) for _, found in sorted(by_seed.items())]


def _once(rows: Sequence[Row], *names: str) -> list[dict[str, Any]]:
    """The different values of these columns, in order of appearance."""
    seen = dict.fromkeys(tuple(row[name] for name in names) for row in rows)
    return [dict(zip(names, values, strict=True)) for values in seen]


if __name__ == "__main__":
    launch(Args, main)
