"""Planners and agents that learn by planning; the exported names load on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agents.learners.fast_sac import FastSAC
    from agents.mbpo import MBPO, MBPOSettings
    from agents.mpc import MPC, MPCSettings
    from agents.planning_agent.agent import PlanningAgent
    from agents.planning_agent.settings import PlanningSettings

_HOMES = {
    "FastSAC": "agents.learners.fast_sac",
    "MBPO": "agents.mbpo",
    "MBPOSettings": "agents.mbpo",
    "MPC": "agents.mpc",
    "MPCSettings": "agents.mpc",
    "PlanningAgent": "agents.planning_agent.agent",
    "PlanningSettings": "agents.planning_agent.settings",
}

__all__ = [
    "MBPO",
    "MPC",
    "FastSAC",
    "MBPOSettings",
    "MPCSettings",
    "PlanningAgent",
    "PlanningSettings",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'agents' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
