"""The held-out rows of all members in one: who left each out, how far off it was, and who judges by it.

What a solver fits to a member's rows it judges on others, so that nobody's choice is its own judge.
Rows that a previous policy remembers stand beside them, if there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_bilevel.data.splits import evenly_spaced
from mbrl_bilevel.outer.problem import Problem
from mbrl_bilevel.policies.policies import GaussianPolicy


@dataclass(frozen=True)
class Recollection:
    """What the ``previous`` policy, whose scale is separate, knows of inputs ``x`` [R, X] like those of
    earlier tasks, which have this ``share`` of all the data there was."""

    previous: GaussianPolicy
    x: Tensor
    share: float

    def rows(self, policy: GaussianPolicy, beside: int) -> CrossFitted:
        """As many of them as have the ``share`` beside ``beside`` held-out rows.

        Their squared residual is the mean of (y − μ)² over y ~ the previous policy, member by member:
        σ² + (μ_previous − μ)², with all of its σ², the members' disagreement included, as in a residual of
        held-out data.
        """
        count = round(beside * self.share / (1.0 - self.share))
        index = torch.arange(count, device=self.x.device) % len(self.x)
        x, previous = self.x[index].expand(policy.members, -1, -1), self.previous
        then = previous.network.features(x)
        raw = previous.raw_scale_at(then).clamp(previous.temper_low, previous.temper_high)
        variance = torch.exp(2.0 * previous.bounded_log_std(raw))
        features = policy.network.features(x)
        mean = policy.network.last(features)
        squared = variance + (previous.network.last(then) - mean).square()
        return CrossFitted(features, mean, squared, _judges(index % policy.members, policy.members))


@dataclass(frozen=True)
class CrossFitted:
    """R held-out rows: each member's ``features`` [E, R, F] of the last hidden layer and ``mean``
    [E, R, D], the ``squared`` residual [E or 1, R, D] of the member that held the row out, and who
    ``judges`` on it, [E, R] bool; the others fit. A member judges on its own rows and fits to the rest; a
    single one judges on the second half, by order."""

    features: Tensor
    mean: Tensor
    squared: Tensor
    judges: Tensor

    @staticmethod
    @torch.no_grad()
    def of(problem: Problem, policy: GaussianPolicy, most: int) -> CrossFitted:
        """At most this many of the problem's held-out rows, evenly spaced."""
        held_out, members = problem.held_out, policy.members
        there = held_out.weights > 0
        owner = torch.arange(members, device=there.device).unsqueeze(1).expand_as(there)[there]
        thinned = evenly_spaced(len(owner), most)
        x, y, owner = held_out.x[there][thinned], held_out.y[there][thinned], owner[thinned]
        features = policy.network.features(x.expand(members, -1, -1))
        mean = policy.network.last(features)
        squared = (y - mean[owner, torch.arange(len(x), device=x.device)]).square().unsqueeze(0)
        return CrossFitted(features, mean, squared, _judges(owner, members))

    def beside(self, other: CrossFitted) -> CrossFitted:
        """The rows of both."""
        members = len(self.features)
        squared = (rows.squared.expand(members, -1, -1) for rows in (self, other))
        return CrossFitted(
            torch.cat([self.features, other.features], 1),
            torch.cat([self.mean, other.mean], 1),
            torch.cat(list(squared), 1),
            torch.cat([self.judges, other.judges], 1),
        )


def _judges(owner: Tensor, members: int) -> Tensor:
    """Who judges on rows that the members in ``owner`` [R] left out, [E, R]."""
    if members == 1:
        return (torch.arange(len(owner), device=owner.device) >= len(owner) // 2).unsqueeze(0)
    return owner == torch.arange(members, device=owner.device).unsqueeze(1)


@torch.no_grad()
def bound_scale(policy: GaussianPolicy, raw: Tensor) -> None:
    """Keep the policy's raw scales within the middle 98 % of ``raw`` [E, R, D], found on R rows."""
    ordered, last = raw.sort(dim=1).values, raw.shape[1] - 1
    policy.temper_low.copy_(ordered[:, [round(0.01 * last)]])
    policy.temper_high.copy_(ordered[:, [round(0.99 * last)]])
