"""A policy's distribution without gradients, many times over: the numbers of ``policy.dist``, faster.

One batched product and one in-place SiLU a layer. A bias is the weight of one more unit, which is
``_ONE`` in every layer, so that no pass over memory adds it; and rows go through all layers in blocks
that stay in the cache, in buffers that are kept from call to call.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from mbrl_bilevel.policies.allocation import keep_freed_memory
from mbrl_bilevel.policies.distributions import DiagonalGaussian
from mbrl_bilevel.policies.mixture import GaussianMixture
from mbrl_bilevel.policies.networks import Layer
from mbrl_bilevel.policies.policies import GaussianPolicy, MixturePolicy
from mbrl_bilevel.policies.precision import Precision

#: bfloat16 loses digits: it has to be this much faster to be chosen.
_WORTH_IT = 1.3

#: The constant unit: silu(64) is 64 to the last bit, and b / 64 · 64 is b.
_ONE = 64.0

#: Rows, of all members together, that go through the layers at once on a CPU: what the cache of a core
#: holds, with layers of a few hundred units. A product in bfloat16 costs more to start.
_BLOCK_ROWS, _BFLOAT16_BLOCK_ROWS = 700, 2000


class FrozenPolicy:
    """A policy as it is now, made ready for many calls of ``dist``. What happens to the policy later does not
    reach it: ``self.policy`` is a copy.

    In "bfloat16" the products and activations of the network are rounded to 8 bits; the inputs, the
    distribution, and all that is made of it, are not.
    """

    def __init__(
        self, policy: GaussianPolicy | MixturePolicy, precision: Precision = "float32"
    ) -> None:
        keep_freed_memory()
        self.precision = precision
        self.policy = copy.deepcopy(policy).requires_grad_(False)
        last = self.policy.network.last.weight
        self._dtype = dtype = torch.bfloat16 if precision == "bfloat16" else last.dtype
        trunk, *heads = self.policy.layers()
        self._trunk = [_with_constant_unit(layer, dtype) for layer in trunk]
        self._heads = [_chain(head, dtype) for head in heads]
        self._constant = self.policy.raw_scale if len(heads) == 1 else None
        #: Pairs of flat buffers, for the layers in turn. A call that finds none, since another thread
        #: has it, makes its own.
        self._spare: list[tuple[Tensor, Tensor]] = []

    @torch.inference_mode()
    def dist(self, x: Tensor) -> DiagonalGaussian | GaussianMixture:
        """The policy's distribution at x [E, …, B, X], without gradients."""
        dist = self.policy.from_outputs(*self._through_layers(x.flatten(1, -2)))
        lead = x.shape[:-1]
        return type(dist).from_params(tuple(p.reshape(*lead, *p.shape[2:]) for p in dist.params))

    def _through_layers(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Located outputs [E, B, L] and raw scales [E, B, S] at x [E, B, X]."""
        members, rows = x.shape[:2]
        group, block = self._block(x)
        widest = max(w.shape[1] for w in (*self._trunk, *(head[0] for head in self._heads)))
        buffers = self._borrowed(group * block * widest, x.device)
        found = [x.new_empty(members, rows, head[-1].shape[2]) for head in self._heads]
        for some in (slice(m, m + group) for m in range(0, members, group)):
            for part in (slice(b, b + block) for b in range(0, rows, block)):
                for whole, value in zip(found, self._outputs(x, some, part, buffers), strict=True):
                    whole[some, part] = value
        self._spare.append(buffers)
        if self._constant is not None:
            found.append(self._constant.expand(-1, rows, -1))
        located, raw = found
        return located, raw

    def _outputs(
        self, x: Tensor, some: slice, part: slice, buffers: tuple[Tensor, Tensor]
    ) -> list[Tensor]:
        """The heads of ``some`` members at a ``part`` of the rows of x, through the buffers in turn."""
        x = x[some, part]
        members, rows, width = x.shape
        h = _shaped(buffers[1], (members, rows, width + 1))
        h[..., :width] = x
        h[..., width] = _ONE
        for i, weight in enumerate(self._trunk):
            out = _shaped(buffers[i % 2], (members, rows, weight.shape[2]))
            h = _silu_(torch.bmm(h, weight[some], out=out))
        return [_through([weight[some] for weight in head], h) for head in self._heads]

    def _block(self, x: Tensor) -> tuple[int, int]:
        """How many members, and rows of each, go through the layers at once."""
        members, rows = x.shape[:2]
        if x.device.type != "cpu":
            return members, rows
        most = _BFLOAT16_BLOCK_ROWS if self._dtype == torch.bfloat16 else _BLOCK_ROWS
        return max(1, min(members, most // max(1, rows))), max(1, min(rows, most))

    def _borrowed(self, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Two flat buffers of at least ``size``; one who borrows them appends them to ``_spare``."""
        # A call from another thread may have them: then this one gets its own.
        spare = self._spare.pop() if self._spare else None
        if spare is None or len(spare[0]) < size:
            one, other = (torch.empty(size, dtype=self._dtype, device=device) for _ in range(2))
            return one, other
        return spare


@cache
def fastest_precision() -> Precision:
    """Which is faster on this machine's processor, measured once in a process: about 0.1 s. On a GPU it
    may be otherwise: name the precision there.

    On a network of the usual size with 256 rows a member. "bfloat16" only where it is faster by a
    margin, so that chance seldom decides; but a run that has to be repeated should name the answer.
    """
    generator = torch.Generator().manual_seed(0)
    policy = GaussianPolicy(23, 18, generator=generator, members=5, hidden=(200, 200))
    x = torch.randn(5, 256, 23, generator=generator)
    seconds: dict[Precision, float] = {"float32": math.inf, "bfloat16": math.inf}
    frozen = {precision: FrozenPolicy(policy, precision) for precision in seconds}
    for _ in range(20):
        for precision in seconds:
            start = time.perf_counter()
            frozen[precision].dist(x)
            seconds[precision] = min(seconds[precision], time.perf_counter() - start)
    return "bfloat16" if seconds["float32"] > _WORTH_IT * seconds["bfloat16"] else "float32"


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
