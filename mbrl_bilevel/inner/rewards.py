"""Rewards r_φ(ŷ, y, x): what generating ŷ is worth where the data says y.

Each is a module whose parameters are φ, the variables of the outer problem; a plain function is a
reward without φ. Source: From Data to Rewards (arXiv 2510.07624).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.inner.positive import QuadraticForm
from mbrl_bilevel.policies.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    FullGaussian,
    RealValued,
)
from mbrl_bilevel.policies.mixture import GaussianMixture
from mbrl_bilevel.policies.networks import EnsembleMLP
from mbrl_bilevel.policies.policies import CategoricalPolicy


@runtime_checkable
class Reward(Protocol):
    """``reward(y_hat [K, E, B, D], y [E, B, D], x [E, B, X]) -> [K, E, B]``, higher is better."""

    def __call__(self, y_hat: Tensor, y: Tensor, x: Tensor, /) -> Tensor: ...


@runtime_checkable
class AnalyticReward(Reward, Protocol):
    """A reward whose mean under some kinds of policy has a closed form."""

    def expected(self, dist: Distribution, y: Tensor, x: Tensor) -> Tensor:
        """E_{ŷ~dist}[r(ŷ, y, x)], [E, B].

        Raises UnsupportedCombinationError for a kind of ``dist`` without a closed form.
        """
        ...


def expected_reward(reward: Reward, dist: Distribution, y: Tensor, x: Tensor) -> Tensor:
    """E_{ŷ~dist}[r(ŷ, y, x)] in closed form, [E, B].

    Raises UnsupportedCombinationError where there is none, InvalidInputError where the reward's
    own formula returns another shape.
    """
    if not isinstance(reward, AnalyticReward):
        _refuse_mean(reward, dist)
    return checked_shape(reward.expected(dist, y, x), y.shape[:-1], "expected")


def checked_shape(value: Tensor, shape: Sequence[int], what: str = "reward") -> Tensor:
    """``value``, if it has this shape. Raises InvalidInputError: broadcasting would hide a slip."""
    if tuple(value.shape) != tuple(shape):
        raise InvalidInputError(
            f"{what} must return one number per sample and row, {tuple(shape)}; got "
            f"{tuple(value.shape)}: sum over the target dimensions, and drop the last one"
        )
    return value


class Mahalanobis(QuadraticForm):
    """r = −(ŷ − y)ᵀ U (ŷ − y), U positive definite: constant, or diagonal and a function of x.

    With entropy weight λ the inner optimum is N(E[y|x], (λ/2) U⁻¹), whatever the shape of the data:
    two modes are seen as their mean (arXiv 2510.07624, section 4). Arguments: see QuadraticForm.
    """

    def forward(self, y_hat: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return -self.quadratic(y_hat - y, x)

    def expected(self, dist: Distribution, y: Tensor, x: Tensor) -> Tensor:
        """−(m − y)ᵀU(m − y) − tr(U S) for mean m and covariance S of ``dist``, [E, B].

        The mean of a quadratic form (Petersen & Pedersen 2012, eq. 378). Raises
        UnsupportedCombinationError for a policy over classes: use RewardMatrix there.
        """
        if isinstance(dist, DiagonalGaussian):  # the hot path: without a [D, D] covariance
            spread = (dist.std.square() * self.diagonal(x)).sum(-1)
            return -self.quadratic(dist.mean - y, x) - spread
        if not isinstance(dist, RealValued):
            _refuse_mean(self, dist)
        mean, covariance = dist.moments()
        return -self.quadratic(mean - y, x) - self.trace(covariance, x)


def log_kernel_mean(precision: Tensor, residual: Tensor, variance: Tensor) -> Tensor:
    """log E[exp(−½ Σ_d a_d e_d²)] for e ~ N(residual, variance) and a = ``precision``, [..., D] -> [...].

    The product of two Gaussians integrated (Petersen & Pedersen 2012, section 8.1.8).
    """
    shrink = 1.0 + precision * variance
    return -0.5 * (shrink.log() + precision * residual.square() / shrink).sum(-1)


class RBF(QuadraticForm):
    """r = exp(−½ (ŷ − y)ᵀ A (ŷ − y)) in (0, 1]: indifferent to far outliers, keeps modes apart.

    A^(−1/2) is the bandwidth. Arguments: see QuadraticForm. The reward is bounded and the entropy of
    a Gaussian is not, so with entropy alone G has no maximum: it grows with σ for ever. A local
    maximum at small σ exists below ``most_temperature``; use a temperature well below, or add KL to a
    reference, which makes the optimum proper.
    """

    @property
    def most_temperature(self) -> float:
        """(2/D)(1 + 2/D)^(−D/2−1): .385 for D = 1, .25 for D = 2. There is no local maximum from there on."""
        share = 2.0 / self.dim
        return share * math.exp(-(1.0 + 1.0 / share) * math.log1p(share))

    def forward(self, y_hat: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return torch.exp(-0.5 * self.quadratic(y_hat - y, x))

    def expected(self, dist: Distribution, y: Tensor, x: Tensor) -> Tensor:
        """``Σ_m w_m |I + A S_m|^(−½) exp(−½ (μ_m − y)ᵀ (A⁻¹ + S_m)⁻¹ (μ_m − y))``, [E, B].

        The product of two Gaussians integrated (Petersen & Pedersen 2012, section 8.1.8). Raises
        UnsupportedCombinationError for a policy that is neither Gaussian nor a mixture of them.
        """
        if isinstance(dist, DiagonalGaussian):
            return self._log_mean(dist.mean - y, dist.std.square(), x).exp()
        if isinstance(dist, FullGaussian):
            _, covariance = dist.moments()
            return self._log_mean_full(dist.mean - y, covariance, x).exp()
        if not isinstance(dist, GaussianMixture):
            _refuse_mean(self, dist)
        # Components go where samples go, so that one formula does for all: [M, E, B, D].
        residual = dist.mean.movedim(-2, 0) - y
        variance = (2.0 * dist.log_std).exp().movedim(-2, 0)
        log_weights = dist.log_probs.movedim(-1, 0)
        return (log_weights + self._log_mean(residual, variance, x)).exp().sum(0)

    def _log_mean(self, residual: Tensor, variance: Tensor, x: Tensor) -> Tensor:
        """log E[r] for diagonal ``variance`` [..., E, B, D]: [..., E, B]."""
        if self.form == "full":
            return self._log_mean_full(residual, torch.diag_embed(variance), x)
        return log_kernel_mean(self.diagonal(x), residual, variance)

    def _log_mean_full(self, residual: Tensor, covariance: Tensor, x: Tensor) -> Tensor:
        """log E[r] for ``covariance`` [..., E, B, D, D]: [..., E, B].

        With A = L·Lᵀ and M = I + LᵀSL, which is well conditioned where A or S is not:
        −½ log|M| − ½ zᵀ M⁻¹ z, z = Lᵀ(μ − y).
        """
        if self.form == "input_dependent":
            lower = torch.diag_embed(self.diagonal(x).sqrt())
        else:
            lower = self.lower
        identity = torch.eye(self.dim, dtype=residual.dtype, device=residual.device)
        factor = torch.linalg.cholesky(identity + lower.mT @ covariance @ lower)
        z = (residual.unsqueeze(-2) @ lower).mT
        z = torch.linalg.solve_triangular(factor, z, upper=False).squeeze(-1)
        half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        log_mean: Tensor = -half_log_det - 0.5 * z.square().sum(-1)
        return log_mean


class RewardMatrix(nn.Module):
    """r = R[ŷ, y] for classes 0 … C−1: what predicting ŷ is worth where y is true. φ is R = ``matrix`` [C, C].

    With entropy weight λ the inner optimum is p*(ŷ|x) = softmax(Σ_y q(y|x) R[ŷ, y]/λ). Adding a
    number to a column of R changes nothing. Raises InvalidInputError unless R is square and finite.
    """

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.isfinite().all():
            raise InvalidInputError(
                f"matrix must be [C, C] and finite, rows ŷ and columns y; got shape "
                f"{tuple(matrix.shape)}"
            )
        self.matrix = nn.Parameter(matrix.detach().clone())

    @staticmethod
    def identity(classes: int, value: float = 1.0) -> RewardMatrix:
        """R = value·I: only the true class is worth anything."""
        return RewardMatrix(value * torch.eye(classes))

    @staticmethod
    def one_hot(u: Tensor) -> RewardMatrix:
        """The Mahalanobis reward of one-hot classes with U [C, C], or its diagonal [C].

        R[i, j] = −(e_i − e_j)ᵀ U (e_i − e_j) = 2 U_ij − U_ii − U_jj.
        """
        matrix = torch.diag_embed(u) if u.ndim == 1 else u
        diagonal = matrix.diagonal()
        return RewardMatrix(matrix + matrix.mT - diagonal.unsqueeze(0) - diagonal.unsqueeze(1))

    def forward(self, y_hat: Tensor, y: Tensor, x: Tensor) -> Tensor:
        predicted = y_hat.long().squeeze(-1)
        return self.matrix[predicted, y.long().squeeze(-1).expand_as(predicted)]

    def expected(self, dist: Distribution, y: Tensor, x: Tensor) -> Tensor:
        """Σ_ŷ p(ŷ) R[ŷ, y], [E, B]. Raises UnsupportedCombinationError for real targets."""
        if not isinstance(dist, Categorical):
            _refuse_mean(self, dist)
        return (dist.probs * self.matrix.mT[y.long().squeeze(-1)]).sum(-1)


class LogTangent(nn.Module):
    """r = 1{ŷ = y}/p̂(ŷ|x) − 1 + log p̂(y|x) for classes: to be right pays the more, the less likely it was.

    p̂ is the ``policy`` as it is, as data: no gradient flows through it, and it is no φ. The mean reward
    under p is the tangent of log p(y|x) at p̂, so that p = p̂ = q is a fixed point of the inner problem
    near p̂ (λ_K·KL to p̂), whatever q(·|x). A constant reward matrix has no such point where three classes
    are likely. The last term is free of ŷ: a baseline, by which the value is that of the likelihood as well.

    With the entropy beside it the fixed point is the p with q = p·(1 + λ_H·(log p + H(p))): to first order
    in λ_H the power p^(1 + λ_H), which another temperature undoes (``HeldOutClassTemperature``).
    """

    def __init__(self, policy: CategoricalPolicy) -> None:
        super().__init__()
        # In a tuple, so that θ is not among this module's own parameters, which are φ.
        self._policy = (policy,)

    def forward(self, y_hat: Tensor, y: Tensor, x: Tensor) -> Tensor:
        with torch.no_grad():
            log_chance = self._policy[0].dist(x).log_prob(y)
        right = (y_hat == y).squeeze(-1).to(log_chance.dtype)
        return right * torch.exp(-log_chance) - 1.0 + log_chance

    def expected(self, dist: Distribution, y: Tensor, x: Tensor) -> Tensor:
        """p(y)/p̂(y) − 1 + log p̂(y) for ``dist`` p, which must be the policy's own at x, [E, B].

        Raises UnsupportedCombinationError for real targets.
        """
        if not isinstance(dist, Categorical):
            _refuse_mean(self, dist)
        log_prob = dist.log_prob(y)
        log_chance = log_prob.detach()
        return torch.exp(log_prob - log_chance) - 1.0 + log_chance


class NeuralReward(nn.Module):
    """r = b·tanh(f_φ(ŷ − y, y, x)/b) − ``tail``·‖ŷ − y‖², f a network that starts at zero.

    Of ``dim`` targets; f reads the first ``inputs`` columns of x, none by default. ``hidden``: the units of its hidden
    layers, whose initial weights ``generator`` draws (by default, from the seed 0).

    ``bound`` b keeps the learned part finite; the quadratic ``tail`` makes exp(r/λ) integrable, so
    that the inner problem has a maximum: with a bounded reward alone the entropy grows for ever.
    At the start this is the Mahalanobis reward with U = tail·I. ``bound=None`` leaves f free,
    ``tail=0`` takes the tail away: then the policy's own bounds must hold. It has no closed form:
    its mean is sampled.

    Raises InvalidInputError for ``dim`` below one, ``inputs`` below zero, ``bound`` <= 0 or ``tail`` < 0.
    """

    def __init__(
        self,
        dim: int,
        inputs: int = 0,
        *,
        generator: torch.Generator | None = None,
        hidden: Sequence[int] = (64, 64),
        bound: float | None = 10.0,
        tail: float = 0.5,
    ) -> None:
        super().__init__()
        if (bound is not None and not 0.0 < bound < math.inf) or not 0.0 <= tail < math.inf:
            raise InvalidInputError(
                f"bound must be positive or None and tail >= 0; got bound={bound}, tail={tail}"
            )
        if dim < 1 or inputs < 0:
            raise InvalidInputError(
                f"NeuralReward: dim must be at least 1 and inputs at least 0; got {dim}, {inputs}"
            )
        self.bound, self.tail, self._inputs = bound, tail, inputs
        generator = generator or torch.Generator().manual_seed(0)
        self.network = EnsembleMLP(1, (2 * dim + inputs, *hidden, 1), generator)
        for parameter in self.network.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, y_hat: Tensor, y: Tensor, x: Tensor) -> Tensor:
        lead = y_hat.shape[:-1]
        context = torch.cat((y, x[..., : self._inputs]), -1).expand(*lead, -1)
        features = torch.cat((y_hat - y, context), -1)
        # The reward is shared by the members: all rows go through one network.
        learned: Tensor = self.network(features.reshape(1, -1, features.shape[-1])).reshape(lead)
        if self.bound is not None:
            learned = self.bound * torch.tanh(learned / self.bound)
        return learned - self.tail * (y_hat - y).square().sum(-1)


def _refuse_mean(reward: object, dist: Distribution) -> NoReturn:
    name = getattr(reward, "__name__", type(reward).__name__)
    raise UnsupportedCombinationError(
        f"reward {name} has no closed-form mean under a {type(dist).__name__}: use a sampled "
        "estimator (LeaveOneOut, Pathwise or DiCE) instead of Analytic"
    )
