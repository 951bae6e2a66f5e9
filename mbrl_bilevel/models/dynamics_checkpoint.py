"""A dynamics model to and from the tensors and JSON of a checkpoint; rules are code, never stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from mbrl_bilevel.base.checks import require_rules
from mbrl_bilevel.base.errors import CheckpointError, InvalidInputError
from mbrl_bilevel.base.records import Rule
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.models.learned_ending import LearnedTermination, Termination
from mbrl_bilevel.models.regression import Regression
from mbrl_bilevel.policies.policies import CategoricalPolicy, GaussianPolicy, MixturePolicy

_MODEL = "dynamics model"


def model_to_checkpoint(model: DynamicsModel) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the settings that ``model_from_checkpoint`` needs.

    Raises InvalidInputError for a policy of one's own: what makes it is code.
    """
    own: object = model.policy
    if not isinstance(own, GaussianPolicy | MixturePolicy):
        raise InvalidInputError(
            f"model: it has a policy of your own ({type(own).__name__}), which no file can make again; keep "
            "its numbers by torch.save(model.policy.state_dict(), path)"
        )
    policy = model.policy
    tensors = policy_tensors("policy", policy)
    tensors |= normaliser_tensors("inputs", model.inputs)
    tensors |= normaliser_tensors("targets", model.targets)
    learned = None
    if isinstance(model.termination, LearnedTermination):
        classifier = model.termination.policy
        tensors |= policy_tensors("termination.policy", classifier)
        tensors |= normaliser_tensors("termination.inputs", model.termination.inputs)
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
        "components": policy.components if isinstance(policy, MixturePolicy) else 1,
        "obs_dim": model.obs_dim,
        "terminal_jump": float(model.terminal_jump),
        "direct": model.direct,
        "learned_termination": learned,
    }


def model_from_checkpoint(
    checkpoint: Checkpoint, name: str, termination: Rule | None, reward: Rule | None
) -> DynamicsModel:
    """The model stored under ``name``, with the rules it is to use.

    A known termination takes the place of a learned one. Raises CheckpointError if a part is
    missing or does not fit, or if the reward is a rule where the model learned it, or the reverse.
    """
    require_rules(termination, reward)
    config = checkpoint.setting(name, dict)
    generator = torch.Generator()
    try:
        policy = _empty_policy(config, generator)
        obs_dim, learned = int(config["obs_dim"]), config["learned_termination"]
        jump = float(config["terminal_jump"])
        # Files of models before there was a choice do not say so.
        direct = bool(config.get("direct", False))
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
            f"checkpoint {checkpoint.path}: its model settings are damaged: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    load_policy(checkpoint, f"{name}.policy", policy)
    model_termination: Termination | None = termination
    if classifier is not None and termination is None:
        load_policy(checkpoint, f"{name}.termination.policy", classifier)
        seen = load_normaliser(checkpoint, f"{name}.termination.inputs", classifier.inputs)
        model_termination = LearnedTermination(classifier, seen)
    inputs = load_normaliser(checkpoint, f"{name}.inputs", policy.inputs)
    targets = load_normaliser(checkpoint, f"{name}.targets")
    _check_targets(checkpoint, targets, policy.outputs, obs_dim, reward)
    regression = Regression(policy, inputs, targets)
    return DynamicsModel(regression, obs_dim, model_termination, reward, jump, direct)


def _empty_policy(
    config: dict[str, Any], generator: torch.Generator
) -> GaussianPolicy | MixturePolicy:
    """The policy of these settings, its parameters still to be filled in."""
    settings = {name: config[name] for name in ("members", "hidden", "scale")}
    settings["log_std_bounds"] = tuple(config["log_std_bounds"])
    size = (config["inputs"], config["outputs"])
    # Files of models without a mixture do not say how many components they have.
    components = int(config.get("components", 1))
    if components == 1:
        return GaussianPolicy(*size, generator=generator, **settings)
    return MixturePolicy(*size, generator=generator, components=components, **settings)


def _check_targets(
    checkpoint: Checkpoint, targets: Normaliser, outputs: int, obs_dim: int, reward: Rule | None
) -> None:
    """Refuse a reward rule for a model that learned the reward, no rule for one that did not."""
    if len(targets.shift) not in (obs_dim, obs_dim + 1) or outputs != int(
        (~targets.constant).sum()
    ):
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its model's targets do not fit its network; "
            "restore a good copy or save it again"
        )
    learned = len(targets.shift) == obs_dim + 1
    if not learned and reward is None:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its model was trained with a known reward; pass reward="
        )
    if learned and reward is not None:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its model learned the reward; load it without reward="
        )


