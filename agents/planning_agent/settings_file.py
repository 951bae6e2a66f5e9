"""The settings of an agent to and from JSON: what a file of an agent holds of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from agents.planners import PLANNERS, Planner
from agents.planning_agent.settings import PlanningSettings, RolloutLength, ValueSettings
from mbrl_bilevel.base.errors import CheckpointError, InvalidInputError
from mbrl_bilevel.imagination.settings import Branching, Imagination
from mbrl_bilevel.training.settings import Schedule, WarmStart


def _planners() -> dict[str, type[Planner]]:
    return {kind.__name__: kind for kind in PLANNERS.values()}


def settings_to_json(settings: PlanningSettings) -> dict[str, Any]:
    """Raises InvalidInputError for a planner that ``settings_from_json`` cannot make."""
    if settings.planner is None:
        return asdict(settings)
    kind = type(settings.planner)
    if kind not in PLANNERS.values():
        raise InvalidInputError(
            f"an agent with a planner of type {kind.__name__} cannot be saved; "
            f"register it by register_planner, or use one of {', '.join(sorted(_planners()))}"
        )
    return asdict(settings) | {"planner_kind": kind.__name__}


def settings_from_json(
    path: object, kind: type[PlanningSettings], config: Mapping[str, Any]
) -> PlanningSettings:
    """Settings of class ``kind``. Raises CheckpointError for what cannot be any."""
    config = dict(config)
    try:
        planner, planner_kind = config.pop("planner"), config.pop("planner_kind", None)
        value = config.pop("value")
        return kind(
            planner=None if planner is None else _planners()[planner_kind](**planner),
            imagination=Imagination(**config.pop("imagination")),
            schedule=Schedule(**config.pop("schedule")),
            hidden=tuple(config.pop("hidden")),
            rollout=RolloutLength(**config.pop("rollout")),
            branching=Branching(**config.pop("branching")),
            # Files of before it was a choice have none.
            warm_start=WarmStart(**config.pop("warm_start", {})),
            value=ValueSettings(**value) if isinstance(value, dict) else value,
            **config,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: its settings are damaged: {error}") from None
