"""The planners by name: values of one slot, ``planner.plan(score, state, generator)``."""

from __future__ import annotations

from agents.cem import CEM, ICEM
from agents.mppi import MPPI
from agents.planning import Planner
from agents.shooting import RandomShooting

__all__ = ["CEM", "ICEM", "MPPI", "PLANNERS", "Planner", "RandomShooting"]

#: What a command line calls each of them.
PLANNERS: dict[str, type[Planner]] = {
    "icem": ICEM,
    "cem": CEM,
    "mppi": MPPI,
    "random": RandomShooting,
}
