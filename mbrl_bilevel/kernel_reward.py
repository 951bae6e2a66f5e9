"""A reward that keeps modes and shrugs off outliers, and still has an inner optimum.

r = Σ_d w_d·exp(−½ a_d (ŷ_d − y_d)²) − t_d (ŷ_d − y_d)²: Gaussian kernels, which pay for being near *a*
target and nothing for being between two, with a weak quadratic tail against the growth of the entropy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mbrl_bilevel.distributions import DiagonalGaussian, Distribution
from mbrl_bilevel.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.mixture import GaussianMixture


class KernelReward(nn.Module):
    """φ is w, a and t, one each per target dimension, in logarithms.

    At λ = 1 an inner optimum of one mode has the precision w·a + 2t; between two modes the density falls
    by e^(−w/2), so w says how sharply modes are told apart. An RBF is bounded, and so is its product
    over many dimensions, which is next to nothing away from y: hence the sum, and the tail.

    Raises InvalidInputError for a number that is not positive.
    """

    def __init__(
        self, dim: int, *, height: float = 8.0, precision: float = 8.0, tail: float = 0.02
    ) -> None:
        super().__init__()
        if dim < 1 or not min(height, precision, tail) > 0.0:
            raise InvalidInputError(
                f"dim must be >= 1 and height, precision and tail positive; got {dim}, {height}, "
                f"{precision} and {tail}"
            )
        self.log_height, self.log_precision, self.log_tail = (
            nn.Parameter(torch.full((dim,), math.log(value))) for value in (height, precision, tail)
        )

    def forward(self, y_hat: Tensor, y: Tensor, x: Tensor) -> Tensor:
        squared = (y_hat - y).square()
        kernel = torch.exp(self.log_height - 0.5 * self.log_precision.exp() * squared)
        return (kernel - self.log_tail.exp() * squared).sum(-1)

    def expected(self, dist: Distribution, y: Tensor, x: Tensor) -> Tensor:
        """E_{ŷ~dist}[r], [E, B]: of a Gaussian w (1 + a σ²)^(−½) exp(−½ a e²/(1 + a σ²)) − t (e² + σ²) per
        dimension, of a mixture the weighted sum.

        Raises UnsupportedCombinationError for another policy.
        """
        if isinstance(dist, DiagonalGaussian):
            return self._mean(dist.mean - y, dist.std.square())
        if isinstance(dist, GaussianMixture):
            variance = torch.exp(2.0 * dist.log_std)
            return (dist.weights * self._mean(dist.mean - y.unsqueeze(-2), variance)).sum(-1)
        raise UnsupportedCombinationError(
            f"KernelReward has no closed-form mean under a {type(dist).__name__}: use a Gaussian or "
            "mixture policy, or a sampled estimator"
        )

    def _mean(self, error: Tensor, variance: Tensor) -> Tensor:
        precision, squared = self.log_precision.exp(), error.square()
        wider = 1.0 + precision * variance
        kernel = torch.exp(self.log_height - 0.5 * wider.log() - 0.5 * precision * squared / wider)
        return (kernel - self.log_tail.exp() * (squared + variance)).sum(-1)
