"""PackNet (Mallya & Lazebnik 2018, arXiv 1711.05769): each task has weights of its own within one network.

After a task is learned its smallest weights are set to zero, the others are trained a little more and never
moved again; the next task trains what is free and uses what is not. It is told at test which task it is in.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Batch, FitResult
from mbrl_bilevel.continual.keeping import Fitted, Nothing, require_plain_loss
from mbrl_bilevel.data.splits import FitData
from mbrl_bilevel.inner.losses import Loss, Metrics
from mbrl_bilevel.outer.problem import Theta, at
from mbrl_bilevel.policies.networks import EnsembleMLP
from mbrl_bilevel.policies.policies import Policy
from mbrl_bilevel.training.method import Method
from mbrl_bilevel.training.settings import Schedule

#: Whose a weight is that no task has taken.
_FREE = -1
#: The part of a task's gradient steps before pruning; the paper's is 20 of 30 epochs.
_BEFORE = 2.0 / 3.0


@dataclass(frozen=True)
class Packed(Nothing):
    """Each task keeps ``share`` of the weights that are still free, layer by layer, the largest ones.

    ``owner`` says for each layer but the last which task has a weight, [E, in, out], −1 for none. As in the
    paper the last layer is each task's own (``heads``, with all that sets the scale) and starts from that of
    the task before; biases below it rest after the first task. Nothing of the data is kept.

    Raises InvalidInputError for a share that is not above 0 and below 1.
    """

    share: float
    owner: tuple[Tensor, ...] = ()
    heads: tuple[Mapping[str, Tensor], ...] = ()

    def __post_init__(self) -> None:
        if not 0.0 < self.share < 1.0:
            raise InvalidInputError(
                f"packnet: the strength is the share of the free weights that a task keeps, above 0 and below "
                f"1; got {self.share:g}"
            )

    def require_for(self, method: Method) -> None:
        """Raises UnsupportedCombinationError for an outer level that needs the inner problem unwrapped."""
        require_plain_loss(method, "packnet")

    def method(self, method: Method) -> Method:
        return replace(method, trainer=_Packing(self.share, self.owner))

    def after(self, policy: Fitted, new: FitData, generator: torch.Generator) -> Packed:
        task, weights = len(self.heads), list(_trunk(policy).values())
        before = self.owner or tuple(torch.full(w.shape, _FREE) for w in weights)
        # What pruning left of the free weights is not zero.
        owner = tuple(
            torch.where((o == _FREE) & (w != 0.0), task, o)
            for o, w in zip(before, weights, strict=True)
        )
        head = {
            name: value.detach().clone()
            for name, value in policy.state_dict().items()
            if name not in _trunk(policy)
        }
        return replace(self, owner=owner, heads=(*self.heads, head))

    def of_task(self, policy: Fitted, number: int) -> Fitted:
        """``policy`` as it was once task ``number`` (the first is 0) had been learned; the last one's for those to
        come."""
        if number >= len(self.heads) - 1:
            return policy
        found = copy.deepcopy(policy)
        found.load_state_dict(self.heads[number], strict=False)
        with torch.no_grad():
            for weight, owner in zip(_trunk(found).values(), self.owner, strict=True):
                weight.mul_((owner != _FREE) & (owner <= number))
        return found


@dataclass(frozen=True)
class _Packing:
    """Fits, prunes and fits again: two thirds of the steps, and one."""

    share: float
    owner: tuple[Tensor, ...]

    def __call__(
        self,
        method: Method,
        policy: Any,
        data: FitData,
        generator: torch.Generator,
        schedule: Schedule,
    ) -> FitResult:
        weights = list(_trunk(policy).values())
        free = [o == _FREE for o in self.owner] or [torch.ones_like(w).bool() for w in weights]
        # Adam's weight decay would move weights that have no gradient.
        schedule = replace(schedule, weight_decay=0.0)
        steps = max(1, round(_BEFORE * schedule.steps))
        before = replace(schedule, steps=steps)
        first = self._moving(method, policy, free).fit(
            policy, data, generator=generator, schedule=before
        )
        kept = [_largest(w.detach(), f, self.share) for w, f in zip(weights, free, strict=True)]
        with torch.no_grad():
            for weight, mine, others in zip(weights, kept, free, strict=True):
                weight.mul_(mine | ~others)
        rest = replace(schedule, steps=max(1, schedule.steps - steps))
        again = self._moving(method, policy, kept).fit(
            policy, data, generator=generator, schedule=rest
        )
        return replace(again, steps=first.steps + again.steps)

    def _moving(self, method: Method, policy: Any, free: Sequence[Tensor]) -> Method:
        """The same method, of whose trunk only these weights move, and after the first task no bias."""
        masks = dict(zip(_trunk(policy), free, strict=True))
        if self.owner:
            masks |= {
                name.replace("weight", "bias"): torch.zeros((), dtype=torch.bool) for name in masks
            }
        found = method.around(lambda loss: Held(loss, masks))
        if found.warm_up is None:
            return found
        return replace(found, warm_up=replace(found.warm_up, loss=Held(found.warm_up.loss, masks)))


@dataclass(frozen=True)
class Held:
    """``loss``, through which a parameter that has a mask in ``free`` (by name, broadcastable to it) gets a gradient
    only where that is True."""

    loss: Loss
    free: Mapping[str, Tensor]

    def __call__(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        theta = Theta.of(policy)
        tensors = [
            torch.where(self.free[name], p, p.detach()) if name in self.free else p
            for name, p in zip(theta.names, theta.tensors, strict=True)
        ]
        return at(policy, theta, tensors, lambda held: self.loss(held, batch, generator)[0]), {}


def _trunk(policy: Any) -> dict[str, Tensor]:
    """The weights of all layers but the last, by name."""
    network: EnsembleMLP = policy.network
    pairs = network.pairs[:-1]
    return {f"network.layers.{i}.weight": weight for i, (weight, _) in enumerate(pairs)}


def _largest(weight: Tensor, free: Tensor, share: float) -> Tensor:
    """The ``share`` of each member's ``free`` weights [E, in, out] that is largest in magnitude, as a mask."""
    count = math.ceil(share * int(free[0].sum()))
    size = torch.where(free, weight.abs(), -1.0).flatten(1)
    chosen = torch.zeros_like(size, dtype=torch.bool)
    return chosen.scatter_(1, size.topk(count, dim=1).indices, True).reshape(weight.shape) & free
