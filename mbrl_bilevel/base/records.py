"""Frozen records with their shapes, and the protocols of the slots.

Shape legend, used in every docstring: E ensemble members, K samples, B batch, D target dims,
H horizon, N candidate action sequences, P particles, S start states, O observation dims, A action dims.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.logged import columns_of

FloatArray = npt.NDArray[np.float32] | npt.NDArray[np.float64]

#: A known reward or termination: ``rule(obs [..., O], action [..., A], next_obs [..., O]) -> [...]``
#: (float for a reward, bool for a termination), batched over all leading dimensions.
Rule = Callable[[Tensor, Tensor, Tensor], Tensor]


#: The types that the columns of Transitions may have, the usual one first.
_COLUMN_TYPES = {
    **dict.fromkeys(("obs", "action", "reward", "next_obs"), ("float32", "float64")),
    **dict.fromkeys(("terminated", "truncated"), ("bool",)),
    **dict.fromkeys(("episode", "t"), ("int64",)),
}


#: What a step leads to, in raw units: normalised input x [..., X] and target y [..., D] -> Step [...].
Outcome = Callable[[Tensor, Tensor], "Step"]


@dataclass(frozen=True)
class Segment:
    """What followed each row of a batch in its episode: H rows from the row itself on.

    ``x`` [H, E, B, X] and ``y`` [H, E, B, D] as in Batch; ``there`` [H, E, B] is one until the episode
    (or its part of the split) ends and zero from then on. The first O inputs are a state, which a
    target y moves by ``y @ gain + drift`` ([D, O] and [O]), or which is that afterwards where targets are
    ``direct``; the others are given: actions. ``outcome`` says what a step pays and whether it ends the
    episode; None where nobody can say.
    """

    x: Tensor
    y: Tensor
    there: Tensor
    gain: Tensor
    drift: Tensor
    direct: bool = False
    outcome: Outcome | None = None

    @property
    def horizon(self) -> int:
        """H."""
        return len(self.x)

    def moved(self, x: Tensor, y: Tensor, t: int) -> Tensor:
        """The input of step t + 1 [E, B, X] after target ``y`` [E, B, D] at input ``x`` of step t."""
        state = y @ self.gain if self.direct else x[..., : len(self.drift)] + y @ self.gain
        state = state + self.drift
        return torch.cat([state, self.x[t + 1, ..., len(self.drift) :]], dim=-1)

    def target_from(self, x: Tensor, t: int) -> Tensor:
        """The target [E, B, D] at an imagined input ``x`` of step t that lands on the true state of
        step t + 1; where a target moves no state (a reward), or is that state, it is the true one."""
        if self.direct:
            return self.y[t]
        states = len(self.drift)
        back = torch.where(self.gain != 0.0, 1.0 / self.gain, 0.0).mT
        return self.y[t] + (self.x[t, ..., :states] - x[..., :states]) @ back


@dataclass(frozen=True)
class Batch:
    """Inputs and targets of the generative policy, one row of data per ensemble member.

    ``x`` is [E, B, X], ``y`` is [E, B, D], both in normalised units. ``weight`` [E, B] weighs the
    rows of every mean; zero leaves a row out, so members may hold samples of different sizes.
    ``segment`` is what followed each row, for losses and objectives that look several steps ahead.
    """

    x: Tensor
    y: Tensor
    weight: Tensor | None = None
    segment: Segment | None = None

    def __post_init__(self) -> None:
        if self.x.ndim != 3 or self.y.ndim != 3 or self.x.shape[:2] != self.y.shape[:2]:
            raise InvalidInputError(
                f"Batch: x must be [E, B, X] and y [E, B, D] with the same E and B; "
                f"got x {tuple(self.x.shape)} and y {tuple(self.y.shape)}"
            )
        if self.weight is not None and self.weight.shape != self.x.shape[:2]:
            raise InvalidInputError(
                f"Batch: weight must be [E, B] = {tuple(self.x.shape[:2])}; "
                f"got {tuple(self.weight.shape)}"
            )

    @property
    def weights(self) -> Tensor:
        """``weight`` [E, B], ones where there is none."""
        return torch.ones_like(self.x[..., 0]) if self.weight is None else self.weight

    @property
    def share(self) -> Tensor:
        """The weight of each row in ``mean`` [E, B], summing to one over B."""
        weights = self.weights
        return weights / weights.sum(-1, keepdim=True)

    def take(self, rows: Tensor | slice) -> Batch:
        """Each member's ``rows`` [R] of its B, with what followed them."""
        weight = None if self.weight is None else self.weight[:, rows]
        segment = self.segment
        if segment is not None:
            x, y, there = (part[:, :, rows] for part in (segment.x, segment.y, segment.there))
            segment = replace(segment, x=x, y=y, there=there)
        return Batch(self.x[:, rows], self.y[:, rows], weight, segment)

    def mean(self, values: Tensor) -> Tensor:
        """Weighted mean of ``values`` [..., E, B] over the rows: [..., E].

        NaN for a member whose weights are all zero: it has no rows to take a mean of.
        """
        if self.weight is None:
            return values.mean(-1)
        return (values * self.weight).sum(-1) / self.weight.sum(-1)


@dataclass(frozen=True)
class Step:
    """One imagined step: ``next_obs`` [E, …, B, O], ``reward`` and ``terminated`` [E, …, B] (the
    probability that the episode ended with it)."""

    next_obs: Tensor
    reward: Tensor
    terminated: Tensor


