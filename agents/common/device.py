"""The device that an agent works on, and what plans need there."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from stable_baselines3.common.utils import get_device

from agents.planning_agent.terminal_value import Value
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.imagination.particles import StepModel
from mbrl_bilevel.policies.precision import Precision


def chosen_device(device: torch.device | str) -> torch.device:
    """As in SB3, "auto" is CUDA where there is one; CUDA that is asked for has to be there.

    Raises InvalidInputError for another device than the CPU or a CUDA that is there.
    """
    if device == "auto":
        return get_device()
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError):
        wanted = None
    if wanted is None or wanted.type not in ("cpu", "cuda"):
        raise InvalidInputError(f'device must be "auto", "cpu" or "cuda"; got {device!r}')
    if wanted.type == "cuda":
        # SB3 would go on without a word.
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not 0 <= (wanted.index or 0) < count:
            raise InvalidInputError(
                f'device {str(device)!r} is not there: {count} CUDA devices were found; use "auto" or "cpu"'
            )
    return wanted


@dataclass(frozen=True)
class Moved:
    """A model and a value, what they are ``there``, on the planning device, frozen in a ``precision``, and the
    model there ``in_full``, in float32."""

    model: StepModel
    value: Value | None
    precision: Precision
    there: tuple[StepModel, Value | None]
    in_full: StepModel

    @staticmethod
    def to(
        device: torch.device, model: StepModel, value: Value | None, precision: Precision
    ) -> Moved:
        """A learned model is frozen on ``device``; any other stays, and its value with it."""
        frozen = model.frozen(device, precision)
        there = (frozen, None if value is None else value.to(frozen.device))
        return Moved(model, value, precision, there, frozen.frozen())

    def is_of(self, model: StepModel, value: Value | None, precision: Precision) -> bool:
        """Whether these very two were moved, for this ``precision``."""
        return self.model is model and self.value is value and self.precision == precision
