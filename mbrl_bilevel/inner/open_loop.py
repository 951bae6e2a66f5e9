"""Open-loop rollouts of a policy's mean along recorded segments, through which the gradient passes.

x̂_0 = x_0, x̂_{t+1} = (state of x̂_t moved by μ_θ(x̂_t), a_{t+1}): errors of each step enter the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.policies.distributions import DiagonalGaussian, FullGaussian
from mbrl_bilevel.policies.policies import Policy


@dataclass(frozen=True)
class Ahead:
    """One step of a rollout: the prediction at the imagined input ``x`` [E, B, X], the ``target`` [E, B, D] that
    would lead from there to the true next state, and each row's ``weight`` [E, B]."""

    x: Tensor
    dist: DiagonalGaussian | FullGaussian
    target: Tensor
    weight: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Weighted mean of ``values`` [..., E, B] over the rows; zero where none came this far."""
        return (values * self.weight).sum(-1) / self.weight.sum(-1).clamp(min=1e-8)


def open_loop(policy: Policy, batch: Batch) -> Iterator[Ahead]:
    """The steps of the rollouts along ``batch.segment``.

    Raises InvalidInputError for a batch without segments, UnsupportedCombinationError for a policy
    without a mean to follow.
    """
    segment = batch.segment
    if segment is None:
        raise InvalidInputError(
            "the batch has no segments to look ahead along: give FitData a chain of successors"
        )
    x = batch.x
    for t in range(segment.horizon):
        dist = policy.dist(x)
        if not isinstance(dist, DiagonalGaussian | FullGaussian):
            raise UnsupportedCombinationError(
                f"open-loop rollouts follow a Gaussian policy's mean; got a {type(dist).__name__}"
            )
        yield Ahead(x, dist, segment.target_from(x, t), batch.weights * segment.there[t])
        if t + 1 < segment.horizon:
            x = segment.moved(x, dist.mean, t)


def k_step_mse(policy: Policy, batch: Batch) -> Tensor:
    """Mean squared error per dimension and step of the rollouts, [E]."""
    errors = [
        ahead.mean((ahead.dist.mean - ahead.target).square().mean(-1))
        for ahead in open_loop(policy, batch)
    ]
    return torch.stack(errors).mean(0)
