"""The planners by name: values of one slot, ``planner.plan(score, state, generator)``."""

from __future__ import annotations

from agents.planners.base import Planner
from agents.planners.cem import CEM, ICEM
from agents.planners.mppi import MPPI
from agents.planners.shooting import RandomShooting

__all__ = ["CEM", "ICEM", "MPPI", "PLANNERS", "Planner", "RandomShooting"]

#: What a command line calls each of them.
PLANNERS: dict[str, type[Planner]] = {
    "icem": ICEM,
    "cem": CEM,
    "mppi": MPPI,
    "random": RandomShooting,
}
