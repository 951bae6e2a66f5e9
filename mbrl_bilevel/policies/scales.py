"""Where a policy's scales come from: constants, a head on the trunk, a network that an outer solver sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.policies.networks import EnsembleMLP, Layer
from mbrl_bilevel.policies.scale_bounds import LogBounds

Scale = Literal["constant", "network", "detached", "tempered", "separate"]

#: Width of the hidden layer of the network that a separate scale has of its own.
_SEPARATE_HIDDEN = 64


class ScaledPolicy(nn.Module):
    """A network for what depends on x, and raw scales that are constant or come from it too."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        heads: tuple[int, int],
        *,
        generator: torch.Generator,
        members: int,
        hidden: Sequence[int],
        scale: Scale,
        log_std_bounds: tuple[float, float],
    ) -> None:
        """``heads`` are the numbers of located and of scale outputs."""
        super().__init__()
        if outputs < 1:
            raise InvalidInputError(f"outputs must be at least 1; got {outputs}")
        if scale not in get_args(Scale):
            names = ", ".join(f'"{name}"' for name in get_args(Scale))
            raise InvalidInputError(f"scale must be one of {names}; got {scale!r}")
        self.inputs, self.outputs, self.members = inputs, outputs, members
        self.hidden, self.scale, self.log_std_bounds = tuple(hidden), scale, log_std_bounds
        located, scaled = heads
        self._bounds, self._located = LogBounds(*log_std_bounds), located
        width = located + scaled if scale == "network" else located
        self.network = EnsembleMLP(members, (inputs, *hidden, width), generator)
        if scale != "network":
            # A separate scale is an outer solver's alone.
            self.raw_scale = nn.Parameter(torch.zeros(members, 1, scaled), scale != "separate")
        if scale in ("detached", "tempered"):
            # A tempered scale is not trained by the inner level: an outer solver sets it once the
            # mean is there. A detached one is. Zeros: no draw that another scale would not make.
            features = self.network.sizes[-2]
            self.temper_weight = nn.Parameter(
                torch.zeros(members, features, scaled), scale == "detached"
            )
        if scale == "separate":
            # Set by an outer solver too. Its draws leave ``generator`` as it is without them.
            own = torch.Generator().manual_seed(generator.initial_seed())
            sizes = (self.network.sizes[-2], _SEPARATE_HIDDEN, scaled)
            self.scale_network = EnsembleMLP(members, sizes, own).requires_grad_(False)
            for parameter in self.scale_network.last.parameters():
                nn.init.zeros_(parameter)
        if scale in ("tempered", "separate"):
            # The range of raw scales that the solver saw: log-linear maps grow without limit off the
            # data, and so would an imagined rollout that draws from them.
            self.temper_low: Tensor
            self.temper_high: Tensor
            unbounded = torch.full((members, 1, scaled), math.inf)
            self.register_buffer("temper_low", -unbounded)
            self.register_buffer("temper_high", unbounded)
        if scale == "separate":
            # Added to log σ where there are other members, whose disagreement is spread already.
            self.dispersion: Tensor
            self.register_buffer("dispersion", torch.zeros(members, 1, scaled))
        if scale == "network":
            # Scales start at one for every x. From random weights a likelihood first shrinks σ
            # where the untrained mean happens to be right, and a linear policy stays there.
            with torch.no_grad():
                self.network.last.weight[..., located:] = 0.0
                self.network.last.bias[..., located:] = 0.0

    def _outputs(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The located outputs and the raw scales at ``x``, [E, B, heads[i]]; the scales not yet within
        their range."""
        if self.scale in ("detached", "tempered", "separate"):
            features = self.network.features(x)
            located: Tensor = self.network.last(features)
            return located, self.raw_scale_at(features.detach())
        output: Tensor = self.network(x)
        if self.scale == "network":
            return output[..., : self._located], output[..., self._located :]
        return output, self.raw_scale.expand(-1, output.shape[1], -1)

    def layers(self) -> tuple[list[Layer], ...]:
        """The hidden layers; those from the last of them to the located outputs; and likewise to the
        raw scales, unless these are constant. SiLU lies between any two."""
        trunk, (weight, bias) = self.network.pairs[:-1], self.network.pairs[-1]
        located = [(weight[..., : self._located], bias[..., : self._located])]
        if self.scale == "constant":
            return trunk, located
        if self.scale == "network":
            return trunk, located, [(weight[..., self._located :], bias[..., self._located :])]
        if self.scale == "separate":
            *hidden, (weight, bias) = self.scale_network.pairs
            return trunk, located, [*hidden, (weight, bias + self.raw_scale)]
        return trunk, located, [(self.temper_weight, self.raw_scale)]

    def _within_range(self, raw: Tensor) -> Tensor:
        """Raw scales [E, B, scaled] kept within what the outer solver saw, if it set them."""
        if self.scale in ("tempered", "separate"):
            return raw.clamp(self.temper_low, self.temper_high)
        return raw

    def raw_scale_at(self, features: Tensor) -> Tensor:
        """The raw scales [E, B, scaled] that are read from ``features`` [E, B, F] of the last hidden
        layer, before they are kept within their range."""
        if self.scale == "separate":
            found: Tensor = self.raw_scale + self.scale_network(features)
            return found
        return torch.baddbmm(self.raw_scale, features, self.temper_weight)

    def _set_raw_scale(self, raw: Tensor) -> None:
        """Set the constant raw scales to ``raw`` [E, scaled] or [scaled]."""
        with torch.no_grad():
            self.raw_scale.copy_(raw.expand(self.members, -1).unsqueeze(1))
            if self.scale == "tempered":
                self.temper_weight.zero_()
            if self.scale == "separate":
                for parameter in self.scale_network.last.parameters():
                    parameter.zero_()
                self.dispersion.zero_()
            if self.scale in ("tempered", "separate"):
                self.temper_low.fill_(-math.inf)
                self.temper_high.fill_(math.inf)

    def _check_settable(self, value: Tensor, name: str, shape: tuple[int, ...]) -> None:
        if self.scale in ("network", "detached"):
            raise InvalidInputError(
                f'set_{name} needs scale="constant"; a network scale is learned, not set'
            )
        if value.shape not in (shape, (self.members, *shape)):
            raise InvalidInputError(
                f"{name} must be {shape} or {(self.members, *shape)}; got {tuple(value.shape)}"
            )
