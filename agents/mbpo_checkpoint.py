"""An MBPO agent to and from one file: no pickle; rules and objects are code, and asked for again.

The file is a checkpoint of ``mbrl_bilevel.checkpoint``: the held algorithm, the model, both rings of the
replay, settings, random states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor

from agents.common.randomness import States
from agents.common.saved import Spaces, check_spaces, check_widths, count_of, rules_of
from agents.learners.held import algorithm_class, storable
from agents.mbpo_settings import MBPOSettings, RolloutLength
from agents.planning_agent.replay import MixedReplay, Ring
from mbrl_bilevel.branches import Branching
from mbrl_bilevel.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mbrl_bilevel.dynamics import DynamicsModel
from mbrl_bilevel.dynamics_checkpoint import model_from_checkpoint, model_to_checkpoint
from mbrl_bilevel.errors import CheckpointError
from mbrl_bilevel.fit import Schedule
from mbrl_bilevel.types import Rule

#: What the file says it holds.
MBPO_AGENT = "mbpo agent"


@dataclass(frozen=True)
class Made:
    """What an agent is made with; ``algorithm_kwargs`` includes what a file cannot hold."""

    settings: MBPOSettings
    algorithm: type[OffPolicyAlgorithm]
    algorithm_kwargs: Mapping[str, Any]
    spaces: Spaces
    rules: tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Progress:
    """How far it has come: real steps at the last fit and at the last imagination, stretches of
    learning begun, updates made offline."""

    fitted_on: int = 0
    imagined_on: int = 0
    stretches: int = 0
    offline_updates: int = 0


def write_agent(
    path: str | Path,
    made: Made,
    progress: Progress,
    experience: MixedReplay,
    model: DynamicsModel | None,
    generator: Tensor,
    states: States,
    parts: Mapping[str, tuple[Mapping[str, Tensor], Mapping[str, Any]]],
) -> None:
    """Write atomically; ``parts`` are further ones by name, each its tensors and its JSON."""
    kept, asked = storable(made.algorithm_kwargs)
    torch_state, numpy_state = states
    tensors: dict[str, Tensor] = {"generator": generator, "torch": torch_state}
    config: dict[str, Any] = {
        "settings": asdict(made.settings),
        "algorithm_class": made.algorithm.__name__,
        "algorithm_kwargs": kept,
        "asked_again": asked,
        "spaces": asdict(made.spaces),
        "rules": list(made.rules),
        "seed": made.seed,
        "numpy": numpy_state,
        "model": None,
        "episodes": experience.episodes,
        **asdict(progress),
    }
    if model is not None:
        stored, config["model"] = model_to_checkpoint(model)
        tensors |= {f"model.{key}": value for key, value in stored.items()}
    for name, ring in _rings(experience).items():
        config[f"{name}_written"] = ring.written
        tensors |= {f"{name}.{key}": value for key, value in ring.stored().items()}
    for name, (own, facts) in parts.items():
        config[name] = dict(facts)
        tensors |= {f"{name}.{key}": value for key, value in own.items()}
    save_checkpoint(path, MBPO_AGENT, tensors, config)


def open_agent(path: str | Path) -> Checkpoint:
    """The file, verified. Raises CheckpointError if it is damaged or holds something else."""
    return load_checkpoint(path, MBPO_AGENT)


def read_made(
    checkpoint: Checkpoint,
    spaces: Spaces,
    algorithm: type[OffPolicyAlgorithm] | None,
    algorithm_kwargs: Mapping[str, Any],
    termination: Rule | None,
    reward: Rule | None,
) -> Made:
    """What the agent was made with, and what of it has to be given again.

    Raises CheckpointError if the file is damaged, of another environment, or something is missing.
    """
    rules = rules_of(checkpoint, termination, reward)
    check_spaces(checkpoint, spaces)
    for name in checkpoint.setting("asked_again", list):
        if name not in algorithm_kwargs:
            raise CheckpointError(
                f"checkpoint {checkpoint.path}: the agent was made with an object as {name!r}, which no "
                "file holds; pass it to load() in algorithm_kwargs="
            )
    kind = algorithm_class(checkpoint.path, checkpoint.setting("algorithm_class", str), algorithm)
    kwargs = {**checkpoint.setting("algorithm_kwargs", dict), **algorithm_kwargs}
    seed = count_of(checkpoint, "seed")
    return Made(_settings_from_json(checkpoint), kind, kwargs, spaces, rules, seed)


def read_progress(checkpoint: Checkpoint) -> Progress:
    """How far it had come. Raises CheckpointError for counts that cannot be."""
    return Progress(**{name: count_of(checkpoint, name) for name in asdict(Progress())})


def read_model(
    checkpoint: Checkpoint, spaces: Spaces, termination: Rule | None, reward: Rule | None
) -> DynamicsModel | None:
    """The model, if there was one. Raises CheckpointError if it is damaged or does not fit."""
    if checkpoint.config.get("model") is None:
        return None
    model = model_from_checkpoint(checkpoint, "model", termination, reward)
    check_widths(checkpoint, spaces, model.obs_dim, model.policy.inputs - model.obs_dim)
    return model


def read_model_alone(
    checkpoint: Checkpoint, spaces: Spaces, termination: Rule | None, reward: Rule | None
) -> DynamicsModel | None:
    """The model for whoever does not need the rest; None: there was none (sac learns none).

    Raises CheckpointError as ``MBPO.load`` does, but asks for no class and no objects.
    """
    rules_of(checkpoint, termination, reward)
    check_spaces(checkpoint, spaces)
    return read_model(checkpoint, spaces, termination, reward)


def fill_replay(checkpoint: Checkpoint, experience: MixedReplay) -> None:
    """Give a fresh replay the rows of the file. Raises CheckpointError for a misfit."""
    experience.episodes = count_of(checkpoint, "episodes")
    for name, ring in _rings(experience).items():
        _fill_ring(checkpoint, name, ring)


def _rings(experience: MixedReplay) -> dict[str, Ring]:
    return {"real": experience.real, "imagined": experience.imagined}


def _fill_ring(checkpoint: Checkpoint, name: str, ring: Ring) -> None:
    ring.written = count_of(checkpoint, f"{name}_written")
    for key, column in ring.columns.items():
        shape = (len(ring), *column.shape[1:])
        column[: len(ring)] = checkpoint.require(f"{name}.{key}", shape, column.dtype)


def read_states(checkpoint: Checkpoint) -> tuple[Tensor, States]:
    """The generator's state and the global ones'. Raises CheckpointError if one is missing."""
    own, others = (checkpoint.require(name, dtype=torch.uint8) for name in ("generator", "torch"))
    return own, (others, checkpoint.setting("numpy", dict))


def _settings_from_json(checkpoint: Checkpoint) -> MBPOSettings:
    config = dict(checkpoint.setting("settings", dict))
    try:
        return MBPOSettings(
            schedule=Schedule(**config.pop("schedule")),
            hidden=tuple(config.pop("hidden")),
            rollout=RolloutLength(**config.pop("rollout")),
            branching=Branching(**config.pop("branching")),
            **config,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its settings are damaged: {error}"
        ) from None
