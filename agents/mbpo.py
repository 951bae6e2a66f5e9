"""Model-based policy optimisation: the planning agent without a planner (Janner et al. 2019, algorithm 2).

Its policy acts; the learner gets imagined rows beside the real ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from agents.planners import Planner
from agents.planning_agent.agent import PlanningAgent
from agents.planning_agent.old_files import MBPO_AGENT
from agents.planning_agent.settings import PlanningSettings, RolloutLength, ValueSettings
from mbrl_bilevel.training.settings import Schedule

__all__ = ["MBPO", "MBPOSettings", "RolloutLength"]


@dataclass(frozen=True)
class MBPOSettings(PlanningSettings):
    """No plan; 95 % of each batch is imagined. With ``real_share`` 1 it is the learner alone, without a
    model."""

    schedule: Schedule = Schedule(steps=1500)
    learning_starts: int = 500
    refit_every: int = 250
    fresh_every: int = 1
    planner: Planner | None = None
    proposals: int = 0
    value: ValueSettings | Literal["critic"] | None = None
    real_share: float | Literal["auto"] = 0.05


class MBPO(PlanningAgent):
    """A planning agent that holds no planner: constructor and methods are those of ``PlanningAgent``."""

    _from_preset: ClassVar[bool] = False
    _settings: ClassVar[type[PlanningSettings]] = MBPOSettings
    _reads: ClassVar[tuple[str, ...]] = (MBPO_AGENT,)
