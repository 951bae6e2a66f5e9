"""What the rows of a comparison say: each method on each data set, differences, and all data together.

A stratum is one data set at one size; repeats of two methods share a split, so they are paired.
Definitions: Agarwal et al. 2021 (``mbrl_bilevel.evaluation.statistics``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from mbrl_bilevel.evaluation.statistics import (
    Interval,
    interquartile_mean,
    interval,
    mean,
    probability_of_improvement,
    stratified_interval,
)
from mbrl_bilevel.studies.rows import Row

#: Compared as ratios, since their units differ from one data set to the next.
RATIOS = ("nrmse", "member_nrmse", "ncrps", "member_ncrps", "truth_nrmse")
#: Compared as differences.
DIFFERENCES = (
    *("nll", "member_nll", "scaled_nll"),
    *("calibration_error", "member_calibration_error"),
)


def summarise(rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]) -> Iterator[Row]:
    """Each method on each data set at each size: mean, interquartile mean, interval.

    ``rows`` hold ``method``, ``dataset``, ``n_train`` (any number; the same for all, if there is one size),
    ``seed`` and each of ``metrics``; the values of a metric over the seeds become one ``interval``.
    """
    for dataset, n in strata(rows):
        for method in methods:
            mine = list(_of(rows, method, dataset, n).values())
            if mine:  # not all of its repeats failed
                line: Row = {"method": method, "dataset": dataset, "n_train": n}
                yield line | {name: interval(_numbers(r[name] for r in mine)) for name in metrics}


def paired(rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]) -> Iterator[Row]:
    """The first of ``methods`` minus each other one, paired by seed: of errors, negative is better.

    ``rows`` and ``metrics`` as in ``summarise``; seeds that one of the two has not finished are left out.
    """
    first, *others = methods
    for dataset, n in strata(rows):
        for other in others:
            ours, theirs = (_of(rows, m, dataset, n) for m in (first, other))
            both = sorted(ours.keys() & theirs.keys())  # a repeat may have failed for one
            if not both:
                continue
            line: Row = {"method": first, "minus": other, "dataset": dataset, "n_train": n}
            for name in metrics:
                a, b = (_numbers(side[seed][name] for seed in both) for side in (ours, theirs))
                line[name] = interval([x - y for x, y in zip(a, b, strict=True)])
            yield line


def pooled(rows: Sequence[Row], methods: Sequence[str]) -> Iterator[Row]:
    """The first method against each other one over all data sets and sizes.

    For errors and CRPS the geometric mean of the ratios of repeats, for likelihoods and calibration
    the mean difference, both with stratified intervals; for likelihoods also the interquartile mean
    of the differences, which single catastrophes do not move; the share of strata in which the first is
    better on average; and the probability that it is, on a new repeat.
    """
    first, *others = methods
    for other in others:
        line: Row = {"method": first, "against": other, "strata": 0}
        for name in (*RATIOS, *DIFFERENCES):
            pairs = list(_pairs(rows, first, other, name))
            if not pairs:
                continue
            ratio = name in RATIOS
            apart = [np.log(a / b) if ratio else a - b for a, b in pairs]
            found = stratified_interval(apart, mean)
            entry = _entry(found, math.exp if ratio else float)
            entry["won"] = float(np.mean([stratum.mean() < 0.0 for stratum in apart]))
            entry["probability"] = _entry(probability_of_improvement(pairs), float)
            if not ratio:
                entry["iqm"] = _entry(stratified_interval(apart, interquartile_mean), float)
            line[name] = entry
            line["strata"] = max(line["strata"], len(pairs))
        yield line


def strata(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """The (data set, size)s in the order in which they first come."""
    return list(dict.fromkeys((row["dataset"], row["n_train"]) for row in rows))


def _pairs(rows: Sequence[Row], first: str, second: str, name: str) -> Iterator[tuple[Any, Any]]:
    """The values of both on the repeats that both finished, stratum by stratum."""
    for dataset, n in strata(rows):
        ours, theirs = (_of(rows, m, dataset, n) for m in (first, second))
        both = sorted(ours.keys() & theirs.keys())
        sides = [[side[seed].get(name) for seed in both] for side in (ours, theirs)]
        whole = [None not in pair for pair in zip(*sides, strict=True)]
        if any(whole):
            yield tuple(np.array([v for v, ok in zip(s, whole, strict=True) if ok]) for s in sides)  # type: ignore[misc]


def _entry(found: Interval, scale: Any) -> Row:
    values = {"estimate": found.estimate, "low": found.low, "high": found.high}
    return {name: None if value is None else scale(value) for name, value in values.items()}


def _of(rows: Sequence[Row], method: str, dataset: str, n: int) -> dict[int, Row]:
    """The repeats of one method, by seed."""
    return {
        row["seed"]: row
        for row in rows
        if (row["method"], row["dataset"], row["n_train"]) == (method, dataset, n)
    }


def _numbers(values: Iterable[float | None]) -> list[float]:
    """As rows.jsonl gives them back: what was not finite is null there."""
    return [math.nan if value is None else value for value in values]
