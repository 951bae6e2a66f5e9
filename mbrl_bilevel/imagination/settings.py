"""How a model is imagined in: for plans (``particles.py``) and from real states (``branches.py``).

Each field says what it is, which is also the help of the option of that name. Nothing here imports PyTorch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from mbrl_bilevel.base.errors import InvalidInputError, require_count
from mbrl_bilevel.policies.precision import Precision

Propagation = Literal["ts1", "tsinf"]
Uncertainty = Literal["spread", "disagreement"]


@dataclass(frozen=True)
class Imagination:
    """How a plan is imagined; PETS (Chua et al. 2018, section 5.1) for how particles follow members.

    All candidates share the particles' draws (common random numbers), so that their ranking is not blurred
    by noise. ``pessimism`` gives a lower confidence bound; it needs "tsinf", where a return is one member's.
    Where ``sample`` is set, a member's return is over its own particles' draws: more of them leave less
    chance in the deviation. ``precision``: "bfloat16" is several times faster on a processor made for it, with
    rewards that agree to about two digits; states and returns are added up in float32 either way. "auto" is
    settled once, by ``fast_inference.fastest_precision``; the default is the same on every machine.

    Raises InvalidInputError where a field is out of its range.
    """

    particles: int = 5
    """Imagined trajectories of each candidate plan, a multiple of the members that plan."""
    propagation: Propagation = "tsinf"
    """Whether a particle changes its ensemble member at every step (ts1) or never (tsinf)."""
    sample: bool = True
    """Whether each imagined step is drawn from the member's distribution; else its mean is followed."""
    pessimism: float = 0.0
    """Standard deviations of the members' mean returns taken off a plan's score; tsinf only."""
    screen: float = 1.0
    """The part of the candidates that is judged by all members: those that one member, drawn each time, finds best.
    With E members a plan takes 1/E + screen of the model steps, .45 for five and .25; tsinf only."""
    precision: Precision | Literal["auto"] = "float32"
    """What the networks compute in while plans are imagined; auto: bfloat16 where that is faster, measured on
    the CPU at the start."""

    def __post_init__(self) -> None:
        _require_choice("propagation", self.propagation, get_args(Propagation))
        _require_choice("precision", self.precision, (*get_args(Precision), "auto"))
        require_count("particles", self.particles, 100_000)
        if not 0.0 <= self.pessimism < math.inf:
            raise InvalidInputError(f"pessimism must be finite and >= 0; got {self.pessimism}")
        if self.pessimism and self.propagation == "ts1":
            raise InvalidInputError(
                'pessimism needs propagation "tsinf": with "ts1" no return is of one member'
            )
        if not 0.0 < self.screen <= 1.0:
            raise InvalidInputError(f"screen must be above 0 and at most 1; got {self.screen}")
        if self.screen < 1.0 and self.propagation == "ts1":
            raise InvalidInputError(
                'screen needs propagation "tsinf": with "ts1" no return is of one member'
            )

    def settled(self) -> Imagination:
        """The same with "auto" replaced by what it stands for here, so that it can be written down."""
        return replace(self, precision=self.chosen_precision)

    @property
    def chosen_precision(self) -> Precision:
        """What "auto" comes to on this machine."""
        if self.precision != "auto":
            return self.precision
        from mbrl_bilevel.policies.fast_inference import fastest_precision  # it brings in PyTorch

        return fastest_precision()


@dataclass(frozen=True)
class Branching:
    """How a branch from a real state grows. Raises InvalidInputError where a field is out of its range."""

    propagation: Propagation = "ts1"
    """Whether a branch changes its ensemble member at every step (ts1) or never (tsinf)."""
    sample: bool = True
    """Whether each step of a branch is drawn from the member's distribution; else its mean is followed."""
    penalty: float = 0.0
    """What comes off an imagined reward, times the model's uncertainty there."""
    uncertainty: Uncertainty = "spread"
    """The model's uncertainty that is penalised: the largest spread that a member predicts, or the disagreement
    of the members' means."""

    def __post_init__(self) -> None:
        _require_choice("propagation", self.propagation, get_args(Propagation))
        _require_choice("uncertainty", self.uncertainty, get_args(Uncertainty))
        if not 0.0 <= self.penalty < math.inf:
            raise InvalidInputError(f"penalty must be finite and >= 0; got {self.penalty}")


def _require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        *others, last = (f'"{choice}"' for choice in choices)
        raise InvalidInputError(f"{name} must be {', '.join(others)} or {last}; got {value!r}")
