"""The planners by name: values of one slot, ``planner.plan(score, state, generator)``."""

from __future__ import annotations

from agents.planners.base import Planner
from agents.planners.cem import CEM, ICEM
from agents.planners.mppi import MPPI
from agents.planners.shooting import RandomShooting
from mbrl_bilevel.base.errors import InvalidInputError

__all__ = ["CEM", "ICEM", "MPPI", "PLANNERS", "Planner", "RandomShooting", "register_planner"]

#: What a command line calls each of them.
PLANNERS: dict[str, type[Planner]] = {
    "icem": ICEM,
    "cem": CEM,
    "mppi": MPPI,
    "random": RandomShooting,
}


def register_planner(name: str, kind: type[Planner]) -> None:
    """Make a planner of your own known under ``name``: in presets, and to files of agents that have it.

    ``kind`` is a frozen dataclass that extends Planner by ``search``. Raises InvalidInputError where it lacks
    that, is no Planner, or has the name of another.
    """
    if not (isinstance(kind, type) and issubclass(kind, Planner)):
        raise InvalidInputError(
            f"planner {name!r}: give a class that extends Planner; got {kind!r}"
        )
    missing = sorted(kind.__abstractmethods__)
    if missing:
        raise InvalidInputError(
            f"planner {name!r}: {kind.__name__} has no {missing[0]}(score, state, generator, proposals), "
            "which makes the plan; examples/my_planner.py has all that is needed"
        )
    for known, other in PLANNERS.items():
        if known == name or other.__name__ == kind.__name__:
            raise InvalidInputError(
                f"there is a planner {known!r} of class {other.__name__} already; choose another name"
            )
    PLANNERS[name] = kind
