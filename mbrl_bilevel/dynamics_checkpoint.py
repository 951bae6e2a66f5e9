"""A dynamics model to and from the tensors and JSON of a checkpoint; rules are code, never stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mbrl_bilevel.checkpoint import Checkpoint
from mbrl_bilevel.dynamics import DynamicsModel, LearnedTermination
from mbrl_bilevel.errors import CheckpointError
from mbrl_bilevel.normaliser import Normaliser
from mbrl_bilevel.policies import CategoricalPolicy, GaussianPolicy
from mbrl_bilevel.types import Rule


def model_to_checkpoint(model: DynamicsModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the settings that ``model_from_checkpoint`` needs."""
    policy = model.policy
    tensors = _policy_tensors("policy", policy)
    tensors |= _normaliser_tensors("inputs", model.inputs)
    tensors |= _normaliser_tensors("targets", model.targets)
    learned = None
    if isinstance(model.termination, LearnedTermination):
        classifier = model.termination.policy
        tensors |= _policy_tensors("termination.policy", classifier)
        tensors |= _normaliser_tensors("termination.inputs", model.termination.inputs)
        learned = {
            "inputs": classifier.inputs,
            "members": classifier.members,
            "hidden": list(classifier.hidden),
        }
    return tensors, {
        "inputs": policy.inputs,
        "outputs": policy.outputs,
        "members": policy.members,
        "hidden": list(policy.hidden),
        "scale": policy.scale,
        "log_std_bounds": list(policy.log_std_bounds),
        "obs_dim": model.obs_dim,
        "terminal_jump": model.terminal_jump,
        "learned_termination": learned,
    }


def model_from_checkpoint(
    checkpoint: Checkpoint, name: str, termination: Rule | None, reward: Rule | None
) -> DynamicsModel:
    """The model stored under ``name``, with the rules it is to use.

    Raises CheckpointError if a part is missing or does not fit.
    """
    config = checkpoint.setting(name, dict)
    generator = torch.Generator()
    try:
        policy = GaussianPolicy(
            config["inputs"],
            config["outputs"],
            generator=generator,
            members=config["members"],
            hidden=config["hidden"],
            scale=config["scale"],
            log_std_bounds=tuple(config["log_std_bounds"]),
        )
        obs_dim, learned = int(config["obs_dim"]), config["learned_termination"]
        jump = float(config["terminal_jump"])
        classifier = None
        if learned is not None:
            classifier = CategoricalPolicy(
                learned["inputs"],
                2,
                generator=generator,
                members=learned["members"],
                hidden=learned["hidden"],
            )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its model settings are damaged: {error}"
        ) from None
    _load_policy(checkpoint, f"{name}.policy", policy)
    known = termination
    model_termination: Any = known
    if classifier is not None and known is None:
        _load_policy(checkpoint, f"{name}.termination.policy", classifier)
        inputs = _load_normaliser(checkpoint, f"{name}.termination.inputs")
        model_termination = LearnedTermination(classifier, inputs)
    return DynamicsModel(
        policy,
        _load_normaliser(checkpoint, f"{name}.inputs"),
        _load_normaliser(checkpoint, f"{name}.targets"),
        obs_dim,
        model_termination,
        reward,
        jump,
    )


def _policy_tensors(name: str, policy: nn.Module) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in policy.state_dict().items()}


def _normaliser_tensors(name: str, normaliser: Normaliser) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for key, value in vars(normaliser).items()}


def _load_policy(checkpoint: Checkpoint, name: str, policy: nn.Module) -> None:
    state = {
        key: checkpoint.require(f"{name}.{key}", tuple(value.shape), value.dtype)
        for key, value in policy.state_dict().items()
    }
    policy.load_state_dict(state)


def _load_normaliser(checkpoint: Checkpoint, name: str) -> Normaliser:
    shift = checkpoint.require(f"{name}.shift", (None,))
    shape = tuple(shift.shape)
    return Normaliser(
        shift,
        checkpoint.require(f"{name}.scale", shape),
        checkpoint.require(f"{name}.constant", shape, torch.bool),
    )
