"""Planning by the cross-entropy method, and iCEM, which needs fewer samples.

Draw action sequences from N(μ, σ²), refit μ and σ to the best K, repeat; execute the first step.
Of discrete actions, draw from the probabilities μ and refit μ to the elites' frequencies.
CEM as in Chua et al. 2018 (arXiv 1805.12114, §5); iCEM: Pinneri et al. 2020 (arXiv 2008.06389).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from agents.planners.base import PlanInfo, Planner, PlannerState, Score
from agents.planners.checks import require
from mbrl_bilevel.base.errors import require_count

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class CEM(Planner):
    """The cross-entropy method with a warm start. The fields after ``initial_std`` make it iCEM.

    Raises InvalidInputError where a field is out of its range.
    """

    iterations: int = 5
    """Refinements of a plan."""
    elite_fraction: float = 0.1
    """The part of the candidates, the best, that the next iteration is drawn from: at least one of them; mppi
    weighs these alone."""
    momentum: float = 0.1
    """The weight of the old mean and spread when they are refitted to the best candidates."""
    initial_std: float = 0.5
    """Spread at the start of every plan, in half-ranges of the actions; of discrete actions, the share of the
    uniform distribution in the first iteration's draws, 1 at most."""
    noise_beta: float = 0.0
    """Colour of the candidates' noise in time: 0 is white, 2 and more for slow systems."""
    keep_fraction: float = 0.0
    """The part of the best candidates that competes again in the next iteration and, shifted, at the next time
    step."""
    decay: float = 1.0
    """Divides the candidates at every iteration; 1 keeps their number."""
    add_mean: bool = False
    """Whether the mean itself competes in the last iteration."""
    add_middle: bool = False
    """Let doing nothing, the middle of the actions throughout, compete in the first iteration: where control
    costs and candidates are few, as on Pusher, each of them may cost more than it gains."""
    execute_best: bool = False
    """Whether the last iteration's best candidate is executed; else the mean is."""

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

    def search(
        self,
        score: Score,
        state: PlannerState,
        generator: torch.Generator,
        proposals: Tensor | None,
    ) -> tuple[Tensor, PlannerState, PlanInfo]:
        import torch

        from agents.planners.candidates import finite_scores, joined, shift
        from agents.planners.coloured_noise import coloured_noise
        from agents.planners.elites import best, elite_weight, insert, mean_valid, refit

        actions, kept, kept_valid = state.actions, state.elites, state.elite_valid
        mean, std = actions.widened(state.mean, self.initial_std)
        nonfinite = 0
        for i, count in enumerate(self.populations()):
            shape = (len(mean), count, *mean.shape[1:])
            noise = coloured_noise(shape, self.noise_beta, generator)
            candidates = actions.draw(mean, std, noise)
            # A shifted elite knows nothing of the new last step: the fresh draw stays there.
            known = self.horizon - 1 if i == 0 else self.horizon
            insert(candidates[:, :, :known], kept[:, :, :known], kept_valid)
            if self.add_middle and i == 0:
                candidates[:, 0] = actions.chosen(actions.middle)
            if self.add_mean and i == self.iterations - 1:
                candidates[:, 0] = actions.chosen(mean)
            candidates = joined(candidates, proposals)
            scores, bad = finite_scores(score, candidates)
            nonfinite += bad
            elites, elite_scores, valid = best(candidates, scores, self.num_elites)
            weight = elite_weight(scores, elite_scores)
            mean, std = refit(mean, std, candidates, weight, self.momentum)
            mean = actions.averaged(mean)
            kept, kept_valid = elites[:, : self.num_kept], valid[:, : self.num_kept]
        action = actions.chosen(mean[:, 0])
        if self.execute_best:
            action = torch.where(valid[:, :1], elites[:, 0, 0], action)
        elite_score = mean_valid(elite_scores, valid)
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
