"""Known noise on recorded steps, so that the truth that a model should find is known.

Added to what a model predicts, (Δobs, reward), in units of each target's standard deviation, or to the
recorded action. MuJoCo itself is deterministic: whatever spread there is comes from here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.base.rounding import ULPS

Array = npt.NDArray[np.float64]

Noise = Literal["none", "action", "heteroscedastic", "two-mode", "outliers"]

#: Standard deviation of the noise on recorded actions, in units of their own.
_ACTION = 0.3
#: The modes lie this far on either side of the noise-free target, and are this wide.
_MODE, _WIDTH = 0.5, 0.1
#: This share of rows has noise this many times the others'.
_OUTLIERS, _TIMES = 0.05, 10.0
#: log σ(x) of the heteroscedastic noise runs over ± this around the log of its middle.
_SWING, _MIDDLE = 1.2, 0.2


@dataclass(frozen=True)
class Units:
    """What "one" means: mean and standard deviation [O + A] of the inputs, standard deviation
    [O + 1] of the targets; zero for what never varies."""

    centre: Array
    width: Array
    target: Array

    @staticmethod
    def of(transitions: Transitions) -> Units:
        """As found in ``transitions``."""
        x, y = _inputs(transitions), _targets(transitions)
        # A change is as exact as the observations that it is the difference of.
        size = np.append(np.abs(transitions.obs).max(0), np.abs(transitions.reward).max())
        return Units(x.mean(0), _spread(x, np.abs(x).max(0)), _spread(y, size))


@dataclass(frozen=True)
class Noisy:
    """The steps with noise, and the ``nll`` of it: nats per dimension that varies at all, averaged over
    rows, which no model can beat on average; None where that is not known (noise on actions)."""

    transitions: Transitions
    nll: float | None


def add_noise(
    transitions: Transitions, noise: Noise, units: Units, random: np.random.Generator
) -> Noisy:
    """``transitions`` with ``noise``, drawn by ``random`` in ``units``; a target dimension that never varies gets none.

    "heteroscedastic": normal with log σ(x) = log .2 + 1.2 sin(w·x̃), w alternating in sign over the
    standardised inputs x̃; "two-mode": ±.5 with even odds, alike in all dimensions of a row,
    plus .1 of normal noise; "outliers": normal with .1, in one row of twenty with 1; "action": the
    action that is recorded is the one taken plus normal noise of .3 standard deviations.
    """
    if noise == "none":
        return Noisy(transitions, None)
    if noise == "action":
        width = units.width[transitions.obs.shape[1] :]
        moved = transitions.action + _ACTION * width * random.normal(size=transitions.action.shape)
        return Noisy(replace(transitions, action=moved.astype(np.float32)), None)
    target = units.target
    shape = (len(transitions), len(target))
    if noise == "heteroscedastic":
        std = spread_at(transitions, units)
        drawn = std * random.normal(size=shape)
        density = log_normal(drawn, 0.0, std)
    elif noise == "two-mode":
        side = _MODE * random.choice([-1.0, 1.0], size=(shape[0], 1))
        drawn = side + _WIDTH * random.normal(size=shape)
        density = two_mode_log_density(drawn, target > 0.0)
    else:
        wide = np.where(random.random((shape[0], 1)) < _OUTLIERS, _TIMES, 1.0)
        drawn = wide * _WIDTH * random.normal(size=shape)
        density = outlier_log_density(drawn, target > 0.0)
    active = target > 0.0
    per_row = density if density.ndim == 1 else density[:, active].sum(1)
    nll = -(per_row.mean() - np.log(target[active]).sum()) / active.sum()
    added = (target * drawn).astype(np.float32)
    return Noisy(
        replace(
            transitions,
            next_obs=transitions.next_obs + added[:, :-1],
            reward=transitions.reward + added[:, -1],
        ),
        float(nll),
    )


def spread_at(transitions: Transitions, units: Units) -> Array:
    """σ(x) of the heteroscedastic noise, [N, 1], in units of the targets."""
    x = (_inputs(transitions) - units.centre) / np.where(units.width > 0.0, units.width, 1.0)
    sign = np.where(np.arange(x.shape[1]) % 2 == 0, 1.0, -1.0) / math.sqrt(x.shape[1])
    found: Array = _MIDDLE * np.exp(_SWING * np.sin(math.pi * (x @ sign)))[:, None]
    return found


def log_normal(drawn: Array, mean: float, std: Array | float) -> Array:
    """log N(drawn; mean, std²), entry by entry."""
    from scipy import (
        stats,  # here: it takes a second, and every process that reads data would pay it
    )

    found: Array = stats.norm.logpdf(drawn, mean, std)
    return found


def two_mode_log_density(drawn: Array, active: npt.NDArray[np.bool_]) -> Array:
    """log p of rows ``drawn`` [N, D] in their ``active`` dimensions, [N]."""
    sides = [log_normal(drawn, m, _WIDTH)[:, active].sum(1) for m in (-_MODE, _MODE)]
    found: Array = special.logsumexp(sides, axis=0) - math.log(2.0)
    return found


def outlier_log_density(drawn: Array, active: npt.NDArray[np.bool_]) -> Array:
    """log p of rows ``drawn`` [N, D] in their ``active`` dimensions, [N]."""
    widths = (_WIDTH, _TIMES * _WIDTH)
    parts = [log_normal(drawn, 0.0, w)[:, active].sum(1) for w in widths]
    odds = np.log([1.0 - _OUTLIERS, _OUTLIERS])
    found: Array = special.logsumexp(np.array(parts) + odds[:, None], axis=0)
    return found


def _spread(values: Array, size: Array) -> Array:
    """The standard deviation of ``values`` [N, D], zero where it is rounding of float32 at ``size`` [D]."""
    found: Array = values.std(0)
    return np.where(found > ULPS * np.finfo(np.float32).eps * size, found, 0.0)


def _inputs(transitions: Transitions) -> Array:
    return np.concatenate([transitions.obs, transitions.action], axis=1).astype(np.float64)


def _targets(transitions: Transitions) -> Array:
    change = transitions.next_obs - transitions.obs
    return np.concatenate([change, transitions.reward[:, None]], axis=1).astype(np.float64)
