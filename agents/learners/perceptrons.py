"""Several ReLU networks on one batch, with their derivatives written out.

One network after the other, so that what a layer writes is still in the cache where the next reads it; and
no memory is written twice that can be overwritten.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_aten = torch.ops.aten
#: Added to the variance, as in nn.LayerNorm.
_EPSILON = 1e-5


class Layer(NamedTuple):
    """Weight [n, in, out] and bias [n, 1, out]; of a hidden layer with LayerNorm also the scale and the
    shift [n, 1, out] behind that. Of one network: without the first dimension."""

    weight: Tensor
    bias: Tensor
    scale: Tensor | None = None
    shift: Tensor | None = None


class _Hidden(NamedTuple):
    """What the way back needs of a hidden layer: its output [B, out]; and of its LayerNorm what that was
    given, and the mean and the inverse spread [B, 1] of that."""

    h: Tensor
    z: Tensor | None = None
    mean: Tensor | None = None
    inverse: Tensor | None = None


def values(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The outputs [n, B, out] of n networks with ReLU behind each hidden layer, all at x [B, in].

    It can be differentiated once, in x and in the layers.
    """
    flat = [part for layer in layers for part in layer]
    outputs: Tensor = _Perceptrons.apply(x, *flat)  # type: ignore[no-untyped-call]
    return outputs


class _Perceptrons(torch.autograd.Function):
    """``values`` on flattened layers: four entries each, None where there is none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *flat: Tensor | None) -> Tensor:
        layers = _grouped(flat, Layer)
        last = layers.pop()
        outputs = x.new_empty(len(last.weight), len(x), last.weight.shape[2])
        kept: list[Tensor | None] = []
        for index, output in enumerate(outputs):
            h = x
            for layer in layers:
                hidden = _hidden(h, _of_one(layer, index))
                kept += hidden
                h = hidden.h
            torch.addmm(last.bias[index], h, last.weight[index], out=output)
        ctx.save_for_backward(x, *flat, *kept)
        return outputs

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        count = len(ctx.needs_input_grad)
        x, *saved = ctx.saved_tensors
        layers = _grouped(saved[: count - 1], Layer)
        kept = _grouped(saved[count - 1 :], _Hidden)
        # Of a network all weights learn, or none.
        learning = ctx.needs_input_grad[1]
        found = [_empty_like(layer) for layer in layers] if learning else []
        for_x = torch.zeros_like(x) if ctx.needs_input_grad[0] else None
        scratch: dict[tuple[int, int], Tensor] = {}
        depth = len(layers) - 1
        for index, own in enumerate(gradient):
            _back(
                x,
                kept[index * depth : (index + 1) * depth],
                [_of_one(layer, index) for layer in layers],
                own,
                [_of_one(layer, index) for layer in found],
                for_x,
                scratch,
            )
        flat = [part for layer in found for part in layer]
        return (for_x, *(flat or [None] * (count - 1)))


def _back(
    x: Tensor,
    hidden: Sequence[_Hidden],
    layers: Sequence[Layer],
    gradient: Tensor,
    found: Sequence[Layer],
    for_x: Tensor | None,
    scratch: dict[tuple[int, int], Tensor],
) -> None:
    """From the gradient [B, out] of one network's output write those of its layers into ``found``, unless
    that is empty, and add that of its input to ``for_x``, unless that is None.

    ``scratch`` holds memory by width, for every other layer: what the last network wrote there is no more
    needed, and is still in the cache.
    """
    for index in range(len(layers) - 1, -1, -1):
        weight = layers[index].weight
        if found:
            given = hidden[index - 1].h if index else x
            torch.mm(given.t(), gradient, out=found[index].weight)
            torch.sum(gradient, 0, keepdim=True, out=found[index].bias)
        if index == 0:
            break
        # A product with one column is an outer product, and cheaper as such.
        product = torch.mul if weight.shape[1] == 1 else torch.mm
        place = (len(weight), index % 2)
        if place not in scratch:
            scratch[place] = gradient.new_empty(len(x), len(weight))
        gradient = product(gradient, weight.t(), out=scratch[place])
        own = found[index - 1] if found else None
        gradient = _through_hidden(gradient, hidden[index - 1], layers[index - 1], own)
    if for_x is not None:
        for_x.addmm_(gradient, layers[0].weight.t())


def _hidden(x: Tensor, layer: Layer) -> _Hidden:
    z = torch.addmm(layer.bias, x, layer.weight)
    if layer.scale is None or layer.shift is None:
        return _Hidden(z.relu_())
    h, mean, inverse = torch.native_layer_norm(
        z, z.shape[1:], layer.scale[0], layer.shift[0], _EPSILON
    )
    return _Hidden(h.relu_(), z, mean, inverse)


def _through_hidden(gradient: Tensor, hidden: _Hidden, layer: Layer, found: Layer | None) -> Tensor:
    """From the gradient of a hidden layer's output, which is overwritten, to that of its product; those of
    the LayerNorm's scale and shift are written into ``found``."""
    _aten.threshold_backward.grad_input(gradient, hidden.h, 0, grad_input=gradient)
    if layer.scale is None or layer.shift is None:
        return gradient
    wanted = [True, found is not None, found is not None]
    before, scale, shift = _aten.native_layer_norm_backward(
        gradient,
        hidden.z,
        gradient.shape[1:],
        hidden.mean,
        hidden.inverse,
        layer.scale[0],
        layer.shift[0],
        wanted,
    )
    if found is not None and found.scale is not None and found.shift is not None:
        found.scale.copy_(scale)
        found.shift.copy_(shift)
    assert isinstance(before, Tensor)
    return before


def _grouped(flat: Sequence[Any], kind: Any) -> list[Any]:
    return [kind(*flat[start : start + 4]) for start in range(0, len(flat), 4)]


def _of_one(layer: Layer, index: int) -> Layer:
    return Layer(*(part if part is None else part[index] for part in layer))  # type: ignore[arg-type]


def _empty_like(layer: Layer) -> Layer:
    return Layer(*(part if part is None else torch.empty_like(part) for part in layer))  # type: ignore[arg-type]
