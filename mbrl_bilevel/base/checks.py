"""Checks of what users hand in: rules, and tensors of rows."""

from __future__ import annotations

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Rule


def require_rules(termination: object, reward: object) -> None:
    """Raises InvalidInputError unless both can be called or are None."""
    for name, rule in (("termination", termination), ("reward", reward)):
        if rule is not None and not callable(rule):
            raise InvalidInputError(
                f"{name} must be a function of (obs, action, next_obs), or None; got {rule!r}"
            )


def tried(name: str, rule: Rule, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """What the rule called ``name`` says of steps [..., O], [..., A], [..., O], asked before any work. Raises
    InvalidInputError for another shape of answer, or if it writes into its arguments: a model goes on with them."""
    before = [part.clone() for part in (obs, action, next_obs)]
    found = require_entries(f"{name}: the rule", rule(obs, action, next_obs), next_obs)
    if not all(map(torch.equal, (obs, action, next_obs), before)):
        raise InvalidInputError(
            f"{name}: the rule writes into its arguments, and the model goes on with them; let it make "
            "tensors of its own: x = 2 * x, not x *= 2"
        )
    return found


def require_floating(name: str, value: Tensor) -> None:
    """Raises InvalidInputError for integers, which would cut off what is computed, and complex numbers."""
    if not value.is_floating_point():
        raise InvalidInputError(
            f"{name} must be of a floating type; got {value.dtype}: use .float()"
        )


def require_rows(obs: Tensor, action: Tensor, obs_dim: int, action_dim: int) -> None:
    """Raises InvalidInputError unless they are [..., B, O] and [..., B, A] with the same rows."""
    widths = (obs.shape[-1], action.shape[-1])
    if obs.ndim < 2 or obs.shape[:-1] != action.shape[:-1] or widths != (obs_dim, action_dim):
        raise InvalidInputError(
            f"obs must be [..., {obs_dim}] and action [..., {action_dim}] with "
            f"the same rows; got {tuple(obs.shape)} and {tuple(action.shape)}"
        )


def require_entries(rule: str, found: object, next_obs: Tensor) -> Tensor:
    """What ``rule`` returned. Raises InvalidInputError unless it is a tensor [...] for next_obs [..., O]."""
    shape = next_obs.shape[:-1]
    if not isinstance(found, Tensor) or found.shape != shape:
        got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise InvalidInputError(
            f"{rule} must return a tensor of shape {tuple(shape)} for next_obs {tuple(next_obs.shape)}, "
            f"one entry per transition; got {got}"
        )
    return found
