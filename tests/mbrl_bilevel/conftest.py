"""A dynamics model whose every number is known: linear maps and constant stds, set by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.models.regression import Regression
from mbrl_bilevel.policies.policies import GaussianPolicy

LinearModel = Callable[..., DynamicsModel]


def _identity(width: int) -> Normaliser:
    return Normaliser(torch.zeros(width), torch.ones(width), torch.zeros(width, dtype=torch.bool))


@pytest.fixture
def linear_model() -> LinearModel:
    """``make(weight [E, X, D], bias [E, D], std [E, D], obs_dim)``: y ~ N(x·weight + bias, std²)."""

    def make(
        weight: Tensor,
        bias: Tensor,
        std: Tensor,
        obs_dim: int,
        inputs: Normaliser | None = None,
        targets: Normaliser | None = None,
        **rules: Any,
    ) -> DynamicsModel:
        members, width, outputs = weight.shape
        policy = GaussianPolicy(
            width, outputs, generator=torch.Generator(), members=members, hidden=()
        )
        with torch.no_grad():
            policy.network.last.weight.copy_(weight)
            policy.network.last.bias.copy_(bias.unsqueeze(1))
        policy.set_std(std)
        units = (inputs or _identity(width), targets or _identity(outputs))
        return DynamicsModel(Regression(policy, *units), obs_dim, **rules)

    return make
