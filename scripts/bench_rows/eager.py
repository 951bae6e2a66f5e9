"""What one writes in plain PyTorch: a member's network alone, and its spread."""

from __future__ import annotations

import math
from itertools import chain

import torch
from torch import Tensor, nn

from mbrl_bilevel.policies.networks import EnsembleLinear
from mbrl_bilevel.policies.policies import GaussianPolicy


def alone(policy: GaussianPolicy, member: int) -> nn.Sequential:
    """One member's network as a user would build it, with the same weights."""
    linear: list[nn.Module] = []
    for layer in policy.network.layers:
        assert isinstance(layer, EnsembleLinear)
        plain = nn.Linear(layer.weight.shape[1], layer.weight.shape[2])
        with torch.no_grad():
            plain.weight.copy_(layer.weight[member].T)
            plain.bias.copy_(layer.bias[member, 0])
        linear.append(plain)
    return nn.Sequential(
        *chain.from_iterable((layer, nn.SiLU()) for layer in linear[:-1]), linear[-1]
    )


def eager_log_std(raw: Tensor) -> Tensor:
    """log σ in [−10, 3] with raw 0 at σ = 1: the default bounds of GaussianPolicy."""
    return 13.0 * torch.sigmoid(raw + math.log(10.0 / 3.0)) - 10.0
