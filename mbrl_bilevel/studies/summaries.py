"""What the rows of a comparison say: each method on each data set, differences, and all data together.

A stratum is one data set at one size; repeats of two methods share a split, so they are paired.
Definitions: Agarwal et al. 2021 (``mbrl_bilevel.evaluation.statistics``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.evaluation.statistics import (
    Interval,
    interquartile_mean,
    interval,
    mean,
    probability_of_improvement,
    stratified_interval,
)
from mbrl_bilevel.studies.repeats import number, once, pairs, repeats

#: Compared as ratios, since their units differ from one data set to the next.
RATIOS = (
    *("nrmse", "member_nrmse", "ncrps", "member_ncrps", "truth_nrmse"),
    *("task_rmse", "return_error"),
)
#: Compared as differences.
DIFFERENCES = (
    *("nll", "member_nll", "scaled_nll", "task_nll"),
    *("calibration_error", "member_calibration_error"),
)


def summarise(rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]) -> Iterator[Row]:
    """Each method on each data set at each size: mean, interquartile mean, interval.

    ``rows`` hold ``method``, ``dataset``, ``n_train`` (any number; the same for all, if there is one size),
    ``seed`` and each of ``metrics``; the values of a metric over the seeds become one ``interval``.
    """
    for stratum in strata(rows):
        for method in methods:
            mine = repeats(rows, method=method, **stratum).values()
            if mine:  # not all of its repeats failed
                found = {name: interval([number(row[name]) for row in mine]) for name in metrics}
                yield {"method": method} | stratum | found


def paired(rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]) -> Iterator[Row]:
    """The first of ``methods`` minus each other one, paired by seed: of errors, negative is better.

    ``rows`` and ``metrics`` as in ``summarise``; seeds that one of the two has not finished are left out.
    """
    first, *others = methods
    for stratum in strata(rows):
        for other in others:
            both = _both(rows, first, other, stratum)
            if both:
                apart = {
                    name: interval([number(a[name]) - number(b[name]) for a, b in both])
                    for name in metrics
                }
                yield {"method": first, "minus": other} | stratum | apart


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
            found = list(_values(rows, first, other, name))
            if not found:
                continue
            ratio = name in RATIOS
            apart = [np.log(a / b) if ratio else a - b for a, b in found]
            entry = _entry(stratified_interval(apart, mean), math.exp if ratio else float)
            entry["won"] = float(np.mean([stratum.mean() < 0.0 for stratum in apart]))
            entry["probability"] = _entry(probability_of_improvement(found), float)
            if not ratio:
                entry["iqm"] = _entry(stratified_interval(apart, interquartile_mean), float)
            line[name] = entry
            line["strata"] = max(line["strata"], len(found))
        yield line


def strata(rows: Sequence[Row]) -> list[Row]:
    """The ``dataset`` and ``n_train`` of each stratum, in the order in which they first come."""
    return once(rows, "dataset", "n_train")


def _both(rows: Sequence[Row], first: str, second: str, stratum: Row) -> list[Any]:
    """The rows of the repeats that both finished."""
    return pairs(*(repeats(rows, method=method, **stratum) for method in (first, second)))


def _values(rows: Sequence[Row], first: str, second: str, name: str) -> Iterator[tuple[Any, Any]]:
    """The values of both on the repeats where both have one, stratum by stratum."""
    for stratum in strata(rows):
        both = [(a.get(name), b.get(name)) for a, b in _both(rows, first, second, stratum)]
        whole = [values for values in both if None not in values]
        if whole:
            ours, theirs = np.array(whole).T
            yield ours, theirs


def _entry(found: Interval, scale: Any) -> Row:
    values = {"estimate": found.estimate, "low": found.low, "high": found.high}
    return {name: None if value is None else scale(value) for name, value in values.items()}
