"""How much each target dimension counts in a reward: w_d, inferred by an outer level.

Gauge: the mean of log w is zero, for the inner problem and its temperature scale together.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DimensionWeights(nn.Module):
    """w_d = exp(log w_d − mean log w), the same for all members: [D], ones at the start. φ is log w.

    While members try weights of their own (``Population``), ``apart`` [E, 1, D] is added to log w.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.log_w = nn.Parameter(torch.zeros(dim))
        self.apart: Tensor | None = None

    @staticmethod
    def fixed(weights: Tensor) -> DimensionWeights:
        """Of which nothing is to be inferred any more: in the proportions of ``weights`` [D], all positive."""
        found = DimensionWeights(len(weights)).requires_grad_(False)
        found.log_w.copy_(weights.log())
        return found

    def forward(self) -> Tensor:
        """w, [D], or [E, 1, D] while members are apart."""
        log_w = self.log_w if self.apart is None else self.log_w + self.apart
        return (log_w - log_w.mean(-1, keepdim=True)).exp()

    def report(self) -> dict[str, float]:
        """w_d that all members share, under the name weight/d."""
        w = (self.log_w - self.log_w.mean()).exp().tolist()
        return {f"weight/{d}": value for d, value in enumerate(w)}


def weights_in(loss: object) -> DimensionWeights | None:
    """The DimensionWeights that ``loss`` holds, if there are any."""
    modules = loss.modules() if isinstance(loss, nn.Module) else ()
    return next((part for part in modules if isinstance(part, DimensionWeights)), None)
