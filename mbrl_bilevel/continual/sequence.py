"""A sequence of tasks learned one after another, and what is forgotten, kept and passed on.

R[i, j] is the metric on task j after learning task i (Lopez-Paz & Ranzato 2017, arXiv 1706.08840, sec. 2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from mbrl_bilevel.base.errors import InvalidInputError

Array = npt.NDArray[np.float64]
#: Errors and NLL are the better the lower, returns and accuracies the higher.
Better = Literal["lower", "higher"]

Model = TypeVar("Model")
Task = TypeVar("Task")


@dataclass(frozen=True)
class Transfer:
    """What a matrix R of T tasks says; averages over tasks, in the metric's own units.

    ``final``: mean of the last row. ``learning``: mean of the diagonal, each task just after it was
    learned. Both keep the metric's own direction. The others are turned (s = 1 where higher is
    better, −1 where lower is) so that their sign means the same for every metric:

    - ``backward``, negative where something was lost: the mean over j < T of s(R[T, j] − R[j, j])
      (Lopez-Paz & Ranzato 2017, eq. 3).
    - ``forgetting``, positive where something was lost: −``backward``, as in avalanche-lib.
    - ``forgetting_max``, positive where something was lost: the mean over j < T of
      max_{i<T} sR[i, j] − sR[T, j], what was best before against what is left (the forgetting measure
      of Chaudhry et al. 2018, arXiv 1801.10112, at k = T). It is never below ``forgetting``.
    - ``backward_all``: the same over all pairs j < i, s(R[i, j] − R[j, j]), so that what was lost and
      learned again counts (BWT of Díaz-Rodríguez et al. 2018, arXiv 1810.13166).
    - ``forward``, positive where earlier tasks help before task j is seen: the mean over j > 1 of
      s(R[j−1, j] − b[j]), b the metric before any learning (Lopez-Paz & Ranzato 2017, eq. 4).
    - ``plasticity``, negative where the past hinders learning: the mean of s(R[j, j] − c[j]), c the
      metric of a model that learned task j alone, from scratch. With a jointly trained c it is the
      negative of the intransigence of Chaudhry et al. 2018, averaged over tasks.

    None where there is one task only, or b or c was not given. What is not finite in R stays so here.
    """

    final: float
    learning: float
    forgetting: float | None
    forgetting_max: float | None
    backward: float | None
    backward_all: float | None
    forward: float | None
    plasticity: float | None


def transfer(
    matrix: npt.ArrayLike,
    better: Better,
    *,
    before: Sequence[float] | None = None,
    alone: Sequence[float] | None = None,
) -> Transfer:
    """Forgetting and transfer in ``matrix``, R [T, T]: the score on task j after task i, in row i and column j.

    ``better`` says which scores are good, "lower" or "higher". ``before`` [T] and ``alone`` [T] are b and c of
    ``Transfer``.

    Raises InvalidInputError for another shape, or a direction that is none.
    """
    r = np.asarray(matrix, dtype=np.float64)
    if r.ndim != 2 or r.shape[0] != r.shape[1] or not r.size:
        raise InvalidInputError(f"matrix must be [T, T] with T >= 1; got {r.shape}")
    if better not in ("lower", "higher"):
        raise InvalidInputError(f'better must be "lower" or "higher"; got {better!r}')
    sign, tasks = 1.0 if better == "higher" else -1.0, len(r)
    starts, references = _row(before, "before", tasks), _row(alone, "alone", tasks)
    s = sign * r
    learned = s.diagonal()
    later, earlier = np.tril_indices(tasks, -1)
    many = tasks > 1
    backward = float((s[-1, :-1] - learned[:-1]).mean()) if many else None
    return Transfer(
        final=float(r[-1].mean()),
        learning=float(r.diagonal().mean()),
        forgetting=None if backward is None else 0.0 - backward,
        forgetting_max=float((s[:-1, :-1].max(0) - s[-1, :-1]).mean()) if many else None,
        backward=backward,
        backward_all=float((s[later, earlier] - learned[earlier]).mean()) if many else None,
        forward=float((s.diagonal(1) - sign * starts[1:]).mean())
        if many and starts is not None
        else None,
        plasticity=float((learned - sign * references).mean()) if references is not None else None,
    )


@dataclass(frozen=True)
class Run:
    """What ``run`` found: by the name of each metric its matrix R [T, T], and ``before`` [T], its
    values for the model that had learned nothing. ``model`` is the last one."""

    matrices: Mapping[str, Array]
    before: Mapping[str, Array]
    model: object


def run(
    tasks: Sequence[Task],
    start: Model,
    fit_task: Callable[[Model, Task], Model],
    evaluate: Callable[[Model, Task], Mapping[str, float]],
) -> Run:
    """Learn ``tasks`` in their order, from ``start``, and evaluate on every task after each.

    ``fit_task(model, task)`` returns the model that has learned the task as well; what a method keeps
    of earlier tasks (a memory, a penalty, a reference) is part of its model. It must leave the model it
    is given as it was. ``evaluate(model, task)`` gives the named metrics on test data that ``fit_task``
    does not see. Raises InvalidInputError without tasks, and what these two raise.
    """
    if not tasks:
        raise InvalidInputError("run: give at least one task")
    rows, model = [[evaluate(start, task) for task in tasks]], start
    for task in tasks:
        model = fit_task(model, task)
        rows.append([evaluate(model, seen) for seen in tasks])
    names = rows[0][0]
    table = {
        name: np.array([[float(found[name]) for found in row] for row in rows]) for name in names
    }
    return Run(
        {name: values[1:] for name, values in table.items()},
        {name: values[0] for name, values in table.items()},
        model,
    )


def _row(values: Sequence[float] | None, name: str, tasks: int) -> Array | None:
    if values is None:
        return None
    found = np.asarray(values, dtype=np.float64)
    if found.shape != (tasks,):
        raise InvalidInputError(f"{name} must be [T] = ({tasks},); got {found.shape}")
    return found
