"""Batched distributions over targets, drawn from an explicit generator.

``torch.distributions`` draws from the global generator only; these carry the same closed forms
(Bishop 2006, appendix B) with leading dimensions [E, B] and one sample dimension [K] in front.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True)
class DiagonalGaussian:
    """N(mean, diag(exp(2·log_std))) with ``mean`` and ``log_std`` [E, B, D]."""

    mean: Tensor
    log_std: Tensor

    @property
    def std(self) -> Tensor:
        """Standard deviation [E, B, D]."""
        return self.log_std.exp()

    def log_prob(self, y: Tensor) -> Tensor:
        """Log density of ``y`` [..., E, B, D], summed over D: [..., E, B]."""
        z = (y - self.mean) * torch.exp(-self.log_std)
        return -0.5 * (z.square() + 2.0 * self.log_std + _LOG_2PI).sum(-1)

    def rsample(self, samples: int, generator: torch.Generator) -> Tensor:
        """``samples`` reparameterised draws [K, E, B, D]: the gradient passes through them."""
        shape = (samples, *self.mean.shape)
        noise = torch.randn(
            shape, generator=generator, dtype=self.mean.dtype, device=self.mean.device
        )
        return self.mean + self.std * noise

    def sample(self, samples: int, generator: torch.Generator) -> Tensor:
        """``samples`` draws [K, E, B, D] without gradient."""
        with torch.no_grad():
            return self.rsample(samples, generator)

    def entropy(self) -> Tensor:
        """Differential entropy [E, B]: D/2·log(2πe) + Σ_d log σ_d."""
        return (self.log_std + 0.5 * (1.0 + _LOG_2PI)).sum(-1)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self ‖ other) [E, B] in closed form."""
        ratio = 2.0 * (self.log_std - other.log_std)
        distance = ((self.mean - other.mean) * torch.exp(-other.log_std)).square()
        return 0.5 * (ratio.exp() + distance - 1.0 - ratio).sum(-1)


@dataclass(frozen=True)
class Categorical:
    """Classes 0 … C−1 with unnormalised log-probabilities ``logits`` [E, B, C].

    Targets are class indices kept as floats in the last dimension, [..., E, B, 1], so that a
    batch of classes has the same form as a batch of real targets.
    """

    logits: Tensor

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
        flat = self.probs.detach().flatten(0, 1)
        draws = torch.multinomial(flat, samples, replacement=True, generator=generator)
        members, batch, _ = self.logits.shape
        return draws.T.reshape(samples, members, batch, 1).to(self.logits.dtype)

    def entropy(self) -> Tensor:
        """Shannon entropy [E, B] in nats."""
        return -(self.probs * self.log_probs).sum(-1)

    def kl(self, other: Categorical) -> Tensor:
        """KL(self ‖ other) [E, B]."""
        return (self.probs * (self.log_probs - other.log_probs)).sum(-1)
