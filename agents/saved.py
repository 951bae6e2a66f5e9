"""What the file of any agent says: the spaces it was made for, its rules by name, its counts.

Rules are code, never stored, and asked for again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import gymnasium as gym

from agents.spaces import ActionSpace
from mbrl_bilevel.checkpoint import Checkpoint
from mbrl_bilevel.errors import CheckpointError
from mbrl_bilevel.types import Rule


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


def rules_of(
    checkpoint: Checkpoint, termination: Rule | None, reward: Rule | None
) -> tuple[str, ...]:
    """The rules the agent was trained with. Raises CheckpointError if one of them was not given."""
    rules = tuple(str(name) for name in checkpoint.setting("rules", list))
    given = {"termination": termination, "reward": reward}
    for name in rules:
        if given.get(name) is None:
            raise CheckpointError(
                f"checkpoint {checkpoint.path}: the agent was trained with a known {name}; "
                f"pass {name}= to load() (plan: --{name})"
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
    """Raises CheckpointError if the agent is of an environment with other spaces."""
    saved = checkpoint.setting("spaces", dict)
    for name, value in asdict(spaces).items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"checkpoint {checkpoint.path}: it is of another environment: its {name} is "
                f"{saved.get(name)}, this env has {value}; load it with the env it was made for"
            )


def check_widths(checkpoint: Checkpoint, spaces: Spaces, obs_dim: int, actions: int) -> None:
    """Of the model and of the experience: both must be of the environment's spaces."""
    if (obs_dim, actions) != (spaces.obs_dim, len(spaces.action_low)):
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its parts do not fit each other; "
            "restore a good copy or save it again"
        )
