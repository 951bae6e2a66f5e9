"""A batched ensemble of multilayer perceptrons: one tensor per layer for all members.

Members are rows of the first dimension, so an ensemble costs one batched matrix product a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError

#: More parameters than this (4 GB of them) are taken for a slip, or for a hostile checkpoint.
_MOST_PARAMETERS = 10**9

#: Weight [E, in, out] and bias [E, 1, out].
Layer = tuple[Tensor, Tensor]


class EnsembleLinear(nn.Module):
    """E affine maps side by side: ``x [E, B, in] -> [E, B, out]``.

    Weights start uniform in ±1/√in, biases likewise (PyTorch's own default for ``nn.Linear``),
    each member from its own draws of ``generator``.
    """

    def __init__(self, members: int, inputs: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = inputs**-0.5

        def uniform(*shape: int) -> nn.Parameter:
            return nn.Parameter((2.0 * torch.rand(*shape, generator=generator) - 1.0) * bound)

        self.weight = uniform(members, inputs, outputs)
        self.bias = uniform(members, 1, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, x, self.weight)


class EnsembleMLP(nn.Module):
    """E perceptrons with SiLU between layers; no activation after the last layer.

    ``sizes`` is (inputs, hidden…, outputs); without hidden sizes the map is affine. Raises
    InvalidInputError for sizes below one, for more than 10⁹ parameters, and for an x that is not
    [E, B, inputs].
    """

    def __init__(self, members: int, sizes: Sequence[int], generator: torch.Generator) -> None:
        super().__init__()
        if members < 1 or len(sizes) < 2 or min(sizes) < 1:
            raise InvalidInputError(
                f"members and sizes must be positive, with at least an input and an output size; "
                f"got members={members}, sizes={tuple(sizes)}"
            )
        parameters = members * sum((a + 1) * b for a, b in pairwise(sizes))
        if parameters > _MOST_PARAMETERS:
            raise InvalidInputError(
                f"{members} members of layers {tuple(sizes)} would have {parameters:,} parameters; "
                f"ask for fewer members or smaller hidden layers ({_MOST_PARAMETERS:,} at most)"
            )
        self.members, self.sizes = members, tuple(sizes)
        self.layers = nn.ModuleList(
            EnsembleLinear(members, a, b, generator) for a, b in pairwise(sizes)
        )

    @property
    def last(self) -> EnsembleLinear:
        """The last layer: for starting values other than random."""
        layer = self.layers[-1]
        assert isinstance(layer, EnsembleLinear)
        return layer

    @property
    def pairs(self) -> list[Layer]:
        """Weight and bias of each layer, first to last."""
        return [(layer.weight, layer.bias) for layer in self.layers]  # type: ignore[misc]

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.last(self.features(x))
        return output

    def features(self, x: Tensor) -> Tensor:
        """What the last layer sees, [E, B, hidden[-1]]; x itself without hidden layers."""
        if x.ndim != 3 or x.shape[0] != self.members or x.shape[2] != self.sizes[0]:
            raise InvalidInputError(
                f"x must be [E, B, X] with E={self.members} and X={self.sizes[0]}; "
                f"got {tuple(x.shape)}: expand one batch for all members to that shape"
            )
        for layer in self.layers[:-1]:
            x = nn.functional.silu(layer(x))
        return x
