"""What the rows of classify say: each method on each table, and paired differences.

Repeats of two methods share a split, so they are paired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.evaluation.statistics import interval
from mbrl_bilevel.studies.repeats import once, pairs, repeats

#: Columns that are summarised; accuracies are the better the higher, the others the lower.
METRICS = ("accuracy", "balanced_accuracy", "nll", "ece", "brier")


def summarise(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Each method's scores on each data set and size."""
    for key in once(rows, "method", "dataset", "n_train", "learning_rate"):
        mine = [row for row in rows if key.items() <= row.items()]
        names = (*METRICS, "train_seconds")
        yield key | {name: interval([row[name] for row in mine]) for name in names}


def paired(rows: Sequence[Row], methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The first method minus each other one: on each data set, and over all of them.

    Over all, a repeat's value is the mean of its differences over the data sets that both finished.
    """
    first, *others = methods
    for other in others:
        for key in once(rows, "n_train", "learning_rate"):
            here = [row for row in rows if key.items() <= row.items()]
            datasets = [found["dataset"] for found in once(here, "dataset")]
            for dataset in (*datasets, "all"):
                line = {"method": first, "minus": other, "dataset": dataset} | key
                for name in METRICS:
                    found = differences(here, first, other, name, dataset)
                    if found:
                        line[name] = interval(found)
                yield line


def differences(
    rows: Sequence[Mapping[str, Any]], first: str, other: str, name: str, dataset: str
) -> list[float]:
    """``first`` minus ``other``, a value a seed; ``dataset`` "all" takes the mean over data sets."""
    by_seed: dict[int, list[float]] = {}
    for where in once(rows, "dataset"):
        if dataset in (where["dataset"], "all"):
            for ours, theirs in pairs(*(repeats(rows, method=m, **where) for m in (first, other))):
                by_seed.setdefault(ours["seed"], []).append(ours[name] - theirs[name])
    return [float(np.mean(found)) for _, found in sorted(by_seed.items())]
