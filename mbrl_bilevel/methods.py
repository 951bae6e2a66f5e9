"""The named ways to train a model: the values of the slots, side by side.

``bilevel`` and its baselines differ in these lines alone; network, data and steps are the same.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from mbrl_bilevel.closed_form import ClosedForm, HeldOutVariance
from mbrl_bilevel.errors import InvalidInputError
from mbrl_bilevel.losses import MSE, NLL, Loss, PolicyGradient
from mbrl_bilevel.objectives import Objective, OneStepMSE, OneStepNLL, ProfileNLL
from mbrl_bilevel.outer import Outer
from mbrl_bilevel.policies import Scale
from mbrl_bilevel.rewards import Mahalanobis
from mbrl_bilevel.temperature import HeldOutTemperature


@dataclass(frozen=True)
class Method:
    """One row of the comparison. ``loss(D)`` builds the loss for D target dimensions afresh."""

    scale: Scale
    loss: Callable[[int], Loss]
    outer: Outer | None
    criterion: Objective
    summary: str


METHODS: dict[str, Method] = {
    "bilevel": Method(
        scale="tempered",
        loss=lambda dim: PolicyGradient(Mahalanobis(dim, "diagonal")),
        outer=Outer(HeldOutTemperature()),
        criterion=ProfileNLL(),
        summary="policy gradient on a Mahalanobis reward; U and the temperature λ(x) inferred on "
        "held-out data",
    ),
    "bilevel-constant": Method(
        scale="constant",
        loss=lambda dim: PolicyGradient(Mahalanobis(dim, "diagonal")),
        outer=Outer(ClosedForm()),
        criterion=ProfileNLL(),
        summary="the same with a constant temperature",
    ),
    "nll": Method(
        scale="network",
        loss=lambda dim: NLL(),
        outer=None,
        criterion=OneStepNLL(),
        summary="maximum likelihood with a variance head, early stopping",
    ),
    "mse": Method(
        scale="constant",
        loss=lambda dim: MSE(),
        outer=Outer(HeldOutVariance()),
        criterion=OneStepMSE(),
        summary="mean squared error, a constant variance fitted on held-out residuals",
    ),
}


def get_method(name: str) -> Method:
    """The method of that name. Raises InvalidInputError with the nearest name."""
    if name in METHODS:
        return METHODS[name]
    near = difflib.get_close_matches(name, METHODS, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InvalidInputError(f"unknown method {name!r}: {hint}choose from {', '.join(METHODS)}")
