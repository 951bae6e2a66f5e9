"""Which of several values is the best of its group."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

from mbrl_bilevel.pages.blocks import Better


def best_of(
    values: Sequence[tuple[Hashable, float]], better: Better, level: float = 0.0
) -> list[bool]:
    """Of each (group, value), whether it is the best of a group of at least two; ties are all the best.

    ``level``: the value that is best where ``better`` is "level". What is not finite is never the best.
    """

    def cost(value: float) -> float:
        return {"lower": value, "higher": -value, "level": abs(value - level)}[better]

    groups: dict[Hashable, list[float]] = {}
    for group, value in values:
        groups.setdefault(group, []).append(value)
    least = {
        group: min((cost(v) for v in found if math.isfinite(v)), default=math.nan)
        for group, found in groups.items()
    }
    return [
        len(groups[group]) > 1 and math.isfinite(value) and cost(value) == least[group]
        for group, value in values
    ]
