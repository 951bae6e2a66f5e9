"""Planning by the cross-entropy method, and iCEM, which needs fewer samples.

Draw action sequences from N(μ, σ²), refit μ and σ to the best K, repeat; execute the first step.
Of discrete actions, draw from the probabilities μ and refit μ to the elites' frequencies.
CEM as in Chua et al. 2018 (arXiv 1805.12114, §5); iCEM: Pinneri et al. 2020 (arXiv 2008.06389).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from agents.planners.actions import require
from agents.planners.base import (
    PlanInfo,
    Planner,
    PlannerState,
    Score,
    finite_scores,
    joined,
    shift,
)
from agents.planners.coloured_noise import coloured_noise
from mbrl_bilevel.base.errors import require_count


@dataclass(frozen=True)
class CEM(Planner):
    """The cross-entropy method with a warm start. The fields after ``initial_std`` make it iCEM.

    - ``horizon``, ``population``, ``iterations``: steps planned, candidates in the first iteration,
      refits per plan.
    - ``elite_fraction``: the part of the population that μ and σ are fitted to, at least one.
    - ``momentum``: the weight of the old μ and σ in a refit.
    - ``initial_std``: σ at the start of every plan, in half-ranges (high − low) / 2. Of discrete
      actions, the share of the uniform distribution in the first iteration's draws, 1 at most.
    - ``noise_beta``: the exponent of the coloured noise; 0 is white.
    - ``keep_fraction``: the part of the elites that competes again in the next iteration and,
      shifted, at the next time step.
    - ``decay``: divides the population at every iteration; 1 keeps it.
    - ``add_mean``: μ itself competes in the last iteration.
    - ``add_middle``: doing nothing, the middle of the box throughout, competes in the first iteration
      (of discrete actions, the first of them). Where control costs and candidates are few, each of
      them may cost more than it gains.
    - ``execute_best``: the action is that of the last iteration's best candidate, not that of μ.

    Raises InvalidInputError where a field is out of its range.
    """

    iterations: int = 5
    elite_fraction: float = 0.1
    momentum: float = 0.1
    initial_std: float = 0.5
    noise_beta: float = 0.0
    keep_fraction: float = 0.0
    decay: float = 1.0
    add_mean: bool = False
    add_middle: bool = False
    execute_best: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require_count("iterations", self.iterations, 10_000)
        for name, ok, wanted in (
            ("elite_fraction", 0 < self.elite_fraction <= 1, "more than 0 and at most 1"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and less than 1"),
            ("initial_std", 0 < self.initial_std < math.inf, "finite and more than 0"),
            ("noise_beta", 0 <= self.noise_beta < math.inf, "finite and at least 0"),
            ("keep_fraction", 0 <= self.keep_fraction <= 1, "from 0 to 1"),
            ("decay", 1 <= self.decay < math.inf, "finite and at least 1"),
        ):
            require(ok, name, getattr(self, name), wanted)

    @property
    def num_elites(self) -> int:
        """K, the candidates that μ and σ are fitted to."""
        return max(1, round(self.elite_fraction * self.population))

    @property
    def num_kept(self) -> int:
        """M, the elites that compete again: at least one where ``keep_fraction`` is not 0."""
        return max(round(self.keep_fraction * self.num_elites), int(self.keep_fraction > 0))

    def populations(self) -> tuple[int, ...]:
        """Candidates scored per start in each iteration: max(N γ⁻ⁱ, 2K), at most N (iCEM, Alg. 1).

        Kept elites and μ are among them (Alg. 1 adds them on top): the sum is the budget of a plan.
        """
        least = min(2 * self.num_elites, self.population)
        counts = (int(self.population / self.decay**i) for i in range(self.iterations))
        return tuple(max(count, least) for count in counts)

    def _search(
        self,
        score: Score,
        state: PlannerState,
        generator: torch.Generator,
        proposals: Tensor | None,
    ) -> tuple[Tensor, PlannerState, PlanInfo]:
        actions, kept, kept_valid = state.actions, state.elites, state.elite_valid
        mean, std = actions.widened(state.mean, self.initial_std)
        nonfinite = 0
        for i, count in enumerate(self.populations()):
            shape = (len(mean), count, *mean.shape[1:])
            noise = coloured_noise(shape, self.noise_beta, generator)
            candidates = actions.draw(mean, std, noise)
            # A shifted elite knows nothing of the new last step: the fresh draw stays there.
            known = self.horizon - 1 if i == 0 else self.horizon
            _insert(candidates[:, :, :known], kept[:, :, :known], kept_valid)
            if self.add_middle and i == 0:
                candidates[:, 0] = actions.chosen(actions.middle)
            if self.add_mean and i == self.iterations - 1:
                candidates[:, 0] = actions.chosen(mean)
            candidates = joined(candidates, proposals)
            scores, bad = finite_scores(score, candidates)
            nonfinite += bad
            elites, elite_scores, valid = _best(candidates, scores, self.num_elites)
            weight = _elite_weight(scores, elite_scores)
            mean, std = _refit(mean, std, candidates, weight, self.momentum)
            mean = actions.averaged(mean)
            kept, kept_valid = elites[:, : self.num_kept], valid[:, : self.num_kept]
        best = torch.where(valid[:, :1], elites[:, 0, 0], actions.chosen(mean[:, 0]))
        action = best if self.execute_best else actions.chosen(mean[:, 0])
        elite_score = _mean_valid(elite_scores, valid)
        info = PlanInfo(elite_scores[:, 0], elite_score, nonfinite, std)
        return action, PlannerState(shift(mean), shift(kept), kept_valid, actions), info


@dataclass(frozen=True)
class ICEM(CEM):
    """CEM with the settings of iCEM (Pinneri et al. 2020), which needs far fewer samples.

    ``noise_beta`` is the setting to choose per task: 2 and more for slow systems, where the paper
    takes up to 4; its .25 for HalfCheetah is the default, since too slow a colour costs far more on
    a fast system (half the return there) than too fast a one on a slow system.
    """

    noise_beta: float = 0.25
    keep_fraction: float = 0.3
    decay: float = 1.25
    add_mean: bool = True
    execute_best: bool = True


def _insert(candidates: Tensor, kept: Tensor, valid: Tensor) -> None:
    """Overwrites the last M of the candidates [S, N, H', A] by kept [S, M, H', A] where valid."""
    slots = candidates[:, candidates.shape[1] - kept.shape[1] :]
    slots.copy_(torch.where(valid[:, :, None, None], kept, slots))


def _best(candidates: Tensor, scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Copies of the best [S, K, H, A], best first; their scores and which are finite, [S, K]."""
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    elite_scores, index = ordered[:, :count], order[:, :count]
    rows = torch.arange(len(index), device=index.device)[:, None]
    return candidates[rows, index], elite_scores, elite_scores > -torch.inf


def _elite_weight(scores: Tensor, elite_scores: Tensor) -> Tensor:
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


def _refit(
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


def _mean_valid(scores: Tensor, valid: Tensor) -> Tensor:
    """The mean [S] of the valid scores [S, K], −inf where there is none."""
    count = valid.sum(1)
    total = torch.where(valid, scores, 0.0).sum(1)
    return torch.where(count > 0, total / count.clamp(min=1), -torch.inf)
