"""How a fit is made: its schedule, and how it goes on from an earlier one.

Each field says what it is, which is also the help of the option of that name. Nothing here imports PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mbrl_bilevel.base.errors import InvalidInputError, require_count


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a model is trained: Adam, its step size on a cosine to zero.

    Raises InvalidInputError where a field is out of its range.
    """

    steps: int = 2000
    """Gradient steps of a fit at most; early stopping ends it sooner."""
    batch_size: int = 256
    """Rows of a minibatch, per member."""
    learning_rate: float = 1e-3
    """Adam's step size at the start of the cosine of a fit."""
    weight_decay: float = 0.0
    """Adam's weight decay."""
    evaluate_every: int = 50
    """Gradient steps between two readings of the criterion on the held-out rows."""
    patience: int = 16
    """A fit ends after so many readings in which no member improved."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "evaluate_every", "patience"):
            require_count(name, getattr(self, name))
        if not (self.learning_rate > 0.0 and math.isfinite(self.learning_rate)):
            raise InvalidInputError(f"learning_rate must be positive; got {self.learning_rate}")
        if not 0.0 <= self.weight_decay < math.inf:
            raise InvalidInputError(
                f"weight_decay must be finite and >= 0; got {self.weight_decay}"
            )


@dataclass(frozen=True)
class WarmStart:
    """θ ← ``shrink``·θ + ``perturb``·θ_new, with the parameters θ_new of a newly initialised network (Ash
    & Adams 2020, arXiv 1910.08475, eq. 1, whose noise is drawn as an initialisation is).

    The defaults are those of model-free agents that do so often (D'Oro et al. 2023, SR-SPR: .8 and .2). With
    1 and 0 the fit goes on from θ itself. Early stopping alone hardly shortens it, since the learning rate is
    high again at its start; hence ``part``. (On 3000 random steps of HalfCheetah, after a fit to the first 2000
    of them, a quarter of the steps is as good as all from scratch.) Raises InvalidInputError where a field is
    out of its range.
    """

    shrink: float = 0.8
    """What a fit that goes on from the last one multiplies its parameters by."""
    perturb: float = 0.2
    """How much of a newly initialised network's parameters a fit that goes on then adds."""
    part: float = 1.0
    """A fit that goes on makes this part of the gradient steps of one from scratch."""

    def __post_init__(self) -> None:
        if not 0.0 < self.part <= 1.0:
            raise InvalidInputError(
                f"WarmStart: part must be above 0 and at most 1; got {self.part}"
            )
        for name in ("shrink", "perturb"):
            value = getattr(self, name)
            if not (math.isfinite(value) and 0.0 <= value <= 1.0):
                raise InvalidInputError(f"WarmStart: {name} must be from 0 to 1; got {value}")
