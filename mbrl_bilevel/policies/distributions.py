"""Batched distributions over targets, drawn from an explicit generator.

``torch.distributions`` draws from the global generator only; these carry the same closed forms
(Bishop 2006, appendix B) with leading dimensions [E, B] and one sample dimension [K] in front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NoReturn, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import UnsupportedCombinationError

#: What a number is: exact, or a bound of that side.
Exactness = Literal["exact", "lower bound", "upper bound"]

_LOG_2PI = math.log(2.0 * math.pi)


@runtime_checkable
class Distribution(Protocol):
    """What a policy predicts: E·B distributions over targets of D dimensions.

    ``params`` are the tensors it is built from, each with leading dimensions [E, B];
    ``from_params`` builds one of the same kind again. Nothing here changes a tensor in place, so
    all of it goes through ``torch.func``.
    """

    #: What ``entropy`` and ``kl`` return: the number itself or a bound of it.
    entropy_is: ClassVar[Exactness]
    kl_is: ClassVar[Exactness]

    @property
    def params(self) -> tuple[Tensor, ...]: ...

    @classmethod
    def from_params(cls, params: tuple[Tensor, ...]) -> Self: ...

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density (or log-probability) of ``y`` [..., E, B, D]: [..., E, B]."""
        ...

    def sample(self, samples: int, generator: torch.Generator) -> Tensor:
        """``samples`` draws [K, E, B, D] without gradient."""
        ...

    def entropy(self) -> Tensor:
        """Entropy [E, B] in nats (see ``entropy_is``)."""
        ...

    def kl(self, other: Distribution) -> Tensor:
        """KL(self ‖ other) [E, B] (see ``kl_is``).

        Raises UnsupportedCombinationError for a kind of ``other`` without a formula.
        """
        ...

    def fisher_product(self, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The Fisher information of ``params`` times ``tangents`` (of the same shapes), per (e, b).

        Raises UnsupportedCombinationError where it has no closed form.
        """
        ...


@runtime_checkable
class Reparameterised(Distribution, Protocol):
    """A distribution whose draws carry the gradient of its parameters."""

    def rsample(self, samples: int, generator: torch.Generator) -> Tensor:
        """``samples`` reparameterised draws [K, E, B, D]: the gradient passes through them."""
        ...


@runtime_checkable
class RealValued(Distribution, Protocol):
    """A distribution over real vectors, with its first two moments in closed form."""

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean [E, B, D] and covariance [E, B, D, D]."""
        ...


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag(exp(2·log_std))) with ``mean`` and ``log_std`` [E, B, D]."""

    mean: Tensor
    log_std: Tensor

    entropy_is: ClassVar[Exactness] = "exact"
    kl_is: ClassVar[Exactness] = "exact"

    @property
    def params(self) -> tuple[Tensor, Tensor]:
        """(mean, log_std)."""
        return self.mean, self.log_std

    @classmethod
    def from_params(cls, params: tuple[Tensor, ...]) -> Self:
        """From (mean, log_std)."""
        mean, log_std = params
        return cls(mean, log_std)

    @property
    def std(self) -> Tensor:
        """Standard deviation [E, B, D]."""
        return self.log_std.exp()

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean [E, B, D] and covariance [E, B, D, D]."""
        return self.mean, torch.diag_embed(self.std.square())

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of each dimension, [E, B, D]."""
        return self.mean, self.std

    def affine(self, scale: Tensor, shift: Tensor) -> Self:
        """The distribution of y·scale + shift, for positive ``scale`` [D] and ``shift`` [D]."""
        return type(self)(self.mean * scale + shift, self.log_std + scale.log())

    def only(self, dims: Tensor) -> Self:
        """That of the dimensions ``dims`` alone, a mask [D]."""
        return type(self)(self.mean[..., dims], self.log_std[..., dims])

    def drawn(self, noise: Tensor) -> Tensor:
        """The draw [E, B, D] that standard normal ``noise`` (broadcastable to [E, B, D]) makes."""
        return torch.addcmul(self.mean, self.std, noise)

    def as_full(self) -> FullGaussian:
        """The same distribution with its covariance as a matrix."""
        return FullGaussian(self.mean, torch.diag_embed(self.std))

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density of ``y`` [..., E, B, D], summed over D: [..., E, B]."""
        return self.log_prob_each(y).sum(-1)

    def log_prob_each(self, y: Tensor) -> Tensor:
        """Log density of each dimension of ``y``, [..., E, B, D]."""
        z = (y - self.mean) * torch.exp(-self.log_std)
        return -0.5 * (z.square() + 2.0 * self.log_std + _LOG_2PI)

    def rsample(self, samples: int, generator: torch.Generator) -> Tensor:
        """``samples`` reparameterised draws [K, E, B, D]: the gradient passes through them."""
        return self.mean + self.std * _noise(samples, self.mean, generator)

    def sample(self, samples: int, generator: torch.Generator) -> Tensor:
        """``samples`` draws [K, E, B, D] without gradient."""
        with torch.no_grad():
            return self.rsample(samples, generator)

    def entropy(self) -> Tensor:
        """Differential entropy [E, B]: D/2·log(2πe) + Σ_d log σ_d."""
        return (self.log_std + 0.5 * (1.0 + _LOG_2PI)).sum(-1)

    def kl(self, other: Distribution) -> Tensor:
        """KL(self ‖ other) [E, B] in closed form, for a Gaussian ``other``."""
        if isinstance(other, FullGaussian):
            return self.as_full().kl(other)
        if not isinstance(other, DiagonalGaussian):
            _refuse_kl(self, other)
        ratio = 2.0 * (self.log_std - other.log_std)
        distance = ((self.mean - other.mean) * torch.exp(-other.log_std)).square()
        # expm1 keeps the sign right where the two are close: each term is zero or more.
        return 0.5 * (torch.expm1(ratio) - ratio + distance).sum(-1)

    def fisher_product(self, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(v_mean/σ², 2·v_log_std): the Fisher information of (μ, log σ) is diag(1/σ², 2)."""
        v_mean, v_log_std = tangents
        return v_mean * torch.exp(-2.0 * self.log_std), 2.0 * v_log_std


@dataclass(frozen=True)
class FullGaussian:
    """N(mean, L Lᵀ) with ``mean`` [E, B, D] and ``scale_tril`` L [E, B, D, D].

    L is lower triangular with a positive diagonal; what stands above the diagonal is not read.
    """

    mean: Tensor
    scale_tril: Tensor

    entropy_is: ClassVar[Exactness] = "exact"
    kl_is: ClassVar[Exactness] = "exact"

    @property
    def params(self) -> tuple[Tensor, Tensor]:
        """(mean, scale_tril)."""
        return self.mean, self.scale_tril

    @classmethod
    def from_params(cls, params: tuple[Tensor, ...]) -> Self:
        """From (mean, scale_tril)."""
        mean, scale_tril = params
        return cls(mean, scale_tril)

    @property
    def std(self) -> Tensor:
        """Marginal standard deviation of each dimension [E, B, D]."""
        return self.scale_tril.tril().square().sum(-1).sqrt()

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean [E, B, D] and covariance [E, B, D, D]."""
        lower = self.scale_tril.tril()
        return self.mean, lower @ lower.mT

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density of ``y`` [..., E, B, D]: [..., E, B], by one triangular solve."""
        lead = y.shape[: max(0, y.ndim - self.mean.ndim)]
        # Samples go last, as columns of one right-hand side, so that no copy of L is made for them.
        columns = (y - self.mean).reshape(math.prod(lead), *self.mean.shape).movedim(0, -1)
        square = self._solve(columns).square().sum(-2).movedim(-1, 0)
        normaliser = (self._log_diagonal() + 0.5 * _LOG_2PI).sum(-1)
        return (-0.5 * square - normaliser).reshape(*lead, *self.mean.shape[:-1])

    def rsample(self, samples: int, generator: torch.Generator) -> Tensor:
        """``samples`` reparameterised draws [K, E, B, D]: the gradient passes through them."""
        noise = _noise(samples, self.mean, generator)
        return self.mean + torch.einsum("ebij,kebj->kebi", self.scale_tril.tril(), noise)

    def sample(self, samples: int, generator: torch.Generator) -> Tensor:
        """``samples`` draws [K, E, B, D] without gradient."""
        with torch.no_grad():
            return self.rsample(samples, generator)

    def entropy(self) -> Tensor:
        """Differential entropy [E, B]: D/2·log(2πe) + Σ_d log L_dd."""
        return (self._log_diagonal() + 0.5 * (1.0 + _LOG_2PI)).sum(-1)

    def kl(self, other: Distribution) -> Tensor:
        """KL(self ‖ other) [E, B] in closed form, for a Gaussian ``other``.

        ½(‖L₂⁻¹L₁‖² + ‖L₂⁻¹(μ₁ − μ₂)‖² − D) + log det L₂ − log det L₁, with the diagonal of
        L₂⁻¹L₁ gathered with the logarithms.
        """
        if isinstance(other, DiagonalGaussian):
            other = other.as_full()
        if not isinstance(other, FullGaussian):
            _refuse_kl(self, other)
        off_diagonal = other._solve(self.scale_tril.tril()).tril(-1).square().sum(-1)
        distance = other._solve((self.mean - other.mean).unsqueeze(-1)).squeeze(-1).square()
        ratio = 2.0 * (self._log_diagonal() - other._log_diagonal())
        return 0.5 * (torch.expm1(ratio) - ratio + off_diagonal + distance).sum(-1)

    def fisher_product(self, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(Σ⁻¹ v, tril(L⁻ᵀ(A + Aᵀ))) with A = L⁻¹ tril(V), for tangents v of μ and V of L.

        From ½ tr(Σ⁻¹ dΣ Σ⁻¹ dΣ') (Kay 1993, eq. 3.31) with dΣ = V Lᵀ + L Vᵀ, so that
        L⁻¹ dΣ L⁻ᵀ = A + Aᵀ.
        """
        v_mean, v_scale = tangents
        mean = self._solve_transposed(self._solve(v_mean.unsqueeze(-1))).squeeze(-1)
        a = self._solve(v_scale.tril())
        return mean, self._solve_transposed(a + a.mT).tril()

    def _solve(self, right: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(self.scale_tril.tril(), right, upper=False)
        return solved

    def _solve_transposed(self, right: Tensor) -> Tensor:
        upper = self.scale_tril.tril().mT
        solved: Tensor = torch.linalg.solve_triangular(upper, right, upper=True)
        return solved

    def _log_diagonal(self) -> Tensor:
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log()


@dataclass(frozen=True)
class Categorical:
    """Classes 0 … C−1 with unnormalised log-probabilities ``logits`` [E, B, C].

    Targets are class indices kept as floats in the last dimension, [..., E, B, 1], so that a
    batch of classes has the same form as a batch of real targets.
    """

    logits: Tensor

    entropy_is: ClassVar[Exactness] = "exact"
    kl_is: ClassVar[Exactness] = "exact"

    @property
    def params(self) -> tuple[Tensor]:
        """(logits,)."""
        return (self.logits,)

    @classmethod
    def from_params(cls, params: tuple[Tensor, ...]) -> Self:
        """From (logits,)."""
        (logits,) = params
        return cls(logits)

    @property
    def log_probs(self) -> Tensor:
        """Normalised log-probabilities [E, B, C]."""
        return self.logits.log_softmax(-1)

    @property
    def probs(self) -> Tensor:
        """Probabilities [E, B, C]."""
        return self.logits.softmax(-1)

    def log_prob(self, y: Tensor) -> Tensor:
        """Log-probability of the classes ``y`` [..., E, B, 1]: [..., E, B]."""
        log_probs = self.log_probs.expand(*y.shape[:-1], -1)
        return log_probs.gather(-1, y.long()).squeeze(-1)

    def sample(self, samples: int, generator: torch.Generator) -> Tensor:
        """``samples`` draws [K, E, B, 1] of class indices, as floats."""
        return draw_classes(self.logits, samples, generator).unsqueeze(-1).to(self.logits.dtype)

    def entropy(self) -> Tensor:
        """Shannon entropy [E, B] in nats."""
        return -(self.probs * self.log_probs).sum(-1)

    def kl(self, other: Distribution) -> Tensor:
        """KL(self ‖ other) [E, B], for a categorical ``other``."""
        if not isinstance(other, Categorical):
            _refuse_kl(self, other)
        return (self.probs * (self.log_probs - other.log_probs)).sum(-1)

    def fisher_product(self, tangents: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(p∘v − p·(pᵀv),): the Fisher information of logits is diag(p) − p pᵀ."""
        (v,) = tangents
        p = self.probs
        return (p * (v - (p * v).sum(-1, keepdim=True)),)


def draw_classes(logits: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """``samples`` class indices [K, E, B] (int64) with probabilities softmax(``logits`` [E, B, C])."""
    members, batch, classes = logits.shape
    flat = logits.detach().softmax(-1).reshape(-1, classes)
    draws = torch.multinomial(flat, samples, replacement=True, generator=generator)
    return draws.T.reshape(samples, members, batch)


@torch.no_grad()
def monte_carlo_kl(
    p: Distribution, q: Distribution, samples: int, generator: torch.Generator
) -> Tensor:
    """Unbiased estimate of KL(p ‖ q) [E, B]: the mean of log p − log q over draws of p.

    For any two distributions over the same targets. A value to report, without gradient: the
    draws depend on p, so differentiating this mean would not give the gradient of the KL.
    """
    draws = p.sample(samples, generator)
    return (p.log_prob(draws) - q.log_prob(draws)).mean(0)


def _noise(samples: int, like: Tensor, generator: torch.Generator) -> Tensor:
    shape = (samples, *like.shape)
    drawn = torch.randn(shape, generator=generator, dtype=like.dtype, device=generator.device)
    return drawn.to(like.device)


def _refuse_kl(p: Distribution, q: Distribution) -> NoReturn:
    raise UnsupportedCombinationError(
        f"kl: no formula from {type(p).__name__} to {type(q).__name__}; give two of one kind, "
        "or estimate a value with monte_carlo_kl"
    )
