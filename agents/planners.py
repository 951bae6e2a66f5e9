"""Planners by the cross-entropy method: pure functions of (score, state, generator).

Draw action sequences from N(μ, σ²), refit μ and σ to the best K, repeat; execute the first step.
CEM as in Chua et al. 2018 (arXiv 1805.12114, §5); iCEM: Pinneri et al. 2020 (arXiv 2008.06389).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbrl_bilevel.errors import InvalidInputError

#: ``score(actions [S, N, H, A]) -> [S, N]``: the predicted return of each candidate. The actions
#: are float32, in the environment's units and within its bounds; the score must not write to them.
Score = Callable[[Tensor], Tensor]


#: More candidate actions than this are taken for a slip, or for a hostile checkpoint.
_MOST_ACTIONS = 10**8


@dataclass(frozen=True)
class PlannerState:
    """What a planner remembers between two time steps, for each of S start states.

    ``mean`` [S, H, A] is where the next search starts; ``elites`` [S, M, H, A] are the sequences
    kept from the last one (M = 0 for plain CEM), and ``elite_valid`` [S, M] bool says which of them
    hold something. Both are already shifted to the next time step. ``low`` and ``high`` [A] are the
    action bounds. All in action units, float32.
    """

    mean: Tensor
    elites: Tensor
    elite_valid: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class PlanInfo:
    """How the last iteration of one ``plan`` ended, and how many scores were unusable.

    ``best_score`` and ``elite_score`` [S]: the best and the mean score among the elites, −inf for a
    start without a finite score. ``nonfinite``: NaN and ±inf scores over all starts and iterations.
    ``std`` [S, H, A]: the final σ, in action units.
    """

    best_score: Tensor
    elite_score: Tensor
    nonfinite: int
    std: Tensor


@dataclass(frozen=True)
class CEM:
    """The cross-entropy method with a warm start. The fields after ``initial_std`` make it iCEM.

    - ``horizon``, ``population``, ``iterations``: steps planned, candidates in the first iteration,
      refits per plan.
    - ``elite_fraction``: the part of the population that μ and σ are fitted to, at least one.
    - ``momentum``: the weight of the old μ and σ in a refit.
    - ``initial_std``: σ at the start of every plan, in half-ranges (high − low) / 2.
    - ``noise_beta``: the exponent of the coloured noise; 0 is white.
    - ``keep_fraction``: the part of the elites that competes again in the next iteration and,
      shifted, at the next time step.
    - ``decay``: divides the population at every iteration; 1 keeps it.
    - ``add_mean``: μ itself competes in the last iteration.
    - ``execute_best``: the action is that of the last iteration's best candidate, not that of μ.

    Raises InvalidInputError where a field is out of its range.
    """

    horizon: int = 20
    population: int = 200
    iterations: int = 5
    elite_fraction: float = 0.1
    momentum: float = 0.1
    initial_std: float = 0.5
    noise_beta: float = 0.0
    keep_fraction: float = 0.0
    decay: float = 1.0
    add_mean: bool = False
    execute_best: bool = False

    def __post_init__(self) -> None:
        for name in ("horizon", "population", "iterations"):
            _require_count(name, getattr(self, name))
        for name, ok, wanted in (
            ("elite_fraction", 0 < self.elite_fraction <= 1, "more than 0 and at most 1"),
            ("momentum", 0 <= self.momentum < 1, "at least 0 and less than 1"),
            ("initial_std", 0 < self.initial_std < math.inf, "finite and more than 0"),
            ("noise_beta", 0 <= self.noise_beta < math.inf, "finite and at least 0"),
            ("keep_fraction", 0 <= self.keep_fraction <= 1, "from 0 to 1"),
            ("decay", 1 <= self.decay < math.inf, "finite and at least 1"),
        ):
            _require(ok, name, getattr(self, name), wanted)
        size = self.population * self.horizon
        _require(size <= _MOST_ACTIONS, "population times horizon", size, "at most 100,000,000")
        _require(self.iterations <= 10_000, "iterations", self.iterations, "at most 10,000")

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

    def initial_state(
        self, num_starts: int, low: Tensor | npt.ArrayLike, high: Tensor | npt.ArrayLike
    ) -> PlannerState:
        """The state of ``num_starts`` new episodes: μ in the middle of the bounds [A], no elites.

        Lives on the device of ``low``. Raises InvalidInputError unless ``low`` and ``high`` are
        finite, of one shape [A], and low < high.
        """
        _require_count("num_starts", num_starts)
        low, high = _bounds(low, high)
        middle = low / 2 + high / 2
        steps = (self.horizon, len(low))
        return PlannerState(
            mean=middle.expand(num_starts, *steps).clone(),
            elites=middle.expand(num_starts, self.num_kept, *steps).clone(),
            elite_valid=torch.zeros(num_starts, self.num_kept, dtype=torch.bool, device=low.device),
            low=low,
            high=high,
        )

    def reset(self, state: PlannerState, mask: Tensor | npt.NDArray[np.bool_]) -> PlannerState:
        """The state with the starts where ``mask`` [S] bool is true made new, the others as before.

        Raises InvalidInputError for a mask of another type or shape, or another planner's state.
        """
        self._check(state)
        mask = torch.as_tensor(mask, device=state.mean.device)
        starts = len(state.mean)
        ok = mask.dtype == torch.bool and mask.shape == (starts,)
        _require(ok, "mask", f"{mask.dtype} {tuple(mask.shape)}", f"bool of shape ({starts},)")
        fresh = self.initial_state(starts, state.low, state.high)
        return PlannerState(
            mean=torch.where(mask[:, None, None], fresh.mean, state.mean),
            elites=torch.where(mask[:, None, None, None], fresh.elites, state.elites),
            elite_valid=state.elite_valid & ~mask[:, None],
            low=state.low,
            high=state.high,
        )

    def plan(
        self, score: Score, state: PlannerState, generator: torch.Generator
    ) -> tuple[Tensor, PlannerState, PlanInfo]:
        """The action [S, A] to execute, the state for the next time step, and how the search went.

        ``generator`` makes every draw and lives on the state's device. A non-finite score counts as
        −inf; a start whose scores are all non-finite executes and keeps its μ. No gradients.

        Raises InvalidInputError for a score of the wrong shape, another planner's state, or a
        generator on another device.
        """
        self._check(state)
        device = state.mean.device.type
        _require(generator.device.type == device, "generator", generator.device, f"on {device}")
        with torch.no_grad():
            mean, kept, kept_valid = state.mean, state.elites, state.elite_valid
            std = (self.initial_std * (state.high / 2 - state.low / 2)).expand_as(mean)
            nonfinite = torch.zeros((), dtype=torch.long, device=mean.device)
            for i, count in enumerate(self.populations()):
                noise = coloured_noise(
                    (len(mean), count, *mean.shape[1:]), self.noise_beta, generator
                )
                candidates = (mean[:, None] + std[:, None] * noise).clamp(state.low, state.high)
                # A shifted elite knows nothing of the new last step: the fresh draw stays there.
                known = self.horizon - 1 if i == 0 else self.horizon
                _insert(candidates[:, :, :known], kept[:, :, :known], kept_valid)
                if self.add_mean and i == self.iterations - 1:
                    candidates[:, 0] = mean
                scores, bad = _finite_scores(score, candidates)
                nonfinite += bad
                elites, elite_scores, valid = _best(candidates, scores, self.num_elites)
                weight = _elite_weight(scores, elite_scores)
                mean, std = _refit(mean, std, candidates, weight, self.momentum)
                mean = mean.clamp(state.low, state.high)  # an average can be off by a rounding
                kept, kept_valid = elites[:, : self.num_kept], valid[:, : self.num_kept]
            best = torch.where(valid[:, :1], elites[:, 0, 0], mean[:, 0])
            action = best if self.execute_best else mean[:, 0]
            elite_score = _mean_valid(elite_scores, valid)
            info = PlanInfo(elite_scores[:, 0], elite_score, int(nonfinite), std)
            after = (_shift(mean), _shift(kept), kept_valid, state.low, state.high)
        return action, PlannerState(*after), info

    def _check(self, state: PlannerState) -> None:
        starts, actions = len(state.mean), len(state.low)
        for name, part in (("mean", ()), ("elites", (self.num_kept,))):
            shape = tuple(getattr(state, name).shape)
            wanted = (starts, *part, self.horizon, actions)
            _require(shape == wanted, f"state.{name}", shape, f"{wanted}: use initial_state")


@dataclass(frozen=True)
class ICEM(CEM):
    """CEM with the settings of iCEM (Pinneri et al. 2020), which needs far fewer samples.

    ``noise_beta`` is the setting to choose per task: large for slow systems, small for fast ones.
    """

    noise_beta: float = 2.0
    keep_fraction: float = 0.3
    decay: float = 1.25
    add_mean: bool = True
    execute_best: bool = True


def coloured_noise(shape: tuple[int, ...], beta: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise [..., H, A] of unit variance whose power along H falls as frequency^(−beta).

    Timmer & König 1995: independent Gaussian Fourier coefficients of deviation f^(−beta/2).
    White noise has just such coefficients with a constant deviation, so white noise is filtered.
    Frequency 0 gets the power of the lowest other one, as in the ``colorednoise`` package; but here
    it counts in the normalisation, so that every step has the σ that was asked for.
    """
    white = torch.randn(shape, generator=generator, device=generator.device)
    steps = shape[-2]
    if beta == 0 or steps == 1:
        return white
    frequency = torch.fft.fftfreq(steps, d=1 / steps, device=white.device).abs().clamp(min=1)
    amplitude = frequency ** (-beta / 2)
    # Parseval: the filter multiplies the variance by the mean squared amplitude over all H.
    amplitude = amplitude / amplitude.square().mean().sqrt()
    spectrum = torch.fft.rfft(white, dim=-2) * amplitude[: steps // 2 + 1, None]
    coloured: Tensor = torch.fft.irfft(spectrum, n=steps, dim=-2)
    return coloured


def _require(ok: bool, name: str, came: object, wanted: str) -> None:
    if not ok:
        raise InvalidInputError(f"planner: {name} must be {wanted}; got {came}")


def _require_count(name: str, value: object) -> None:
    ok = isinstance(value, int | np.integer) and value >= 1
    _require(bool(ok), name, value, "an integer of at least 1")


def _bounds(low: Tensor | npt.ArrayLike, high: Tensor | npt.ArrayLike) -> tuple[Tensor, Tensor]:
    """Own copies [A] in float32, checked."""
    low = torch.as_tensor(low, dtype=torch.float32).detach().clone()
    high = torch.as_tensor(high, dtype=torch.float32, device=low.device).detach().clone()
    _require(low.ndim == 1 and len(low) > 0, "low", f"shape {tuple(low.shape)}", "of shape [A]")
    same = f"of shape {tuple(low.shape)} like low"
    _require(high.shape == low.shape, "high", f"shape {tuple(high.shape)}", same)
    for name, bound in (("low", low), ("high", high)):
        finite = bool(bound.isfinite().all())
        _require(finite, name, bound.tolist(), "finite (rescale or bound the action space)")
    below = bool((low < high).all())
    _require(below, "low", low.tolist(), f"below high {high.tolist()} in every action")
    return low, high


def _insert(candidates: Tensor, kept: Tensor, valid: Tensor) -> None:
    """Overwrites the last M of the candidates [S, N, H', A] by kept [S, M, H', A] where valid."""
    slots = candidates[:, candidates.shape[1] - kept.shape[1] :]
    slots.copy_(torch.where(valid[:, :, None, None], kept, slots))


def _finite_scores(score: Score, candidates: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [S, N] with −inf for every non-finite one, and the number of these."""
    scores = score(candidates)
    shape, wanted = tuple(scores.shape), tuple(candidates.shape[:2])
    _require(shape == wanted, "score(actions)", f"shape {shape}", f"of shape [S, N] = {wanted}")
    finite = scores.isfinite()
    return torch.where(finite, scores, -torch.inf), (~finite).sum()


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


def _shift(sequences: Tensor) -> Tensor:
    """A copy of [..., H, A] one step later; the last step is repeated."""
    return torch.cat([sequences[..., 1:, :], sequences[..., -1:, :]], dim=-2)
