"""Scores of mixtures of normals, dimension by dimension, in closed form: CRPS, probability integral.

An ensemble is the mixture of its members. CRPS: Grimit et al. 2006 (Q. J. R. Meteorol. Soc. 132), eq. 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import UnsupportedCombinationError
from mbrl_bilevel.policies.distributions import DiagonalGaussian
from mbrl_bilevel.policies.mixture import GaussianMixture


@dataclass(frozen=True)
class Normals:
    """A mixture of C normals for each number: ``weight`` [C, B, 1], ``mean`` and ``std`` [C, B, D]."""

    weight: Tensor
    mean: Tensor
    std: Tensor

    @staticmethod
    def of(dist: DiagonalGaussian | GaussianMixture) -> Normals:
        """All members of an ensemble's ``dist`` [E, B, ·] together, each of weight 1/E.

        Raises UnsupportedCombinationError for another kind.
        """
        own: object = dist
        if not isinstance(own, DiagonalGaussian | GaussianMixture):
            raise UnsupportedCombinationError(
                f"CRPS and coverage have formulas for Gaussians and their mixtures; got a {type(own).__name__}: "
                "score it by its log_prob, or its rollouts by rollout_band"
            )
        members = dist.mean.shape[0]
        if isinstance(dist, DiagonalGaussian):
            return Normals(dist.mean.new_full((members, 1, 1), 1.0 / members), dist.mean, dist.std)
        weight = dist.weights.movedim(-1, 1).flatten(0, 1).unsqueeze(-1) / members
        mean, log_std = (p.movedim(-2, 1).flatten(0, 1) for p in (dist.mean, dist.log_std))
        return Normals(weight, mean, log_std.exp())

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, [B, D]."""
        mean = (self.weight * self.mean).sum(0)
        square = self.std.square() + (self.mean - mean).square()
        return mean, (self.weight * square).sum(0).sqrt()

    def cdf(self, y: Tensor) -> Tensor:
        """P(Y ≤ y) for y [B, D]; where y comes from the mixture, uniform (the probability integral)."""
        below: Tensor = self.weight * torch.special.ndtr((y - self.mean) / self.std)
        return below.sum(0)

    def crps(self, y: Tensor) -> Tensor:
        """∫ (F(z) − 1{y ≤ z})² dz at y [B, D], in the units of y."""
        error = (self.weight * _mean_absolute(y - self.mean, self.std)).sum(0)
        for first in range(len(self.mean)):
            # Pair by pair: all pairs at once would be C² times the data.
            apart = self.mean[first] - self.mean
            spread = torch.hypot(self.std[first].expand_as(self.std), self.std)
            pairs = (self.weight * _mean_absolute(apart, spread)).sum(0)
            error = error - 0.5 * self.weight[first] * pairs
        return error


def _mean_absolute(mean: Tensor, std: Tensor) -> Tensor:
    """E|X| for X ~ N(mean, std²)."""
    z = mean / std
    density = torch.exp(-0.5 * z.square()) * math.sqrt(2.0 / math.pi)
    found: Tensor = std * density + mean * (2.0 * torch.special.ndtr(z) - 1.0)
    return found
