"""Where observations lie: the declared space, wider where real observations have left it."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from mbrl_bilevel.base.rounding import as_type

Array = npt.NDArray[Any]


def seen_bounds(space: gym.spaces.Box, *seen: Array) -> tuple[Array, Array]:
    """The lowest and the highest [O], of the type of ``space``: its own, or those of real observations
    ``seen`` [N, O] (each N >= 1) where these lie outside.

    Warns if some do: what was seen is believed over what was declared.
    """
    if not (np.isfinite(space.low) | np.isfinite(space.high)).any():
        return space.low, space.high
    lowest, highest = np.min([v.min(0) for v in seen], 0), np.max([v.max(0) for v in seen], 0)
    # Compared in the type of what was seen: its rounding is no step outside.
    below, above = (
        lowest < space.low.astype(lowest.dtype),
        highest > space.high.astype(lowest.dtype),
    )
    if (below | above).any():
        warnings.warn(
            f"real observations leave the observation space {space} in dimensions "
            f"{np.flatnonzero(below | above).tolist()}: what was seen is used there in place of its bounds; "
            "correct the space of the environment",
            stacklevel=3,
        )
    low = np.where(below, as_type(lowest, space.dtype), space.low)
    return low, np.where(above, as_type(highest, space.dtype), space.high)
