"""Planners at an equal number of candidate plans."""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

from agents.planners import CEM, PLANNERS, Planner
from mbrl_bilevel.base.errors import InvalidInputError


def planner_within(
    plans: int, kind: str, *, horizon: int, iterations: int, noise_beta: float, **of_cem: Any
) -> Planner:
    """The planner ``kind`` with the largest population whose plan costs at most ``plans`` candidates;
    ``of_cem``: what CEM and iCEM take besides.

    Raises InvalidInputError where that is fewer than a candidate an iteration.
    """
    more: dict[str, Any] = {} if kind == "random" else {"iterations": iterations}
    if issubclass(PLANNERS[kind], CEM):
        more |= of_cem
    if kind == "icem":
        more["noise_beta"] = noise_beta

    def sized(population: int) -> Planner:
        return PLANNERS[kind](horizon=horizon, population=population, **more)

    sizes = range(1, plans + 1)
    population = bisect_right(sizes, plans, key=lambda n: sum(sized(n).populations()))
    if population == 0:
        raise InvalidInputError(
            f"--plans must be at least --iterations ({iterations}), a candidate each; got {plans}"
        )
    return sized(population)
