"""Agents in a sequence of tasks: performance, forgetting and forward transfer, as Continual World has them.

Wołczyk et al. 2021, arXiv 2105.10919, section 4. Where environments tell success, p is its rate; else the return on a
scale of each task: 0 what random actions get, 1 the best that any agent of the rows had after any task.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.evaluation.statistics import interval, mean, stratified_interval
from mbrl_bilevel.studies.repeats import once, pairs, repeats

Array = npt.NDArray[np.float64]
#: What is said of a repeat.
SCORES = ("performance", "forgetting", "forward")


def agent_scores(rows: Sequence[Row], agents: Sequence[str], metric: str) -> Row:
    """``table``: each agent on each sequence, the scores of its repeats with intervals. ``against``: the first agent less
    each other one, paired by repeat, over all sequences.

    For T tasks and p_i(j) the performance in task j once task i was learned: ``performance`` is the mean over j of
    p_T(j), ``forgetting`` that over j < T of p_j(j) − p_T(j), and ``forward`` the mean of
    (AUC_j − AUC_j*) / (1 − AUC_j*), of the area under p while j was learned; AUC* is that of AGENT+alone of the same
    repeat. None where that was not run, or nothing was learned in turn.
    """
    found = {
        (name, sequence): _repeats(rows, name, sequence, metric)
        for sequence in (one["sequence"] for one in once(rows, "sequence"))
        for name in agents
    }
    table = [
        {"agent": name, "sequence": sequence, "metric": metric, **_of_all(mine.values())}
        for (name, sequence), mine in found.items()
        if mine
    ]
    return {"table": table, "against": list(_against(found, agents))}


def _repeats(rows: Sequence[Row], name: str, sequence: str, metric: str) -> dict[int, Row]:
    mine = repeats(rows, method=name, sequence=sequence)
    alone = repeats(rows, method=f"{name.partition('+')[0]}+alone", sequence=sequence)
    scale = _scale(rows, sequence, metric)
    return {
        seed: _scores(scale, row, alone.get(seed), metric, own=name.endswith("+alone"))
        for seed, row in mine.items()
    }


def _scores(
    scale: tuple[Array, Array], row: Mapping[str, Any], alone: Any, metric: str, own: bool
) -> Row:
    zero, one = scale
    p = (_array(row[metric]) - zero) / one
    last = p.diagonal().mean() if own else p[-1].mean()
    in_turn = bool(row[f"{metric}_curves"]) and not own
    lost = p.diagonal()[:-1] - p[-1, :-1]
    forward = None
    if in_turn and alone is not None:
        area, reference = (
            ((_array(each[f"{metric}_curves"]) - zero[:, None]) / one[:, None]).mean(1)
            for each in (row, alone)
        )
        room = np.maximum(1.0 - reference, 1e-6)
        forward = float(((area - reference) / room).mean())
    return {
        "performance": float(last),
        "forgetting": float(lost.mean()) if in_turn and len(lost) else None,
        "forward": forward,
    }


def _scale(rows: Sequence[Row], sequence: str, metric: str) -> tuple[Array, Array]:
    """What is 0 and how much is 1 in each task."""
    here = [row for row in rows if row["sequence"] == sequence]
    before = np.mean([_array(row[f"{metric}_before"]) for row in here], axis=0)
    if metric == "success":
        return np.zeros_like(before), np.ones_like(before)
    best = np.max([_array(row[metric]).max(0) for row in here], axis=0)
    return before, np.where(best > before, best - before, 1.0)


def _of_all(mine: Any) -> Row:
    found: Row = {}
    for name in SCORES:
        values = [one[name] for one in mine]
        found[name] = None if None in values else interval(values)
    return found


def _against(
    found: Mapping[tuple[str, str], dict[int, Row]], agents: Sequence[str]
) -> Iterator[Row]:
    first, *others = agents
    for other in others:
        line: Row = {"agent": first, "minus": other}
        for name in SCORES:
            strata = [
                [mine[name] - theirs[name] for mine, theirs in pairs(found[first, sequence], both)]
                for (agent, sequence), both in found.items()
                if agent == other and not _lacking(name, found[first, sequence], both)
            ]
            if strata:
                apart = stratified_interval(strata, mean)
                line[name] = {"mean": apart.estimate, "low": apart.low, "high": apart.high}
        yield line


def _lacking(name: str, *sides: Mapping[int, Row]) -> bool:
    first, second = sides
    both = pairs(first, second)
    return not both or any(None in (a[name], b[name]) for a, b in both)


def _array(values: Any) -> Array:
    return np.array(values, dtype=np.float64)
