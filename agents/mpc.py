"""Model-predictive control: the planning agent without a policy (PETS, Chua et al. 2018, algorithm 1).

It acts by plan alone, and where episodes can end a value fitted to experience stands behind the horizon.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.learners.no_learner import NoLearner
from agents.planners import ICEM, Planner
from agents.planning_agent.agent import PlanningAgent
from agents.planning_agent.old_files import MPC_AGENT
from agents.planning_agent.settings import PlanningSettings, ValueSettings
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.training.settings import Schedule

__all__ = ["MPC", "MPCSettings"]


@dataclass(frozen=True)
class MPCSettings(PlanningSettings):
    """Planning at every step, by iCEM, in a model fitted from scratch every 250 steps."""

    schedule: Schedule = Schedule(steps=1500)
    learning_starts: int = 250
    refit_every: int = 250
    fresh_every: int = 1
    planner: Planner | None = ICEM(horizon=15, population=64, iterations=3, elite_fraction=0.15)
    imagination: Imagination = Imagination()
    proposals: int = 0
    value: ValueSettings | Literal["critic"] | None = ValueSettings()
    exploration: float = 0.2
    replan_every: int = 1
    plan_share: float | Literal["auto"] = 1.0
    updates_per_step: int = 1


class MPC(PlanningAgent):
    """A planning agent that holds no learner: constructor and methods are those of ``PlanningAgent``."""

    _from_preset: ClassVar[bool] = False
    _settings: ClassVar[type[PlanningSettings]] = MPCSettings
    _algorithm: ClassVar[type[OffPolicyAlgorithm] | None] = NoLearner
    _reads: ClassVar[tuple[str, ...]] = (MPC_AGENT,)
