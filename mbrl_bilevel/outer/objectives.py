"""What the outer level wants, and what early stopping watches: a value per member on held-out data.

Lower is better. One-step likelihood is the objective of arXiv 2510.07624; any callable of the same
form is one, since the solvers need its gradient in θ only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch, Step
from mbrl_bilevel.inner.open_loop import k_step_mse, open_loop
from mbrl_bilevel.policies.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    FullGaussian,
)
from mbrl_bilevel.policies.policies import Policy

#: What a state is worth, through which gradients pass: raw observations [..., O] -> [...].
Value = Callable[[Tensor], Tensor]


class Objective(Protocol):
    """``objective(policy, batch) -> [E]``, to be minimised."""

    def __call__(self, policy: Policy, batch: Batch) -> Tensor: ...


@dataclass(frozen=True)
class OneStepNLL:
    """Negative log-likelihood per target dimension, in normalised units."""

    def __call__(self, policy: Policy, batch: Batch) -> Tensor:
        return -batch.mean(policy.dist(batch.x).log_prob(batch.y)) / batch.y.shape[-1]


@dataclass(frozen=True)
class KStepMSE:
    """Mean squared error per dimension along open-loop rollouts of the segments' length, in units of one
    step's targets.

    Each step starts where the mean of the step before led, so the gradient passes through the whole
    rollout (``open_loop``).
    """

    def __call__(self, policy: Policy, batch: Batch) -> Tensor:
        return k_step_mse(policy, batch)


@dataclass(frozen=True)
class OpenLoopReturn:
    """How well the returns of held-out segments are predicted in open loop, under their own actions.

    The squared error of the return after h steps, in units of its variance over the rows of all members,
    averaged over h = 1 … k, k the length of the segments. A reward counts as far as the episode
    has not ended before it, and with a ``value`` so does the value of
    the h-th state. Rewards and endings are what the segment's ``outcome`` says, of the truth too. Each member
    follows its own mean, and the gradient passes through the whole rollout.

    Raises InvalidInputError for a ``discount`` outside (0, 1], or a batch without segments or outcome.
    """

    discount: float = 1.0
    value: Value | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.discount <= 1.0:
            raise InvalidInputError(f"discount must lie above 0, at most 1; got {self.discount}")

    def __call__(self, policy: Policy, batch: Batch) -> Tensor:
        segment = batch.segment
        if segment is None or segment.outcome is None:
            raise InvalidInputError(
                "OpenLoopReturn needs segments whose steps have rewards: fit a dynamics model by a method "
                "with a horizon above 1, or take OneStepNLL for tables"
            )
        said, true = _Return(self), _Return(self)
        errors = []
        for t, ahead in enumerate(open_loop(policy, batch)):
            said.add(segment.outcome(ahead.x, ahead.dist.mean))
            with torch.no_grad():
                true.add(segment.outcome(segment.x[t], segment.y[t]))
                variance = _variance(true.total, ahead.weight)
            errors.append(ahead.mean((said.total - true.total).square()) / variance)
        return torch.stack(errors).mean(0)


class _Return:
    """A return as it adds up, each tensor [E, B]."""

    def __init__(self, objective: OpenLoopReturn) -> None:
        self._objective = objective
        self._rewards, self._counts = torch.zeros(()), torch.ones(())
        self.total = self._rewards

    def add(self, step: Step) -> None:
        """One step more."""
        self._rewards = self._rewards + self._counts * step.reward
        self._counts = self._objective.discount * self._counts * (1.0 - step.terminated)
        self.total = self._rewards
        if self._objective.value is not None:
            self.total = self.total + self._counts * self._objective.value(step.next_obs)


def _variance(values: Tensor, weight: Tensor) -> Tensor:
    """Of ``values`` [E, B] over all rows; above zero also where they are all alike."""
    share = weight / weight.sum().clamp(min=1e-8)
    mean = (share * values).sum()
    return (share * (values - mean).square()).sum() + 1e-8 * (1.0 + mean.square())


@dataclass(frozen=True)
class Mixed:
    """(1 − ``share``)·objective on the batch + ``share``·objective on a ``memory`` of earlier data."""

    objective: Objective
    memory: Batch
    share: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 <= self.share <= 1.0:
            raise InvalidInputError(f"share must lie between 0 and 1; got {self.share}")

    def __call__(self, policy: Policy, batch: Batch) -> Tensor:
        new, old = self.objective(policy, batch), self.objective(policy, self.memory)
        return (1.0 - self.share) * new + self.share * old


@dataclass(frozen=True)
class Total:
    """The sum of ``parts``: one criterion for a model with more than one purpose."""

    parts: tuple[Objective, ...]

    def __call__(self, policy: Policy, batch: Batch) -> Tensor:
        return torch.stack([part(policy, batch) for part in self.parts]).sum(0)


@dataclass(frozen=True)
class BalancedError:
    """1 − the mean over classes of the mean probability of the true class: balanced accuracy of a
    classifier that draws its answer, so it has a gradient. Classes absent from a member's rows
    are left out."""

    def __call__(self, policy: Policy, batch: Batch) -> Tensor:
        dist = policy.dist(batch.x)
        if not isinstance(dist, Categorical):
            raise UnsupportedCombinationError(
                f"BalancedError needs classes; got a {type(dist).__name__}: use OneStepNLL"
            )
        weight = batch.weights
        true = torch.nn.functional.one_hot(batch.y[..., 0].long(), dist.logits.shape[-1])
        member = true * weight.unsqueeze(-1)
        count = member.sum(1)
        recall = (member * dist.probs).sum(1) / count.clamp_min(torch.finfo(weight.dtype).tiny)
        present = count > 0
        mean_recall: Tensor = (recall * present).sum(-1) / present.sum(-1)
        return 1.0 - mean_recall


@dataclass(frozen=True)
class ProfileNLL:
    """Negative log-likelihood at the constant covariance that suits this sample best, per dimension.

    ½ log(2πe Σ_dd), Σ the sample's second moment of the residual (log det for a full Gaussian):
    what a policy of constant scale can reach. It watches the mean alone while the scale is still on
    its way to its optimum.
    """

    def __call__(self, policy: Policy, batch: Batch) -> Tensor:
        dist = policy.dist(batch.x)
        residual = _mean(dist, "ProfileNLL") - batch.y
        if isinstance(dist, FullGaussian):
            products = residual.unsqueeze(-1) * residual.unsqueeze(-2)
            moment = batch.mean(products.movedim((-2, -1), (0, 1))).movedim(-1, 0)
            log_det: Tensor = torch.linalg.slogdet(moment).logabsdet / batch.y.shape[-1]
            return 0.5 * (log_det + math.log(2.0 * math.pi * math.e))
        squared = residual.square().movedim(-1, 0)
        return 0.5 * (batch.mean(squared) * (2.0 * math.pi * math.e)).log().mean(0)


@dataclass(frozen=True)
class OneStepMSE:
    """Mean squared error per target dimension, in normalised units."""

    def __call__(self, policy: Policy, batch: Batch) -> Tensor:
        mean = _mean(policy.dist(batch.x), "OneStepMSE")
        return batch.mean((mean - batch.y).square().mean(-1))


def _mean(dist: Distribution, objective: str) -> Tensor:
    if not isinstance(dist, DiagonalGaussian | FullGaussian):
        raise UnsupportedCombinationError(
            f"{objective} needs a Gaussian policy; got a {type(dist).__name__}: use OneStepNLL"
        )
    return dist.mean
