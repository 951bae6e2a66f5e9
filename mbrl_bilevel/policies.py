"""Generative policies p_θ(y|x): the dynamics model (or classifier) seen as a policy over targets.

Each is a batched ensemble: ``policy.dist(x [E, B, X])`` gives a distribution over y [E, B, D].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from mbrl_bilevel.distributions import Categorical, DiagonalGaussian
from mbrl_bilevel.errors import InvalidInputError
from mbrl_bilevel.networks import EnsembleMLP

Scale = Literal["constant", "network"]


class GaussianPolicy(nn.Module):
    """Diagonal Gaussian N(μ_θ(x), diag σ²), an ensemble of E networks.

    ``scale="constant"`` learns one σ per member and dimension: all that a constant reward matrix
    can ask for. ``scale="network"`` learns σ(x) from the same trunk (Lakshminarayanan 2017, eq. 1).
    log σ lies strictly within ``log_std_bounds`` by a sigmoid, so it is bounded and its gradient
    never dies at once; raw zero means σ = 1.

    Raises InvalidInputError for non-positive sizes or empty bounds.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        generator: torch.Generator,
        members: int = 5,
        hidden: Sequence[int] = (200, 200),
        scale: Scale = "constant",
        log_std_bounds: tuple[float, float] = (-10.0, 3.0),
    ) -> None:
        super().__init__()
        if not log_std_bounds[0] < 0.0 < log_std_bounds[1]:
            raise InvalidInputError(
                f"log_std_bounds must be (low, high) with low < 0 < high; got {log_std_bounds}"
            )
        self.inputs, self.outputs, self.members = inputs, outputs, members
        self.hidden, self.scale, self.log_std_bounds = tuple(hidden), scale, log_std_bounds
        heads = 2 * outputs if scale == "network" else outputs
        self.network = EnsembleMLP(members, (inputs, *hidden, heads), generator)
        if scale == "constant":
            self.raw_log_std = nn.Parameter(torch.zeros(members, 1, outputs))

    def dist(self, x: Tensor) -> DiagonalGaussian:
        """The predicted distribution at ``x`` [E, B, X]: mean and log σ [E, B, D]."""
        output = self.network(x)
        if self.scale == "network":
            mean, raw = output.split(self.outputs, dim=-1)
        else:
            mean, raw = output, self.raw_log_std.expand_as(output)
        return DiagonalGaussian(mean, self._bounded(raw))

    @torch.no_grad()
    def set_std(self, std: Tensor) -> None:
        """Set the constant σ to ``std`` ([E, D] or [D], positive). Only for scale="constant"."""
        if self.scale != "constant":
            raise InvalidInputError(
                'set_std needs scale="constant"; a network scale is learned, not set'
            )
        self.raw_log_std.copy_(self._unbounded(std.log()).expand(self.members, -1).unsqueeze(1))

    def _bounded(self, raw: Tensor) -> Tensor:
        low, high = self.log_std_bounds
        return low + (high - low) * torch.sigmoid(raw + self._logit_of_unit)

    def _unbounded(self, log_std: Tensor) -> Tensor:
        low, high = self.log_std_bounds
        share = ((log_std - low) / (high - low)).clamp(1e-4, 1.0 - 1e-4)
        return torch.logit(share) - self._logit_of_unit

    @property
    def _logit_of_unit(self) -> float:
        low, high = self.log_std_bounds
        return math.log(-low / high)


class CategoricalPolicy(nn.Module):
    """Classes with probabilities softmax(f_θ(x)), an ensemble of E networks."""

    def __init__(
        self,
        inputs: int,
        classes: int,
        *,
        generator: torch.Generator,
        members: int = 1,
        hidden: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        if classes < 2:
            raise InvalidInputError(f"classes must be at least 2; got {classes}")
        self.inputs, self.classes, self.members = inputs, classes, members
        self.hidden = tuple(hidden)
        self.network = EnsembleMLP(members, (inputs, *hidden, classes), generator)

    def dist(self, x: Tensor) -> Categorical:
        """The predicted distribution at ``x`` [E, B, X]: logits [E, B, C]."""
        return Categorical(self.network(x))


Policy = GaussianPolicy | CategoricalPolicy