def policy_tensors(name: str, policy: nn.Module) -> dict[str, Tensor]:
    """The parameters of ``policy`` under ``name``."""
    return {f"{name}.{key}": value for key, value in policy.state_dict().items()}


def normaliser_tensors(name: str, normaliser: Normaliser) -> dict[str, Tensor]:
    """The numbers of ``normaliser`` under ``name``."""
    return {f"{name}.{key}": value for key, value in vars(normaliser).items()}


def load_policy(checkpoint: Checkpoint, name: str, policy: nn.Module) -> None:
    """Fill ``policy`` in. Raises CheckpointError if a parameter is missing or does not fit."""
    state = {
        key: checkpoint.require(f"{name}.{key}", tuple(value.shape), value.dtype)
        for key, value in policy.state_dict().items()
    }
    policy.load_state_dict(state)


def load_normaliser(checkpoint: Checkpoint, name: str, width: int | None = None) -> Normaliser:
    """The normaliser under ``name``, of ``width`` if given. Raises CheckpointError if it is not."""
    shift = checkpoint.require(f"{name}.shift", (width,))
    shape, dtype = tuple(shift.shape), shift.dtype
    if dtype != torch.float64:
        dtype = torch.float32
    return Normaliser(
        checkpoint.require(f"{name}.shift", shape, dtype),
        checkpoint.require(f"{name}.scale", shape, dtype),
        checkpoint.require(f"{name}.constant", shape, torch.bool),
    )


def save_model(path: str | Path, model: DynamicsModel) -> None:
    """Write ``model`` to the file ``path``; rules are code, and not saved. Raises as save_checkpoint."""
    tensors, config = model_to_checkpoint(model)
    rules = {
        "termination": model.termination is not None
        and not isinstance(model.termination, LearnedTermination),
        "reward": model.reward is not None,
    }
    named = {f"model.{name}": value for name, value in tensors.items()}
    save_checkpoint(path, _MODEL, named, {"model": config, "rules": rules})


def load_model(
    path: str | Path, *, termination: Rule | None = None, reward: Rule | None = None
) -> DynamicsModel:
    """The model in ``path``. ``termination`` and ``reward``: the rules that it was fitted with, which no file holds;
    None where it learned them.

    Raises CheckpointError if the file is damaged or of another kind, or a rule is missing.
    """
    checkpoint = load_checkpoint(path, _MODEL)
    rules, given = checkpoint.setting("rules", dict), {"termination": termination, "reward": reward}
    for name, rule in given.items():
        if rules.get(name) and rule is None:
            raise CheckpointError(
                f"checkpoint {path}: the model was used with a known {name}; pass {name}= to load_model"
            )
    return model_from_checkpoint(checkpoint, "model", termination, reward)


def save_parameters(path: str | Path, module: nn.Module) -> None:
    """Write the parameters and buffers of a policy, a reward or a whole loss to one file.

    As with ``torch.nn.Module.state_dict``, whoever loads them makes the object first; its settings
    (bounds, forms, sizes) are written to be compared.
    """
    kind = f"parameters of {type(module).__name__}"
    save_checkpoint(path, kind, module.state_dict(), {"settings": _settings(module)})


def load_parameters(path: str | Path, module: nn.Module) -> None:
    """Fill ``module`` in from what save_parameters wrote.

    Raises CheckpointError, with ``module`` as it was, if the file is damaged, of another class, or
    of other settings or shapes.
    """
    checkpoint = load_checkpoint(path, f"parameters of {type(module).__name__}")
    own = module.state_dict()
    foreign = sorted(checkpoint.tensors.keys() - own.keys())
    if foreign:
        raise CheckpointError(
            f"checkpoint {path}: it has {foreign[0]!r}, which this {type(module).__name__} has not; "
            "make the object with the arguments it had"
        )
    saved = checkpoint.setting("settings", dict)
    for name, value in _settings(module).items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"checkpoint {path}: its {name} is {saved.get(name)}, that of this "
                f"{type(module).__name__} {value}; make the object with the arguments it had"
            )
    trained = dict(module.named_parameters())
    state = {
        name: checkpoint.require(name, tuple(value.shape), value.dtype, finite=name in trained)
        for name, value in own.items()
    }
    module.load_state_dict(state)


def _settings(module: nn.Module) -> dict[str, Any]:
    """The plain public attributes of ``module`` and its parts: what its parameters do not tell."""
    return {
        f"{name}.{key}".lstrip("."): list(value) if isinstance(value, tuple) else value
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if not key.startswith("_") and key != "training"
        if value is None or isinstance(value, bool | int | float | str | tuple)
    }
