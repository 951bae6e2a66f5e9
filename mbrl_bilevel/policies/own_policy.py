"""What a policy of your own must have, from ``fit`` to a planner: ``examples/student_t.py`` is one.

``fit_dynamics(data, method, policy=StudentT, …)`` calls it as ``MakePolicy`` says; it is a torch.nn.Module.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.policies.precision import Precision


class OwnDistribution(Protocol):
    """E·B distributions over D numbers. A reward beside likelihood also calls ``sample`` (and ``rsample``, if it
    has one), and an entropy ``entropy`` or, where ``entropy_is`` "lower bound", ``log_prob`` of draws:
    ``distributions.Distribution``."""

    @property
    def params(self) -> tuple[Tensor, ...]:
        """The tensors it is made of, [E, B, …]."""

    @classmethod
    def from_params(cls, params: tuple[Tensor, ...]) -> Self:
        """One of the same kind, [E, …, B, …]."""

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density of y [E, B, D]: [E, B]."""

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each number, [E, B, D]."""

    def affine(self, scale: Tensor, shift: Tensor) -> Self:
        """The distribution of y·scale + shift, [D] both."""

    def drawn(self, noise: Tensor) -> Tensor:
        """The draw [E, B, D] that standard normal ``noise`` [E, B, noise_width] makes."""


class OwnPolicy(Protocol):
    """``members`` E; a draw takes ``noise_width`` standard normal numbers; every parameter is [E, …]."""

    members: int
    noise_width: int

    def dist(self, x: Tensor) -> OwnDistribution:
        """At x [E, B, X]."""


_OF_POLICY = {
    "members": "the number E of networks",
    "noise_width": "how many standard normal numbers a draw takes",
    "dist": "dist(x [E, B, X]) -> a distribution over y [E, B, D]",
}
_OF_DIST = {
    "params": "the tensors [E, B, …] it is made of",
    "from_params": "from_params(params) -> one of the same kind",
    "log_prob": "log_prob(y [E, B, D]) -> [E, B]",
    "marginals": "marginals() -> mean and standard deviation [E, B, D]",
    "affine": "affine(scale [D], shift [D]) -> the distribution of y·scale + shift",
    "drawn": "drawn(noise [E, B, noise_width]) -> a draw [E, B, D]",
}


def require_policy(policy: Any, inputs: int, outputs: int) -> None:
    """Raises InvalidInputError, naming the member that is missing or gives another shape."""
    _require(policy, _OF_POLICY)
    members: int = policy.members
    probe = torch.zeros(members, 1, inputs, dtype=next(policy.parameters()).dtype)
    with torch.no_grad():
        dist = policy.dist(probe)
        _require(dist, _OF_DIST)
        y = dist.marginals()[0]
        found = {"marginals": tuple(y.shape), "log_prob": tuple(dist.log_prob(y).shape)}
    for name, wanted in (("marginals", (members, 1, outputs)), ("log_prob", (members, 1))):
        if found[name] != wanted:
            raise InvalidInputError(
                f"policy: {name} of its {type(dist).__name__} must give {wanted} here; got {found[name]}: "
                f"{_OF_DIST[name]}"
            )


def _require(found: object, wanted: dict[str, str]) -> None:
    for name, what in wanted.items():
        if not hasattr(found, name):
            raise InvalidInputError(
                f"policy: {type(found).__name__} has no {name}, which is {what}; examples/student_t.py has all "
                "that is needed"
            )
    if wanted is _OF_POLICY and not isinstance(found, torch.nn.Module):
        raise InvalidInputError(
            f"policy: {type(found).__name__} must be a torch.nn.Module, whose parameters are fitted"
        )


class FrozenOwnPolicy:
    """A copy of a policy of one's own without gradients, whose x may be [E, …, B, X]."""

    def __init__(self, policy: torch.nn.Module, precision: Precision = "float32") -> None:
        self.precision = precision
        self.policy = copy.deepcopy(policy).requires_grad_(False)

    @torch.inference_mode()
    def dist(self, x: Tensor) -> OwnDistribution:
        """The policy's distribution, without gradients."""
        found: OwnDistribution = self.policy.dist(x.flatten(1, -2))  # type: ignore[operator]
        lead = x.shape[:-1]
        return type(found).from_params(tuple(p.reshape(*lead, *p.shape[2:]) for p in found.params))
