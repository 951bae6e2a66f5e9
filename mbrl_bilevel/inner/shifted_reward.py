"""A reward that asks for something other than what the data says: r(ŷ, y + b_φ(x), x).

With a Mahalanobis reward inside, the inner optimum's mean is E[y|x] + b_φ(x). One-step likelihood
has no use for b; an outer objective that looks further ahead does.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mbrl_bilevel.inner.rewards import Reward, expected_reward
from mbrl_bilevel.policies.distributions import Distribution


class AffineShift(nn.Module):
    """b(x) = ``unit``·(W x + c), [E, B, X] -> [E, B, D], shared by the members; it starts at zero.

    ``unit`` brings W and c to the size of the other parameters that the outer optimiser steps.
    """

    def __init__(self, inputs: int, dim: int, unit: float = 0.1) -> None:
        super().__init__()
        self.unit = unit
        self.weight = nn.Parameter(torch.zeros(inputs, dim))
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.unit * (x @ self.weight + self.bias)


class Shifted(nn.Module):
    """``reward`` of generating ŷ where the data says y, moved by ``shift``: r(ŷ, y + b_φ(x), x).

    Its φ is that of both.
    """

    def __init__(self, reward: Reward, shift: nn.Module) -> None:
        super().__init__()
        self.reward, self.shift = reward, shift

    def forward(self, y_hat: Tensor, y: Tensor, x: Tensor) -> Tensor:
        value: Tensor = self.reward(y_hat, y + self.shift(x), x)
        return value

    def expected(self, dist: Distribution, y: Tensor, x: Tensor) -> Tensor:
        """E_{ŷ~dist}[r], [E, B]. Raises as the reward inside."""
        return expected_reward(self.reward, dist, y + self.shift(x), x)
