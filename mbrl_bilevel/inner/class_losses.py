"""Losses for classes beside cross-entropy (NLL): the usual remedies against overconfidence.

Label smoothing (Szegedy et al. 2016, section 7; Müller et al. 2019) and focal loss (Lin et al. 2017).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.losses import Metrics
from mbrl_bilevel.policies.distributions import Categorical, Distribution
from mbrl_bilevel.policies.policies import Policy


@dataclass(frozen=True)
class LabelSmoothing:
    """Cross-entropy to (1 − α)·one-hot(y) + α/C (Szegedy et al. 2016, arXiv 1512.00567, section 7).

    Raises InvalidInputError for α outside [0, 1), UnsupportedCombinationError for real targets.
    """

    smoothing: float = 0.1

    def __post_init__(self) -> None:
        if not 0.0 <= self.smoothing < 1.0:
            raise InvalidInputError(f"smoothing must be in [0, 1); got {self.smoothing}")

    def __call__(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[torch.Tensor, Metrics]:
        dist = categorical(policy.dist(batch.x), "LabelSmoothing")
        true, every = dist.log_prob(batch.y), dist.log_probs.mean(-1)
        loss = -batch.mean((1.0 - self.smoothing) * true + self.smoothing * every)
        return loss, {"label_smoothing": loss.detach()}


@dataclass(frozen=True)
class Focal:
    """−(1 − p_y)^γ log p_y: rows that are right already count less (Lin et al. 2017, eq. 4).

    γ = 0 is cross-entropy. Raises InvalidInputError for γ < 0, UnsupportedCombinationError for real
    targets.
    """

    gamma: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma < float("inf"):
            raise InvalidInputError(f"gamma must be >= 0 and finite; got {self.gamma}")

    def __call__(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[torch.Tensor, Metrics]:
        dist = categorical(policy.dist(batch.x), "Focal")
        log_prob = dist.log_prob(batch.y)
        # A probability that rounds to one has no logarithm of its complement, and no loss either.
        wrong = -torch.expm1(log_prob)
        loss = -batch.mean(wrong.clamp_min(torch.finfo(wrong.dtype).eps) ** self.gamma * log_prob)
        return loss, {"focal": loss.detach()}


def categorical(dist: Distribution, user: str) -> Categorical:
    """``dist`` itself. Raises UnsupportedCombinationError, naming its user, if it is over no classes."""
    if not isinstance(dist, Categorical):
        raise UnsupportedCombinationError(
            f"{user} needs a policy over classes, CategoricalPolicy; got a {type(dist).__name__}"
        )
    return dist
