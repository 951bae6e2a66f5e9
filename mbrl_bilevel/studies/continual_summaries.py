"""What the matrices of several repeats say: forgetting and transfer of each method, and differences.

Definitions and signs: ``mbrl_bilevel.continual.sequence.Transfer``. Repeats of two methods share their data, so
differences are paired.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np

from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.continual.sequence import Better, Transfer, transfer
from mbrl_bilevel.evaluation.statistics import interval, mean, stratified_interval
from mbrl_bilevel.studies.repeats import number, once, pairs, repeats

PARTS = tuple(field.name for field in dataclasses.fields(Transfer))
_LOWER, _HIGHER = get_args(Better)
#: Metrics that are the better the higher; all others are errors.
HIGHER = ("return", "success", "accuracy")
#: Columns of a row in metrics.json: ``bwt_nll`` and so on.
_SHORT = {"backward": "bwt", "backward_all": "bwt_all", "forward": "fwt"}
#: Forgetting below this many nats per dimension is none, and no share of it can be removed.
_SOME = 0.05


def transfers(rows: Sequence[Row], method: str, sequence: str, metric: str) -> dict[int, Transfer]:
    """Of each repeat, by seed. Plasticity is against METHOD+alone, where that was run."""
    alone = method.partition("+")[0] + "+alone"
    references = repeats(rows, method=alone, sequence=sequence)
    found = {}
    for seed, row in repeats(rows, method=method, sequence=sequence).items():
        reference = references.get(seed)
        found[seed] = transfer(
            _array(row[metric]),
            _HIGHER if metric in HIGHER else _LOWER,
            before=_array(row[f"{metric}_before"]).tolist(),
            alone=None if reference is None else _array(reference[metric]).diagonal().tolist(),
        )
    return found


def scored(rows: Sequence[Row], metrics: Sequence[str]) -> dict[str, list[Row]]:
    """``rows``, where each repeat's matrices are told by the parts of ``Transfer``: forgetting_nll
    (−BWT), forgetting_max_nll, bwt_nll, …; and the ``matrices`` themselves, R[i][j] on task j after task i, beside what was
    before any learning."""
    told: list[Row] = []
    matrices: list[Row] = []
    for row in rows:
        key = {name: row[name] for name in ("method", "sequence", "seed")}
        line, large = dict(row), dict(key)
        for metric in metrics:
            large |= {name: line.pop(name) for name in (metric, f"{metric}_before")}
            found = transfers(rows, row["method"], row["sequence"], metric)[row["seed"]]
            line |= {
                f"{_SHORT.get(part, part)}_{metric}": value
                for part, value in dataclasses.asdict(found).items()
            }
        told.append(line)
        matrices.append(large)
    return {"rows": told, "matrices": matrices}


def summarise(rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]) -> Iterator[Row]:
    """Each method on each sequence: the parts of ``Transfer`` for each metric, with intervals; the KL from
    the policy before a task to that after it, and the seconds that a task took, both by task."""
    for sequence in sequences(rows):
        for method in methods:
            mine = repeats(rows, method=method, sequence=sequence).values()
            if not mine:
                continue
            first = next(iter(mine))
            line: Row = {"method": method, "sequence": sequence}
            for metric in metrics:
                found = transfers(rows, method, sequence, metric).values()
                line[metric] = {part: _interval(found, part) for part in PARTS}
            told = (name for name in ("moved", "kl_strength", "train_seconds") if name in first)
            for name in told:
                line[name] = np.mean([_array(row[name]) for row in mine], axis=0).tolist()
            yield line


def against(rows: Sequence[Row], methods: Sequence[str], metrics: Sequence[str]) -> Iterator[Row]:
    """The first method minus each other one, repeat by repeat, in the parts that both have; and over all
    sequences together."""
    first, *others = methods
    for other in others:
        strata: dict[tuple[str, str], list[list[float]]] = {}
        for sequence in sequences(rows):
            line: Row = {"method": first, "minus": other, "sequence": sequence}
            for metric in metrics:
                apart = _apart(rows, first, other, sequence, metric)
                line[metric] = {part: interval(values) for part, values in apart.items()}
                for part, values in apart.items():
                    strata.setdefault((metric, part), []).append(values)
            yield line
        pooled: Row = {"method": first, "minus": other, "sequence": "all"}
        for (metric, part), parts in strata.items():
            found = stratified_interval(parts, mean)
            entry = {"mean": found.estimate, "low": found.low, "high": found.high}
            pooled.setdefault(metric, {})[part] = entry
        yield pooled


def removed(rows: Sequence[Row], methods: Sequence[str], reference: str = "nll") -> Iterator[Row]:
    """The share of the forgetting of ``reference`` (fine-tuned likelihood) in NLL that each other method
    does not have, where there is some: 1 − mean / mean over repeats, with a bootstrap interval."""
    random = np.random.default_rng(0)
    for sequence in sequences(rows):
        base = transfers(rows, reference, sequence, "nll")
        for method in methods:
            mine = transfers(rows, method, sequence, "nll")
            both = pairs(base, mine)
            if method == reference or not both:
                continue
            theirs, ours = np.array([[part.forgetting or 0.0 for part in pair] for pair in both]).T
            if theirs.mean() < _SOME:
                continue
            draws = random.integers(len(both), size=(5000, len(both)))
            shares = 1.0 - ours[draws].mean(1) / theirs[draws].mean(1)
            low, high = np.quantile(shares, (0.025, 0.975)).tolist()
            yield {
                "method": method,
                "sequence": sequence,
                "forgetting": float(theirs.mean()),
                "removed": 1.0 - float(ours.mean() / theirs.mean()),
                "low": low if len(both) > 1 else None,
                "high": high if len(both) > 1 else None,
            }


def sequences(rows: Sequence[Row]) -> list[str]:
    """In the order in which they first come."""
    return [found["sequence"] for found in once(rows, "sequence")]


def _apart(
    rows: Sequence[Row], first: str, other: str, sequence: str, metric: str
) -> dict[str, list[float]]:
    both = pairs(*(transfers(rows, name, sequence, metric) for name in (first, other)))
    found: dict[str, list[float]] = {}
    for part in PARTS:
        values = [(getattr(ours, part), getattr(theirs, part)) for ours, theirs in both]
        if values and not any(None in pair for pair in values):
            found[part] = [a - b for a, b in values]
    return found


def _interval(found: Any, part: str) -> Any:
    values = [getattr(one, part) for one in found]
    return None if not values or None in values else interval(values)


def _array(values: Any) -> Any:
    """As rows.jsonl gives them back: what was not finite is null there."""
    return np.array(
        [list(map(number, one)) if isinstance(one, list) else number(one) for one in values]
    )
