"""An MPC agent to and from one file; rules are code, never stored, and asked for again.

The file is a checkpoint of ``mbrl_bilevel.checkpoint``: model, experience, settings, random states.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from agents.mpc_settings import MPCSettings
from agents.planners import PLANNERS, Planner
from agents.spaces import ActionSpace
from agents.value import Value, ValueSettings, value_from_checkpoint, value_to_checkpoint
from mbrl_bilevel.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mbrl_bilevel.dynamics import DynamicsModel
from mbrl_bilevel.dynamics_checkpoint import model_from_checkpoint, model_to_checkpoint
from mbrl_bilevel.errors import CheckpointError, InvalidInputError
from mbrl_bilevel.fit import Schedule
from mbrl_bilevel.model_env import Imagination
from mbrl_bilevel.types import Rule, Transitions

_KIND = "mpc agent"
_PLANNERS: dict[str, type[Planner]] = {kind.__name__: kind for kind in PLANNERS.values()}


@dataclass(frozen=True)
class Spaces:
    """What an environment must share with the one that the agent was trained in.

    Of discrete actions the bounds are those of their one-hot vectors, and ``first_action`` is the
    number of the first; None of a box (and not in the files of version 0.1).
    """

    obs_dim: int
    action_low: list[float]
    action_high: list[float]
    first_action: int | None = None


def spaces_of(observation: gym.spaces.Box, action: ActionSpace) -> Spaces:
    """What the file says of an environment's spaces."""
    width = int(observation.shape[0])
    if isinstance(action, gym.spaces.Discrete):
        choices = int(action.n)
        return Spaces(width, [0.0] * choices, [1.0] * choices, int(action.start))
    return Spaces(width, action.low.tolist(), action.high.tolist())


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
    save_checkpoint(path, _KIND, tensors, config)


def read_snapshot(
    path: str | Path, spaces: Spaces, termination: Rule | None, reward: Rule | None
) -> Snapshot:
    """The agent in ``path``, for an environment of these ``spaces``.

    Raises CheckpointError if the file is damaged, of another environment, or lacks a rule.
    """
    checkpoint = load_checkpoint(path, _KIND)
    rules = tuple(str(name) for name in checkpoint.setting("rules", list))
    given = {"termination": termination, "reward": reward}
    for name in rules:
        if given.get(name) is None:
            raise CheckpointError(
                f"checkpoint {path}: the agent was trained with a known {name}; "
                f"pass {name}= to load()"
            )
    _check_spaces(checkpoint, spaces)
    first_planned = None
    if checkpoint.config.get("first_planned") is not None:
        first_planned = _count(checkpoint, "first_planned")
    model = experience = value = None
    if checkpoint.config.get("model") is not None:
        model = model_from_checkpoint(checkpoint, "model", termination, reward)
        _check_widths(checkpoint, spaces, model.obs_dim, model.policy.inputs - model.obs_dim)
    if checkpoint.config.get("value") is not None:
        value = value_from_checkpoint(checkpoint, "value", spaces.obs_dim)
    if checkpoint.setting("has_experience", bool):
        experience = _experience(checkpoint)
        _check_widths(checkpoint, spaces, experience.obs.shape[1], experience.action.shape[1])
    return Snapshot(
        settings=_settings_from_json(checkpoint),
        spaces=spaces,
        rules=rules,
        seed=_count(checkpoint, "seed"),
        num_timesteps=_count(checkpoint, "num_timesteps"),
        episodes=_count(checkpoint, "episodes"),
        fitted_on=_count(checkpoint, "fitted_on"),
        first_planned=first_planned,
        generator=checkpoint.require("generator", dtype=torch.uint8),
        noise=checkpoint.setting("noise", dict),
        experience=experience,
        model=model,
        value=value,
    )


def _count(checkpoint: Checkpoint, name: str) -> int:
    value = checkpoint.setting(name, int)
    if not 0 <= value < 2**62:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its {name} is {value}; restore a good copy or save it again"
        )
    return value


def _check_spaces(checkpoint: Checkpoint, spaces: Spaces) -> None:
    saved = checkpoint.setting("spaces", dict)
    for name, value in asdict(spaces).items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"checkpoint {checkpoint.path}: it is of another environment: its {name} is "
                f"{saved.get(name)}, this env has {value}; load it with the env it was made for"
            )


def _check_widths(checkpoint: Checkpoint, spaces: Spaces, obs_dim: int, actions: int) -> None:
    """Of the model and of the experience: both must be of the environment's spaces."""
    if (obs_dim, actions) != (spaces.obs_dim, len(spaces.action_low)):
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its parts do not fit each other; "
            "restore a good copy or save it again"
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
