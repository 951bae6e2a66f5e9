"""An invertible affine map to zero mean and unit variance, per dimension.

Densities change under it by its log-determinant: log p(raw) = log p(normalised) − Σ_d log scale_d.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.rounding import ULPS


@dataclass(frozen=True)
class Normaliser:
    """``normalised = (raw − shift) / scale`` with ``shift`` and ``scale`` [D].

    ``constant`` [D] marks the dimensions that did not vary in the data by more than rounding at their size
    (``rounding.ULPS``), whatever their unit: their scale is 1 and a model predicts them as their value,
    outside of any likelihood.
    """

    shift: Tensor
    scale: Tensor
    constant: Tensor

    @staticmethod
    def fit(values: Tensor) -> Normaliser:
        """Mean and standard deviation of ``values`` [N, D].

        Raises InvalidInputError if there are no rows, or a value is not a finite float.
        """
        if values.ndim != 2 or len(values) == 0:
            raise InvalidInputError(
                f"Normaliser.fit: values must be [N, D] with N >= 1; got {tuple(values.shape)}"
            )
        if not values.is_floating_point():
            raise InvalidInputError(
                f"Normaliser.fit: values must be floats; got {values.dtype}: convert with .float()"
            )
        if not values.isfinite().all():
            raise InvalidInputError("Normaliser.fit: values hold NaN or infinity; remove them")
        wide = values.double()
        shift, spread = wide.mean(0), wide.std(0, correction=0)
        constant = spread <= ULPS * torch.finfo(values.dtype).eps * wide.abs().amax(0)
        scale = torch.where(constant, torch.ones_like(spread), spread)
        return Normaliser(shift.to(values.dtype), scale.to(values.dtype), constant)

    def to(self, device: torch.device | str) -> Normaliser:
        """The same on ``device``."""
        return Normaliser(self.shift.to(device), self.scale.to(device), self.constant.to(device))

    def normalise(self, values: Tensor) -> Tensor:
        """Raw to normalised, [..., D]."""
        centred = values - self.shift
        if torch.is_inference_mode_enabled():
            return centred.div_(self.scale)
        return centred / self.scale

    def denormalise(self, values: Tensor) -> Tensor:
        """Normalised to raw, [..., D]."""
        return values * self.scale + self.shift

    def log_det(self) -> Tensor:
        """Σ_d log scale_d over the varying dimensions: raw log density = normalised − this."""
        return self.scale[~self.constant].log().sum()
