"""What the planners do with candidate action sequences [S, N, H, A] and their scores [S, N]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from agents.planners.checks import require


def finite_scores(score: Callable[[Tensor], Tensor], candidates: Tensor) -> tuple[Tensor, int]:
    """Scores [S, N] with −inf for every non-finite one, and the number of these."""
    scores = score(candidates)
    shape, wanted = tuple(scores.shape), tuple(candidates.shape[:2])
    require(shape == wanted, "score(actions)", f"shape {shape}", f"of shape [S, N] = {wanted}")
    finite = scores.isfinite()
    return torch.where(finite, scores, -torch.inf), int((~finite).sum())


def joined(candidates: Tensor, proposals: Tensor | None) -> Tensor:
    """The planner's own candidates [S, N, H, A] and, behind them, those from elsewhere."""
    return candidates if proposals is None else torch.cat([candidates, proposals], dim=1)


def shift(sequences: Tensor) -> Tensor:
    """A copy of [..., H, A] one step later; the last step is repeated."""
    return torch.cat([sequences[..., 1:, :], sequences[..., -1:, :]], dim=-2)


def best_alone(scores: Tensor, share: float) -> Tensor:
    """The scores [S, N] of this share of the candidates, the best; −inf for the others."""
    count = max(1, round(share * scores.shape[1]))
    if count == scores.shape[1]:
        return scores
    least = scores.topk(count, dim=1).values[:, -1:]
    return torch.where(scores >= least, scores, -torch.inf)


def path_weights(scores: Tensor, temperature: float) -> Tensor:
    """w [S, N] ∝ exp(R / (λ·std R)), over the finite of the scores R; 0 for −inf.

    Uniform over all N where nothing is finite, or everything is the same.
    """
    finite = scores > -torch.inf
    count = finite.sum(1, keepdim=True).clamp(min=1)
    best = scores.amax(1, keepdim=True)
    # Differences from the best, in double: large returns must not hide small differences.
    below = torch.where(finite, scores.double() - best.double(), 0.0)
    centre = below.sum(1, keepdim=True) / count
    spread = (torch.where(finite, below - centre, 0.0).square().sum(1, keepdim=True) / count).sqrt()
    exponent = below / (temperature * spread.clamp(min=1e-30))
    none = ~finite.any(1, keepdim=True)
    return torch.where(finite | none, exponent, -torch.inf).softmax(1).to(scores.dtype)
