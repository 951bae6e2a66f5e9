"""The steps of the cross-entropy method: which candidates are the best, and μ and σ refitted to them."""

from __future__ import annotations

import torch
from torch import Tensor


def insert(candidates: Tensor, kept: Tensor, valid: Tensor) -> None:
    """Overwrites the last M of the candidates [S, N, H', A] by kept [S, M, H', A] where valid."""
    slots = candidates[:, candidates.shape[1] - kept.shape[1] :]
    slots.copy_(torch.where(valid[:, :, None, None], kept, slots))


def best(candidates: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Copies of the best [S, K, H, A], best first; their scores and which are finite, [S, K]."""
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    elite_scores, index = ordered[:, :count], order[:, :count]
    rows = torch.arange(len(index), device=index.device)[:, None]
    return candidates[rows, index], elite_scores, elite_scores > -torch.inf


def elite_weight(scores: Tensor, elite_scores: Tensor) -> Tensor:
    """What each candidate [S, N] weighs in the refit; the K elites of a start weigh K together.

    Candidates that tie with the K-th best share what the better ones leave: the mean over all ways
    to break the tie. Tasks that pay for survival alone are full of ties, and an arbitrary pick among
    the survivors would let the plan drift to the edge of what survives.
    """
    threshold = elite_scores[:, -1:]
    better = (scores > threshold).to(scores.dtype)
    # With fewer than K finite scores the threshold is −inf: each finite one is better, none is tied.
    tied = ((scores == threshold) & (threshold > -torch.inf)).to(scores.dtype)
    left = elite_scores.shape[1] - better.sum(1, keepdim=True)
    return better + tied * left / tied.sum(1, keepdim=True).clamp(min=1)


def refit(
    mean: Tensor, std: Tensor, candidates: Tensor, weight: Tensor, momentum: float
) -> tuple[Tensor, Tensor]:
    """μ and σ [S, H, A] moved to those of the weighted candidates, with momentum (iCEM, Alg. 1).

    μ stays where no candidate has weight; σ where fewer than two have, as one tells nothing of a
    spread.
    """
    count = (weight > 0).sum(1)[:, None, None]
    share = weight / weight.sum(1, keepdim=True).clamp(min=1e-9)
    elite_mean = torch.einsum("sn,snha->sha", share, candidates)
    square = (candidates - elite_mean[:, None]).square()
    elite_std = torch.einsum("sn,snha->sha", share, square).sqrt()
    return (
        torch.where(count > 0, momentum * mean + (1 - momentum) * elite_mean, mean),
        torch.where(count > 1, momentum * std + (1 - momentum) * elite_std, std),
    )


def mean_valid(scores: Tensor, valid: Tensor) -> Tensor:
    """The mean [S] of the valid scores [S, K], −inf where there is none."""
    count = valid.sum(1)
    total = torch.where(valid, scores, 0.0).sum(1)
    return torch.where(count > 0, total / count.clamp(min=1), -torch.inf)
