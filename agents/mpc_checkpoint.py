"""An MPC agent to and from one file; rules are code, never stored, and asked for again.

The file is a checkpoint of ``mbrl_bilevel.checkpoint``: model, experience, settings, random states.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agents.common.saved import Spaces, check_spaces, check_widths, count_of, rules_of
from agents.mpc_settings import MPCSettings
from agents.planners import PLANNERS, Planner
from agents.planning_agent.terminal_value import (
    Value,
    ValueSettings,
    value_from_checkpoint,
    value_to_checkpoint,
)
from mbrl_bilevel.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mbrl_bilevel.dynamics import DynamicsModel
from mbrl_bilevel.dynamics_checkpoint import model_from_checkpoint, model_to_checkpoint
from mbrl_bilevel.errors import CheckpointError, InvalidInputError
from mbrl_bilevel.fit import Schedule
from mbrl_bilevel.model_env import Imagination
from mbrl_bilevel.types import Rule, Transitions

#: What the file says it holds.
MPC_AGENT = "mpc agent"
_PLANNERS: dict[str, type[Planner]] = {kind.__name__: kind for kind in PLANNERS.values()}


@dataclass(frozen=True)
class Snapshot:
    """All of an agent that its file holds.

    ``rules`` names those it was trained with; ``generator`` and ``noise`` are the states of its
    random generators (PyTorch's and NumPy's).
    """

    settings: MPCSettings
    spaces: Spaces
    rules: tuple[str, ...]
    seed: int
    num_timesteps: int
    episodes: int
    fitted_on: int
    first_planned: int | None
    generator: Tensor
    noise: dict[str, Any]
    experience: Transitions | None
    model: DynamicsModel | None
    value: Value | None


def write_snapshot(path: str | Path, snapshot: Snapshot) -> None:
    """Write ``snapshot`` atomically. Raises InvalidInputError for a planner that load cannot make."""
    tensors: dict[str, Any] = {"generator": snapshot.generator}
    config: dict[str, Any] = {
        "settings": _settings_to_json(snapshot.settings),
        "spaces": asdict(snapshot.spaces),
        "rules": list(snapshot.rules),
        "seed": snapshot.seed,
        "num_timesteps": snapshot.num_timesteps,
        "episodes": snapshot.episodes,
        "fitted_on": snapshot.fitted_on,
        "first_planned": snapshot.first_planned,
        "noise": snapshot.noise,
        "has_experience": snapshot.experience is not None,
        "model": None,
        "value": None,
    }
    if snapshot.experience is not None:
        for name, value in vars(snapshot.experience).items():
            tensors[f"experience.{name}"] = value
    if snapshot.model is not None:
        parts, config["model"] = model_to_checkpoint(snapshot.model)
        tensors |= {f"model.{name}": value for name, value in parts.items()}
    if snapshot.value is not None:
        parts, config["value"] = value_to_checkpoint(snapshot.value)
        tensors |= {f"value.{name}": value for name, value in parts.items()}
    save_checkpoint(path, MPC_AGENT, tensors, config)


def read_snapshot(
    path: str | Path, spaces: Spaces, termination: Rule | None, reward: Rule | None
) -> Snapshot:
    """The agent in ``path``, for an environment of these ``spaces``.

    Raises CheckpointError if the file is damaged, of another environment, or lacks a rule.
    """
    checkpoint = load_checkpoint(path, MPC_AGENT)
    rules = rules_of(checkpoint, termination, reward)
    check_spaces(checkpoint, spaces)
    first_planned = None
    if checkpoint.config.get("first_planned") is not None:
        first_planned = count_of(checkpoint, "first_planned")
    model = experience = value = None
    if checkpoint.config.get("model") is not None:
        model = model_from_checkpoint(checkpoint, "model", termination, reward)
        check_widths(checkpoint, spaces, model.obs_dim, model.policy.inputs - model.obs_dim)
    if checkpoint.config.get("value") is not None:
        value = value_from_checkpoint(checkpoint, "value", spaces.obs_dim)
    if checkpoint.setting("has_experience", bool):
        experience = _experience(checkpoint)
        check_widths(checkpoint, spaces, experience.obs.shape[1], experience.action.shape[1])
    return Snapshot(
        settings=_settings_from_json(checkpoint),
        spaces=spaces,
        rules=rules,
        seed=count_of(checkpoint, "seed"),
        num_timesteps=count_of(checkpoint, "num_timesteps"),
        episodes=count_of(checkpoint, "episodes"),
        fitted_on=count_of(checkpoint, "fitted_on"),
        first_planned=first_planned,
        generator=checkpoint.require("generator", dtype=torch.uint8),
        noise=checkpoint.setting("noise", dict),
        experience=experience,
        model=model,
        value=value,
    )


def _experience(checkpoint: Checkpoint) -> Transitions:
    columns = {
        name.removeprefix("experience."): tensor.numpy()
        for name, tensor in checkpoint.tensors.items()
        if name.startswith("experience.")
    }
    try:
        return Transitions(**columns)
    except (TypeError, InvalidInputError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its experience is damaged: {error}"
        ) from None


def _settings_to_json(settings: MPCSettings) -> dict[str, Any]:
    kind = type(settings.planner)
    if kind not in _PLANNERS.values():
        raise InvalidInputError(
            f"an agent with a planner of type {kind.__name__} cannot be saved; "
            f"use one of {', '.join(sorted(_PLANNERS))}"
        )
    return asdict(settings) | {"planner_kind": kind.__name__}


def _settings_from_json(checkpoint: Checkpoint) -> MPCSettings:
    config = dict(checkpoint.setting("settings", dict))
    try:
        value = config.pop("value")
        planner = _PLANNERS[config.pop("planner_kind")](**config.pop("planner"))
        return MPCSettings(
            planner=planner,
            imagination=Imagination(**config.pop("imagination")),
            schedule=Schedule(**config.pop("schedule")),
            hidden=tuple(config.pop("hidden")),
            value=None if value is None else ValueSettings(**value),
            **config,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its settings are damaged: {error}"
        ) from None
