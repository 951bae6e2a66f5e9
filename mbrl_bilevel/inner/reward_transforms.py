"""Changes to the sampled rewards, as published code makes them. Each moves the inner optimum.

``transform(reward [K, E, B]) -> [K, E, B]``, before the baseline. An estimator that carries one
calls itself biased, so that the implicit and closed-form solvers refuse it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError


class Transform(Protocol):
    """The slot: what the sampled rewards become."""

    def __call__(self, reward: Tensor, /) -> Tensor: ...


@dataclass(frozen=True)
class MinShift:
    """r − min r, so that no reward is negative; the minimum ``over`` a row's samples, or over all
    samples and rows of the member's batch.

    A baseline that depends on the sample itself: under REINFORCE it is biased by
    −E[min r · Σ_k ∇log p_θ(ŷ_k)]/K. Leave-one-out and group-normalised advantages, and pathwise
    gradients, cancel it (the estimators call themselves biased all the same).
    """

    over: Literal["samples", "batch"] = "samples"

    def __post_init__(self) -> None:
        if self.over not in ("samples", "batch"):
            raise InvalidInputError(f'over must be "samples" or "batch"; got {self.over!r}')

    def __call__(self, reward: Tensor, /) -> Tensor:
        dims = (0,) if self.over == "samples" else (0, -1)
        return reward - reward.detach().amin(dims, keepdim=True)


@dataclass(frozen=True)
class Exponential:
    """exp(r/``scale``): another objective, E[exp(r/scale)]. Of a Mahalanobis reward it makes the RBF
    with A = 2U/scale, whose inner optimum is not that of r, and may not exist (see RBF)."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 < self.scale < math.inf:
            raise InvalidInputError(f"scale must be positive and finite; got {self.scale}")

    def __call__(self, reward: Tensor, /) -> Tensor:
        return torch.exp(reward / self.scale)
