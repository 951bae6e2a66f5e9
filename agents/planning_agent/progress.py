"""How far an agent has come."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True)
class Progress:
    """How far an agent has come: real steps at the last fit and at the last imagination, updates made
    offline, the first planned episode (None: none yet), and how its model was on new steps."""

    fitted_on: int = 0
    imagined_on: int = 0
    offline_updates: int = 0
    first_planned: int | None = None
    health: tuple[tuple[str, float], ...] = ()

    def with_health(self, found: Mapping[str, float]) -> Self:
        """The same, with what is finite of the last look at how things are: a file holds nothing else."""
        kept = {
            name: value
            for name, value in found.items()
            if name.startswith("health/") and math.isfinite(value)
        }
        return replace(self, health=tuple(sorted(kept.items())))
