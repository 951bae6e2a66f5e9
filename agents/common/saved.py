"""What the file of any agent says: the spaces it was made for, its rules by name, its counts.

Rules are code, never stored, and asked for again.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

from agents.common.rules import (
    RewardChoice,
    Rules,
    TerminationChoice,
    chosen_rules,
)
from agents.common.spaces import action_bounds, require_actions, require_box
from mbrl_bilevel.base.checkpoint import Checkpoint
from mbrl_bilevel.base.errors import CheckpointError, InvalidInputError
from mbrl_bilevel.base.records import Rule
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.models.dynamics_checkpoint import model_from_checkpoint


@dataclass(frozen=True)
class Spaces:
    """What an environment must share with the one that the agent was trained in.

    Of discrete actions the bounds are those of their one-hot vectors, and ``first_action`` is the
    number of the first; None of a box (and not in the files of version 0.1). ``env_id`` is the name that
    the environment is registered under, None where that is not known; only this may differ.
    """

    obs_dim: int
    action_low: list[float]
    action_high: list[float]
    first_action: int | None = None
    env_id: str | None = None


def spaces_of(env: VecEnv) -> Spaces:
    """What the file says of an environment. Raises InvalidInputError for spaces that no agent takes."""
    observation = require_box(env.observation_space, "observation")
    action = require_actions(env.action_space)
    low, high = action_bounds(action)
    first = int(action.start) if isinstance(action, gym.spaces.Discrete) else None
    width = int(observation.shape[0])
    return Spaces(width, low.tolist(), high.tolist(), first, _registered_name(env))


def _registered_name(env: VecEnv) -> str | None:
    # Environments in other processes are not asked: not every spec can be sent.
    inside = getattr(env.unwrapped, "envs", None)
    spec = inside[0].unwrapped.spec if inside else None
    return None if spec is None else str(spec.id)


def saved_rules(
    checkpoint: Checkpoint, env: VecEnv, termination: TerminationChoice, reward: RewardChoice
) -> Rules:
    """The rules that the agent of a file goes on with.

    What is not chosen is as the file says: a rule that the environment gave is asked of ``env``, one that was
    learned is learned. Raises CheckpointError if ``env`` does not know it, or one that was given by hand is not
    given again.
    """
    used = tuple(str(name) for name in checkpoint.setting("rules", list))
    from_env = checkpoint.config.get("rules_from_env", {})
    if not isinstance(from_env, dict):
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its rules_from_env are damaged; restore a good copy"
        )
    if termination is None:
        termination = from_env.get("termination", "learned")
    try:
        rules = chosen_rules(env, termination, from_env.get("reward") if reward is None else reward)
    except InvalidInputError as error:
        raise CheckpointError(f"checkpoint {checkpoint.path}: {error}") from None
    for name in used:
        if getattr(rules, name, None) is None:
            raise CheckpointError(
                f"checkpoint {checkpoint.path}: the agent was trained with a known {name}; pass {name}= to "
                f'load(), "known" for the environment\'s own (plan: --{name})'
            )
    return rules


def count_of(checkpoint: Checkpoint, name: str) -> int:
    """The count stored under ``name``. Raises CheckpointError for none, or one that cannot be."""
    value = checkpoint.setting(name, int)
    if not 0 <= value < 2**62:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its {name} is {value}; restore a good copy or save it again"
        )
    return value


def check_spaces(checkpoint: Checkpoint, spaces: Spaces) -> None:
    """Raises CheckpointError if the agent is of an environment with other spaces.

    Warns of another name: to go on in a changed task, transfer, is a use and no mistake.
    """
    saved = checkpoint.setting("spaces", dict)
    wanted = asdict(spaces)
    known, env_id = saved.get("env_id"), wanted.pop("env_id")
    for name, value in wanted.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"checkpoint {checkpoint.path}: it is of another environment: its {name} is "
                f"{saved.get(name)}, this env has {value}; load it with the env it was made for"
            )
    if isinstance(known, str) and env_id is not None and known != env_id:
        warnings.warn(
            f"checkpoint {checkpoint.path}: it is of {known}, this env is {env_id}, of the same spaces: "
            f"unless you mean to go on in a changed task, load it with {known}",
            stacklevel=4,
        )


def check_widths(checkpoint: Checkpoint, spaces: Spaces, obs_dim: int, actions: int) -> None:
    """Of the model and of the experience: both must be of the environment's spaces."""
    if (obs_dim, actions) != (spaces.obs_dim, len(spaces.action_low)):
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its parts do not fit each other; "
            "restore a good copy or save it again"
        )


def read_model(
    checkpoint: Checkpoint,
    name: str,
    spaces: Spaces,
    termination: Rule | None,
    reward: Rule | None,
) -> DynamicsModel | None:
    """The model stored under ``name``, if there was one.

    Raises CheckpointError if it is damaged or not of these ``spaces``.
    """
    if checkpoint.config.get(name) is None:
        return None
    model = model_from_checkpoint(checkpoint, name, termination, reward)
    check_widths(checkpoint, spaces, model.obs_dim, model.policy.inputs - model.obs_dim)
    return model


@contextmanager
def random_states_told(checkpoint: Checkpoint) -> Iterator[None]:
    """Random states that are none, set inside, are told as damage: CheckpointError."""
    try:
        yield
    except (LookupError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its random states are damaged: {error}"
        ) from None