@dataclass(frozen=True)
class Transitions:
    """N environment steps in order of collection, grouped by episode.

    ``obs`` and ``next_obs`` [N, O], ``action`` [N, A], ``reward`` [N], ``terminated`` and
    ``truncated`` [N] bool, ``episode`` [N] int (which episode the step belongs to), ``t`` [N] int
    (the step's time in it). All values are finite: an environment that returns NaN is an error
    at collection. Numbers are float32; float64 where that would lose their changes (``rounding.narrowed``).

    Raises InvalidInputError for another type or shape of a column, or a value that is not finite.
    """

    obs: FloatArray
    action: FloatArray
    reward: FloatArray
    next_obs: FloatArray
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    episode: npt.NDArray[np.int64]
    t: npt.NDArray[np.int64]

    def __post_init__(self) -> None:
        n = len(self.obs)
        for field in fields(self):
            value = getattr(self, field.name)
            expected = 2 if field.name in ("obs", "action", "next_obs") else 1
            if value.dtype.name not in _COLUMN_TYPES[field.name] or not value.dtype.isnative:
                raise InvalidInputError(
                    f"Transitions: {field.name} must be {_COLUMN_TYPES[field.name][0]}; "
                    f"got {value.dtype}: use Transitions.from_arrays, or convert it with .astype"
                )
            if value.ndim != expected or len(value) != n:
                raise InvalidInputError(
                    f"Transitions: {field.name} must have {expected} dimension(s) and {n} rows "
                    f"like obs; got shape {value.shape}"
                )
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise InvalidInputError(
                    f"Transitions: {field.name} holds NaN or infinite values; "
                    "remove these steps, or mend the environment that returned them"
                )
        if self.obs.shape != self.next_obs.shape or self.obs.dtype != self.next_obs.dtype:
            raise InvalidInputError(
                f"Transitions: obs {self.obs.dtype} {self.obs.shape} and next_obs {self.next_obs.dtype} "
                f"{self.next_obs.shape} must agree"
            )

    @staticmethod
    def from_arrays(
        obs: npt.ArrayLike,
        action: npt.ArrayLike,
        next_obs: npt.ArrayLike,
        reward: npt.ArrayLike,
        terminated: npt.ArrayLike | None = None,
        truncated: npt.ArrayLike | None = None,
    ) -> Transitions:
        """Logged steps, in order of time, of any numeric types and memory layouts.

        ``obs``, ``next_obs`` and ``action`` are [N, …], each row made flat, or [N]; ``reward`` and the flags,
        none set where they are not given, [N] or [N, 1]. Steps of environments side by side are [T, B, …]
        with rewards [T, B]. An episode ends with a flag; also, and this is told, where the next row's obs is
        not this row's next_obs. Numbers are kept as float32, or float64 (``rounding.narrowed``).

        Raises InvalidInputError for arrays that do not fit each other, or values that are not finite numbers.
        """
        given: dict[str, Any] = {"obs": obs, "action": action, "next_obs": next_obs}
        given |= {"reward": reward, "terminated": terminated, "truncated": truncated}
        return Transitions(**columns_of(given))

    def __len__(self) -> int:
        return len(self.obs)

    def __getitem__(
        self, rows: npt.NDArray[np.int64] | npt.NDArray[np.bool_] | slice
    ) -> Transitions:
        """The given rows, by index array, boolean mask or slice."""
        return Transitions(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @staticmethod
    def concatenate(parts: list[Transitions]) -> Transitions:
        """All parts one after another. Episode numbers are kept: the caller keeps them distinct.

        Raises InvalidInputError if there are no parts, or their dimensions differ.
        """
        if not parts:
            raise InvalidInputError("Transitions.concatenate: parts is empty; give at least one")
        widths = {(p.obs.shape[1], p.action.shape[1]) for p in parts}
        if len(widths) > 1:
            raise InvalidInputError(
                f"Transitions.concatenate: parts have different (observation, action) dimensions "
                f"{sorted(widths)}; give parts of one environment"
            )
        return Transitions(
            **{
                f.name: np.concatenate([getattr(p, f.name) for p in parts])
                for f in fields(Transitions)
            }
        )


@dataclass(frozen=True)
class FitResult:
    """What one call of ``fit`` did. The fitted policy is the one that was passed in.

    ``criterion`` [E] is the early-stopping value of each member's kept state, reached at
    ``best_step`` [E]; ``steps`` were run of those asked, fewer if ``stopped_early``.
    ``history`` maps a metric's name to its (step, value) pairs; ``outer`` is the last report of
    the outer level (empty without one).
    """

    criterion: tuple[float, ...]
    best_step: tuple[int, ...]
    steps: int
    stopped_early: bool
    history: Mapping[str, tuple[tuple[int, float], ...]]
    outer: Mapping[str, float]

    @property
    def late_gain(self) -> float:
        """How much the criterion (the members' mean) fell in the last half of the steps; 0 where the fit was
        stopped early, or is too short to tell."""
        readings = self.history.get("held_out", ())
        if self.stopped_early or len(readings) < 2:
            return 0.0
        _, half = min(readings, key=lambda reading: abs(reading[0] - self.steps / 2))
        return max(0.0, half - readings[-1][1])

    @property
    def underfitted(self) -> bool:
        """Whether the limit of steps came while the model was still learning: ``late_gain`` is above .005, and a
        tenth of the criterion's fall since its first reading. The step size goes to zero by a cosine, so that a
        fit that is long enough has come to rest by then."""
        readings = self.history.get("held_out", ())
        if not readings:
            return False
        fall = readings[0][1] - readings[-1][1]
        return self.late_gain > max(0.005, 0.1 * fall)
