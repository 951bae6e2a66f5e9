"""A policy's distribution without gradients, many times over: the numbers of ``policy.dist``, faster.

One batched product and one in-place SiLU a layer. A bias is the weight of one more unit, which is
``_ONE`` in every layer, so that no pass over memory adds it; and rows go through all layers in blocks
that stay in the cache, in buffers that are kept from call to call.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mbrl_bilevel.allocation import keep_freed_memory
from mbrl_bilevel.distributions import DiagonalGaussian
from mbrl_bilevel.mixture import GaussianMixture
from mbrl_bilevel.networks import Layer
from mbrl_bilevel.policies import GaussianPolicy, MixturePolicy

#: What a network computes in; "float32" is the type that its parameters have.
Precision = Literal["float32", "bfloat16"]

#: The constant unit: silu(64) is 64 to the last bit, and b / 64 · 64 is b.
_ONE = 64.0

#: Rows, of all members together, that go through the layers at once on a CPU. A product in bfloat16
#: costs more to start, and its rows take half the space.
_BLOCK_ROWS, _BFLOAT16_BLOCK_ROWS = 700, 10_000


@torch.inference_mode()
def infer(
    policy: GaussianPolicy | MixturePolicy, x: Tensor, precision: Precision = "float32"
) -> DiagonalGaussian | GaussianMixture:
    """``policy.dist(x)`` at x [E, …, B, X], without gradients.

    In "bfloat16" the products and activations of the network are rounded to 8 bits; x, the results,
    and all that is made of them, are not.
    """
    dist = policy.from_outputs(*_fused(policy, precision)(x.flatten(1, -2)))
    return type(dist).from_params(tuple(p.unflatten(1, x.shape[1:-1]) for p in dist.params))


class _Fused:
    """The layers of a policy: x [E, B, X] to located outputs [E, B, L] and raw scales [E, B, S]."""

    def __init__(self, policy: GaussianPolicy | MixturePolicy, dtype: torch.dtype) -> None:
        keep_freed_memory()
        self._made_of = tuple((p, _version(p)) for p in policy.parameters())
        self._dtype = dtype
        trunk, *heads = policy.layers()
        self._trunk = [_with_constant_unit(layer, dtype) for layer in trunk]
        self._heads = [_chain(head, dtype) for head in heads]
        self._constant = policy.raw_scale.detach() if len(heads) == 1 else None
        #: Two buffers for the layers in turn. A call that finds none (another thread has them) makes
        #: its own.
        self._spare: list[tuple[Tensor, Tensor]] = []

    def is_of(self, policy: nn.Module) -> bool:
        """Whether it was made of this policy's parameters, at the values that they have now."""
        now = tuple(policy.parameters())
        return len(now) == len(self._made_of) and all(
            new is old and _version(new) == version
            for new, (old, version) in zip(now, self._made_of, strict=True)
        )

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        members, rows = x.shape[:2]
        block = self._block(x)
        widest = max(w.shape[1] for w in (*self._trunk, *(head[0] for head in self._heads)))
        buffers = self._borrowed(members * block * widest, x.device)
        parts = [self._outputs(part, buffers) for part in x.split(block, dim=1)]
        self._spare.append(buffers)
        found = [part[0] if rows <= block else torch.cat(part, 1) for part in zip(*parts)]
        found = [value.to(x.dtype) for value in found]
        if self._constant is not None:
            found.append(self._constant.expand(-1, rows, -1))
        located, raw = found
        return located, raw

    def _outputs(self, x: Tensor, buffers: tuple[Tensor, Tensor]) -> list[Tensor]:
        """The heads at x [E, b, X], through the buffers in turn."""
        members, rows, width = x.shape
        h = _shaped(buffers[1], (members, rows, width + 1))
        h[..., :width] = x
        h[..., width] = _ONE
        for i, weight in enumerate(self._trunk):
            out = _shaped(buffers[i % 2], (members, rows, weight.shape[2]))
            h = _silu_(torch.bmm(h, weight, out=out))
        return [_through(head, h) for head in self._heads]

    def _block(self, x: Tensor) -> int:
        """Rows of each member that go through the layers at once."""
        members, rows = x.shape[:2]
        if x.device.type != "cpu":
            return rows
        most = _BFLOAT16_BLOCK_ROWS if self._dtype == torch.bfloat16 else _BLOCK_ROWS
        return max(1, min(rows, most // members))

    def _borrowed(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Two flat buffers of at least ``size``; one who borrows them appends them to ``_spare``."""
        # A call from another thread may have them: then this one gets its own.
        spare = self._spare.pop() if self._spare else None
        if spare is None or len(spare[0]) < size:
            one, other = (torch.empty(size, dtype=self._dtype, device=device) for _ in range(2))
            return one, other
        return spare


#: The layers of each policy made ready, as long as it lives.
_KNOWN: WeakKeyDictionary[nn.Module, dict[torch.dtype, _Fused]] = WeakKeyDictionary()


def _fused(policy: GaussianPolicy | MixturePolicy, precision: Precision) -> _Fused:
    """The policy's layers made ready, those of the last time if its parameters are as they were."""
    dtype = torch.bfloat16 if precision == "bfloat16" else policy.network.last.weight.dtype
    known = _KNOWN.setdefault(policy, {})
    if dtype not in known or not known[dtype].is_of(policy):
        known[dtype] = _Fused(policy, dtype)
    return known[dtype]


def _chain(layers: Sequence[Layer], dtype: torch.dtype) -> list[Tensor]:
    """Weights of layers with SiLU between, the last without the constant unit."""
    *hidden, last = layers
    return [*(_with_constant_unit(layer, dtype) for layer in hidden), _with_bias(last, dtype)]


def _with_constant_unit(layer: Layer, dtype: torch.dtype) -> Tensor:
    """[E, in + 1, out + 1]: one more unit, that is what it was in the layer before."""
    weight = _with_bias(layer, dtype)
    unit = weight.new_zeros(*weight.shape[:2], 1)
    unit[:, -1] = 1.0
    return torch.cat([weight, unit], dim=2)


def _with_bias(layer: Layer, dtype: torch.dtype) -> Tensor:
    """[E, in + 1, out]: the bias is the weight of the constant unit."""
    weight, bias = layer
    return torch.cat([weight, bias / _ONE], dim=1).to(dtype)


def _through(weights: Sequence[Tensor], h: Tensor) -> Tensor:
    for weight in weights[:-1]:
        h = _silu_(torch.bmm(h, weight))
    return torch.bmm(h, weights[-1])


def _silu_(x: Tensor) -> Tensor:
    return nn.functional.silu(x, inplace=True)


def _shaped(buffer: Tensor, shape: tuple[int, int, int]) -> Tensor:
    return buffer[: math.prod(shape)].view(shape)


def _version(parameter: Tensor) -> int:
    """A number that changes whenever the values do."""
    return 0 if parameter.is_inference() else parameter._version
