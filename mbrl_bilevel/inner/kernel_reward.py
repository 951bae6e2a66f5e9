"""A reward that keeps modes and shrugs off outliers, and still has an inner optimum.

r = W·exp(−½ mean_d a_d e_d²) − Σ_d t_d e_d² with e = ŷ − y: a Gaussian kernel, which pays for being near
*a* target and nothing for being between two, with a weak quadratic tail against the growth of the entropy.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.inner.rewards import log_kernel_mean
from mbrl_bilevel.policies.distributions import DiagonalGaussian, Distribution
from mbrl_bilevel.policies.mixture import GaussianMixture


class KernelReward(nn.Module):
    """φ is w, a and t, one each per target dimension, in logarithms; W is the sum of w.

    At λ = 1 an inner optimum of one mode has about the precision w·a + 2t in each dimension; between two
    modes the density falls by up to e^(−W/2), so W says how sharply modes are told apart. The kernel is one
    over all dimensions: a sum of kernels, dimension by dimension, would have the product of the marginals
    for its optimum, and not know which modes go together. The mean in the exponent, in place of the sum,
    keeps it from vanishing in many dimensions.

    Raises InvalidInputError for a number that is not positive.
    """

    def __init__(
        self, dim: int, *, height: float = 8.0, precision: float = 16.0, tail: float = 0.1
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
        kernel = torch.exp(-0.5 * (self.log_precision.exp() * squared).mean(-1))
        return self._height * kernel - (self.log_tail.exp() * squared).sum(-1)

    def expected(self, dist: Distribution, y: Tensor, x: Tensor) -> Tensor:
        """E_{ŷ~dist}[r], [E, B]: of a Gaussian W Π_d (1 + b_d σ_d²)^(−½) exp(−½ b_d e_d²/(1 + b_d σ_d²))
        − Σ_d t_d (e_d² + σ_d²) with b = a/D, of a mixture the weighted sum (Petersen & Pedersen 2012,
        section 8.1.8).

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

    @property
    def _height(self) -> Tensor:
        return self.log_height.exp().sum()

    def _mean(self, error: Tensor, variance: Tensor) -> Tensor:
        precision = self.log_precision.exp() / error.shape[-1]
        kernel = log_kernel_mean(precision, error, variance).exp()
        tail = (self.log_tail.exp() * (error.square() + variance)).sum(-1)
        return self._height * kernel - tail
