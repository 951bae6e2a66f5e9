"""Planners, and agents that learn by planning.

What a user needs is exported here and loads on first use: ``from agents import MPC``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mbrl_bilevel.base.lazy import exports

if TYPE_CHECKING:
    from agents.cloning import Clone as Clone
    from agents.cloning import fit_clone as fit_clone
    from agents.common.experience import RandomBehaviour as RandomBehaviour
    from agents.common.experience import collect as collect
    from agents.learners.fast_sac import FastSAC as FastSAC
    from agents.mbpo import MBPO as MBPO
    from agents.mbpo import MBPOSettings as MBPOSettings
    from agents.mpc import MPC as MPC
    from agents.mpc import MPCSettings as MPCSettings
    from agents.planners import CEM as CEM
    from agents.planners import ICEM as ICEM
    from agents.planners import MPPI as MPPI
    from agents.planners import PLANNERS as PLANNERS
    from agents.planners import Planner as Planner
    from agents.planners import RandomShooting as RandomShooting
    from agents.planners import register_planner as register_planner
    from agents.planning_agent.agent import PlanningAgent as PlanningAgent
    from agents.planning_agent.settings import PlanningSettings as PlanningSettings
    from agents.planning_agent.settings import RolloutLength as RolloutLength
    from agents.planning_agent.settings import ValueSettings as ValueSettings
    from agents.presets import named_preset as named_preset
    from agents.presets import preset_for as preset_for
    from agents.side_by_side import learn_side_by_side as learn_side_by_side
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "agents.cloning": ("Clone", "fit_clone"),
            "agents.common.experience": ("RandomBehaviour", "collect"),
            "agents.learners.fast_sac": ("FastSAC",),
            "agents.mbpo": ("MBPO", "MBPOSettings"),
            "agents.mpc": ("MPC", "MPCSettings"),
            "agents.planners": (
                "CEM",
                "ICEM",
                "MPPI",
                "PLANNERS",
                "Planner",
                "RandomShooting",
                "register_planner",
            ),
            "agents.planning_agent.agent": ("PlanningAgent",),
            "agents.planning_agent.settings": (
                "PlanningSettings",
                "RolloutLength",
                "ValueSettings",
            ),
            "agents.presets": ("named_preset", "preset_for"),
            "agents.side_by_side": ("learn_side_by_side",),
        },
    )
