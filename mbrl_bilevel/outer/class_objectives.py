"""What the outer level may want of a classifier beside likelihood, and what early stopping watches.

Values per member on held-out rows, to be minimised; each has a gradient in the probabilities.
BalancedError is in objectives.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.class_losses import categorical
from mbrl_bilevel.inner.losses import Loss
from mbrl_bilevel.policies.policies import Policy


@dataclass(frozen=True)
class ExpectedCost:
    """E[cost[y, ŷ]] of a classifier that draws its answer ŷ: rows y true, columns ŷ answered.

    Raises InvalidInputError for a matrix that is not square and finite.
    """

    cost: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        widths = {len(row) for row in self.cost}
        if widths != {len(self.cost)} or not torch.tensor(self.cost).isfinite().all():
            raise InvalidInputError(
                "cost must be a square matrix of finite numbers, row y and column ŷ; "
                f"got rows of {sorted(widths)} numbers"
            )

    def __call__(self, policy: Policy, batch: Batch) -> Tensor:
        dist = categorical(policy.dist(batch.x), "ExpectedCost")
        if dist.logits.shape[-1] != len(self.cost):
            raise InvalidInputError(
                f"cost is {len(self.cost)} x {len(self.cost)}, but there are "
                f"{dist.logits.shape[-1]} classes: give one row and column for each"
            )
        cost = torch.tensor(self.cost, dtype=dist.logits.dtype, device=dist.logits.device)
        return batch.mean((dist.probs * cost[batch.y[..., 0].long()]).sum(-1))


@dataclass(frozen=True)
class OwnLoss:
    """The training loss itself on held-out rows: what a bounded reward can still improve on there.

    The likelihood would go on asking for more confidence than the reward can pay for.
    """

    loss: Loss

    def __call__(self, policy: Policy, batch: Batch) -> Tensor:
        return self.loss(policy, batch, torch.Generator())[0]
