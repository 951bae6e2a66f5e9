"""Logarithms of scales kept between two bounds, so that no network output makes σ zero or huge.

log σ = low + (high − low)·sigmoid(raw + c), with c such that raw = 0 means σ = 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError

#: Beyond this, sums of bounds leave single precision, in which they are applied.
_MOST = 1e30


@dataclass(frozen=True)
class LogBounds:
    """The interval [low, high] of a log-scale, with low < 0 < high both finite, in single precision too.

    Raises InvalidInputError otherwise.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (-_MOST < self.low < 0.0 < self.high < _MOST):
            raise InvalidInputError(
                "log_std_bounds must be finite (low, high) with low < 0 < high; "
                f"got ({self.low}, {self.high})"
            )

    def bound(self, raw: Tensor) -> Tensor:
        """Any ``raw`` to a log-scale in [low, high], of the same shape; zero to zero.

        The ends are reached only where the sigmoid rounds to 0 or 1.
        """
        if torch.is_inference_mode_enabled():
            share = raw.add(self._offset).sigmoid_()
            return share.mul_(self.high - self.low).add_(self.low).clamp_(self.low, self.high)
        share = torch.sigmoid(raw + self._offset)
        # Without the clamp, rounding in the last step can pass an end by one unit of it.
        return (self.low + (self.high - self.low) * share).clamp(self.low, self.high)

    def raw(self, log_scale: Tensor, name: str) -> Tensor:
        """The inverse of ``bound``, in float64, for a ``log_scale`` strictly inside the bounds.

        Raises InvalidInputError, naming the argument as ``name``, for a value outside or NaN.
        """
        wide = log_scale.double()
        share = (wide - self.low) / (self.high - self.low)
        if not bool(((share > 0.0) & (share < 1.0)).all()):
            raise InvalidInputError(
                f"{name}: every scale must lie between {math.exp(self.low):.3g} and "
                f"{math.exp(self.high):.3g}; got {wide.min().exp():.3g} to {wide.max().exp():.3g}: "
                "widen log_std_bounds of the policy, or bound the value"
            )
        return torch.logit(share) - self._offset

    @property
    def _offset(self) -> float:
        return math.log(-self.low / self.high)
