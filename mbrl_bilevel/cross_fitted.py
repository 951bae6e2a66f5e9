"""The held-out rows of all members in one: who left each out, how far off it was, and who judges by it.

What a solver fits to a member's rows it judges on others, so that nobody's choice is its own judge.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_bilevel.bilevel import Problem
from mbrl_bilevel.policies import GaussianPolicy


@dataclass(frozen=True)
class CrossFitted:
    """R held-out rows: each member's ``features`` [E, R, F] of the last hidden layer and ``mean``
    [E, R, D], the ``squared`` residual [R, D] of the member that held the row out, and who ``judges`` on
    it, [E, R] bool; the others fit. A member judges on its own rows and fits to the rest; a single
    one judges on the second half, by order."""

    features: Tensor
    mean: Tensor
    squared: Tensor
    judges: Tensor

    @staticmethod
    @torch.no_grad()
    def of(problem: Problem, policy: GaussianPolicy, most: int) -> CrossFitted:
        """At most this many of the problem's held-out rows, evenly spaced."""
        held_out, members = problem.held_out, policy.members
        there = torch.ones_like(held_out.x[..., 0], dtype=torch.bool)
        if held_out.weight is not None:
            there = held_out.weight > 0
        owner = torch.arange(members).unsqueeze(1).expand_as(there)[there]
        thinned = torch.linspace(0, len(owner) - 1, min(most, len(owner))).long()
        x, y, owner = held_out.x[there][thinned], held_out.y[there][thinned], owner[thinned]
        features = policy.network.features(x.expand(members, -1, -1))
        mean = policy.network.last(features)
        squared = (y - mean[owner, torch.arange(len(x))]).square()
        if members == 1:
            judges = (torch.arange(len(x)) >= len(x) // 2).unsqueeze(0)
        else:
            judges = owner == torch.arange(members).unsqueeze(1)
        return CrossFitted(features, mean, squared, judges)


@torch.no_grad()
def bound_scale(policy: GaussianPolicy, raw: Tensor) -> None:
    """Keep the policy's raw scales within the middle 98 % of ``raw`` [E, R, D], found on R rows."""
    ordered, last = raw.sort(dim=1).values, raw.shape[1] - 1
    policy.temper_low.copy_(ordered[:, [round(0.01 * last)]])
    policy.temper_high.copy_(ordered[:, [round(0.99 * last)]])
