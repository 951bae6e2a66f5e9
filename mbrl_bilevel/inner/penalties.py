"""Penalties that hold parameters near those of earlier tasks: EWC and online EWC, around any loss.

loss + (strength/2)·Σ_p F_p (θ_p − θ*_p)² / D (Kirkpatrick et al. 2017, arXiv 1612.00796, eq. 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.losses import Loss, Metrics
from mbrl_bilevel.policies.distributions import Categorical, DiagonalGaussian, Distribution
from mbrl_bilevel.policies.policies import Policy


@dataclass(frozen=True)
class Anchor:
    """Where each trainable parameter was (``centre``) and how much it mattered (``fisher``), by name,
    each like the parameter itself, members first."""

    centre: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor]

    @staticmethod
    def at(policy: Policy, batch: Batch) -> Anchor:
        """The present parameters and their Fisher information on ``batch``."""
        centre = {
            name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad
        }
        return Anchor(centre, diagonal_fisher(policy, batch))

    def after(self, policy: Policy, batch: Batch, decay: float = 1.0) -> Anchor:
        """The anchor of one more task: the new centre, and ``decay`` times the old Fisher plus the new.

        Online EWC (Schwarz et al. 2018, arXiv 1805.06370): the cost does not grow with the
        number of tasks. Raises InvalidInputError for a decay outside [0, 1].
        """
        if not 0.0 <= decay <= 1.0:
            raise InvalidInputError(f"decay must lie between 0 and 1; got {decay}")
        new = Anchor.at(policy, batch)
        fisher = {name: decay * self.fisher[name] + value for name, value in new.fisher.items()}
        return Anchor(new.centre, fisher)


@dataclass(frozen=True)
class Penalised:
    """``loss`` plus the penalties of ``anchors``, per target dimension as every loss is.

    One anchor for each earlier task is EWC, a single one made by ``Anchor.after`` online EWC. Raises
    InvalidInputError for a negative strength.
    """

    loss: Loss
    anchors: tuple[Anchor, ...]
    strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength < float("inf"):
            raise InvalidInputError(f"strength must be >= 0 and finite; got {self.strength}")

    def __call__(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        value, metrics = self.loss(policy, batch, generator)
        penalty = torch.zeros_like(value)
        parameters = dict(policy.named_parameters())
        for anchor in self.anchors:
            for name, centre in anchor.centre.items():
                moved = anchor.fisher[name] * (parameters[name] - centre).square()
                penalty = penalty + 0.5 * moved.flatten(1).sum(1)
        penalty = self.strength * penalty / batch.y.shape[-1]
        return value + penalty, {**metrics, "penalty": penalty.detach()}


def diagonal_fisher(policy: Policy, batch: Batch) -> dict[str, Tensor]:
    """E_x E_{ŷ~p}[(∂ log p(ŷ|x)/∂θ_p)²] over the rows of ``batch``, by parameter name.

    Exact for a diagonal Gaussian and for classes: no target is drawn or used. One pass a row and output,
    so a few hundred rows will do. Raises UnsupportedCombinationError for another distribution.
    """
    named = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    found = {name: torch.zeros_like(p) for name, p in named.items()}
    share = batch.share
    for row in range(batch.x.shape[1]):
        outputs = _whitened(policy.dist(batch.x[:, row : row + 1]))[:, 0]
        for output in outputs.sum(0):
            if not output.requires_grad:
                continue
            gradients = torch.autograd.grad(
                output, list(named.values()), retain_graph=True, materialize_grads=True
            )
            for name, g in zip(named, gradients, strict=True):
                found[name] += share[:, row].reshape(-1, *[1] * (g.ndim - 1)) * g.square()
    return found


def _whitened(dist: Distribution) -> Tensor:
    """Outputs [E, B, K] whose squared derivatives add up to the Fisher information of ``dist``:
    μ/σ and √2·log σ, since that of (μ, log σ) is (1/σ², 2); √p_c·log p_c for classes. What stands
    before a logarithm or below a mean is held fixed."""
    if isinstance(dist, DiagonalGaussian):
        return torch.cat([dist.mean / dist.std.detach(), 2.0**0.5 * dist.log_std], -1)
    if isinstance(dist, Categorical):
        return dist.probs.detach().sqrt() * dist.log_probs
    raise UnsupportedCombinationError(
        f"EWC needs a GaussianPolicy or one over classes; got a {type(dist).__name__}: use the KL "
        "regulariser"
    )
