"""Mixtures of diagonal Gaussians: exact densities and draws, bounds of entropy and KL.

Neither has a closed form; the bounds are those of Kolchinsky & Tracey (2017, Entropy 19:361) and
of Hershey & Olsen (2007, ICASSP), each on the side that is safe in an objective to be maximised.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import UnsupportedCombinationError
from mbrl_bilevel.policies.distributions import (
    DiagonalGaussian,
    Distribution,
    Exactness,
    draw_classes,
)

#: Rounds of the variational bound of the KL; each can only lower it.
_KL_ROUNDS = 10


@dataclass(frozen=True)
class GaussianMixture:
    """Σ_m w_m N(mean_m, diag(exp(2·log_std_m))), M components.

    ``log_weights`` [E, B, M] may be unnormalised (they are logits), ``mean`` and ``log_std`` are
    [E, B, M, D]. There is no ``rsample``: the choice of a component has no gradient, so rewards
    reach the policy through ``log_prob`` (score function) only.
    """

    log_weights: Tensor
    mean: Tensor
    log_std: Tensor

    entropy_is: ClassVar[Exactness] = "lower bound"
    kl_is: ClassVar[Exactness] = "upper bound"

    @property
    def params(self) -> tuple[Tensor, Tensor, Tensor]:
        """(log_weights, mean, log_std)."""
        return self.log_weights, self.mean, self.log_std

    @classmethod
    def from_params(cls, params: tuple[Tensor, ...]) -> Self:
        """From (log_weights, mean, log_std)."""
        log_weights, mean, log_std = params
        return cls(log_weights, mean, log_std)

    @property
    def log_probs(self) -> Tensor:
        """Normalised log-weights [E, B, M]."""
        return self.log_weights.log_softmax(-1)

    @property
    def weights(self) -> Tensor:
        """Weights [E, B, M], summing to one."""
        return self.log_weights.softmax(-1)

    @property
    def components(self) -> DiagonalGaussian:
        """The M Gaussians, as one distribution with leading dimensions [E, B, M]."""
        return DiagonalGaussian(self.mean, self.log_std)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean [E, B, D] and covariance [E, B, D, D] of the whole mixture."""
        weights = self.weights.unsqueeze(-1)
        mean = (weights * self.mean).sum(-2)
        apart = self.mean - mean.unsqueeze(-2)
        within = (weights * torch.exp(2.0 * self.log_std)).sum(-2)
        return mean, torch.diag_embed(within) + (weights * apart).mT @ apart

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each dimension of the whole mixture, [E, B, D]."""
        weights = self.weights.unsqueeze(-1)
        mean = (weights * self.mean).sum(-2)
        apart = (self.mean - mean.unsqueeze(-2)).square()
        return mean, (weights * (torch.exp(2.0 * self.log_std) + apart)).sum(-2).sqrt()

    def affine(self, scale: Tensor, shift: Tensor) -> Self:
        """The distribution of y·scale + shift, for positive ``scale`` [D] and ``shift`` [D]."""
        return type(self)(self.log_weights, self.mean * scale + shift, self.log_std + scale.log())

    def only(self, dims: Tensor) -> Self:
        """That of the dimensions ``dims`` alone, a mask [D]."""
        return type(self)(self.log_weights, self.mean[..., dims], self.log_std[..., dims])

    def drawn(self, noise: Tensor) -> Tensor:
        """The draw [E, B, D] that standard normal ``noise`` (broadcastable to [E, B, D + 1]) makes: its
        last entry chooses the component, by the quantile that it is of a normal."""
        choice = torch.special.ndtr(noise[..., -1:])
        # The last sum may fall short of one by rounding, so it has no say.
        chosen = (choice > self.weights.cumsum(-1)[..., :-1]).sum(-1)[..., None, None]
        # Noise may have more rows than the distribution, and the other way round.
        lead, (_, dims) = chosen.shape[:-2], self.mean.shape[-2:]
        chosen = chosen.expand(*lead, 1, dims)
        mean, log_std = (
            p.expand(*lead, *p.shape[-2:]).gather(-2, chosen).squeeze(-2)
            for p in (self.mean, self.log_std)
        )
        return mean + log_std.exp() * noise[..., :-1]

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density of ``y`` [..., E, B, D]: [..., E, B]."""
        return (self.log_probs + self.components.log_prob(y.unsqueeze(-2))).logsumexp(-1)

    def sample(self, samples: int, generator: torch.Generator) -> Tensor:
        """``samples`` draws [K, E, B, D] without gradient: a component, then a point of it."""
        with torch.no_grad():
            chosen = draw_classes(self.log_weights, samples, generator)[..., None, None]
            chosen = chosen.expand(*chosen.shape[:-1], self.mean.shape[-1])
            mean, log_std = (
                p.expand(samples, *p.shape).gather(-2, chosen).squeeze(-2)
                for p in (self.mean, self.log_std)
            )
            return DiagonalGaussian(mean, log_std).rsample(1, generator).squeeze(0)

    def entropy(self) -> Tensor:
        """A lower bound of the entropy [E, B], exact where components coincide or lie far apart."""
        return self.entropy_bounds()[0]

    def entropy_bounds(self) -> tuple[Tensor, Tensor]:
        """A lower and an upper bound of the entropy, [E, B] each.

        Σ_m w_m H_m − Σ_m w_m log Σ_n w_n exp(−d(m, n)), with the Bhattacharyya distance for d in
        the lower and KL(m ‖ n) in the upper bound (Kolchinsky & Tracey 2017, pairwise-distance
        estimator). The two are never further apart than H(w) ≤ log M.
        """
        within = (self.weights * self.components.entropy()).sum(-1)
        lower, upper = (
            within + self._spread(distance)
            for distance in (
                _bhattacharyya(self.components),
                _pairwise_kl(self.components, self.components),
            )
        )
        return lower, upper

    def kl(self, other: Distribution) -> Tensor:
        """An upper bound of KL(self ‖ other) [E, B] for a mixture ``other``; zero at itself.

        The lower of two: components taken in pairs (for equal numbers of them), and the
        variational bound of Hershey & Olsen (2007, "The variational upper bound"), which shares
        each component of self out among those of other, after ten rounds. Both are bounds for any
        shares, so ending early loosens the bound but does not break it.
        """
        if not isinstance(other, GaussianMixture):
            raise UnsupportedCombinationError(
                f"kl: no bound from GaussianMixture to {type(other).__name__}; give two mixtures, "
                "or estimate a value with monte_carlo_kl"
            )
        distance = _pairwise_kl(self.components, other.components)
        bound = _variational_kl(self.log_probs, other.log_probs, distance)
        if self.mean.shape == other.mean.shape:
            paired = self.log_probs - other.log_probs + distance.diagonal(dim1=-2, dim2=-1)
            bound = torch.minimum(bound, (self.weights * paired).sum(-1))
        return bound

    def fisher_product(self, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Raises UnsupportedCombinationError: a mixture's Fisher information has no closed form."""
        raise UnsupportedCombinationError(
            "fisher_product: the Fisher information of a GaussianMixture has no closed form; use an "
            "outer solver that takes second derivatives of the objective, or a Gaussian policy"
        )

    def _spread(self, distance: Tensor) -> Tensor:
        near = (self.log_probs.unsqueeze(-2) - distance).logsumexp(-1)
        return -(self.weights * near).sum(-1)


def _pairwise_kl(p: DiagonalGaussian, q: DiagonalGaussian) -> Tensor:
    """KL(p_m ‖ q_n) [E, B, M, N]."""
    rows = DiagonalGaussian(p.mean.unsqueeze(-2), p.log_std.unsqueeze(-2))
    return rows.kl(DiagonalGaussian(q.mean.unsqueeze(-3), q.log_std.unsqueeze(-3)))


def _bhattacharyya(p: DiagonalGaussian) -> Tensor:
    """Bhattacharyya distances [E, B, M, M]: Σ_d ¼Δ²/(σ_m² + σ_n²) + ½ log((σ_m² + σ_n²)/(2σ_mσ_n))."""
    apart = p.mean.unsqueeze(-2) - p.mean.unsqueeze(-3)
    one, two = p.log_std.unsqueeze(-2), p.log_std.unsqueeze(-3)
    log_sum = torch.logaddexp(2.0 * one, 2.0 * two)
    location = 0.25 * (apart * torch.exp(-0.5 * log_sum)).square()
    return (location + 0.5 * (log_sum - math.log(2.0) - one - two)).sum(-1)


def _variational_kl(log_p: Tensor, log_q: Tensor, distance: Tensor) -> Tensor:
    """min over shares φ, ψ of Σ φ_mn (log φ_mn/ψ_mn + D_mn), Σ_n φ_mn = p_m, Σ_m ψ_mn = q_n."""
    log_p, log_q = log_p.unsqueeze(-1), log_q.unsqueeze(-2)
    log_psi = log_p + log_q
    for _ in range(_KL_ROUNDS):
        log_phi = log_p + (log_psi - distance).log_softmax(-1)
        log_psi = log_q + log_phi.log_softmax(-2)
    # At the best φ for this ψ the sum over n is −log Σ_n ψ_mn exp(−D_mn).
    best = log_p.squeeze(-1) - (log_psi - distance).logsumexp(-1)
    return (log_p.squeeze(-1).exp() * best).sum(-1)
