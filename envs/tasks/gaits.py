"""Rhythmic actions with noise: they move a body further, and over more speeds, than random ones.

a_i(t) = A·sin(2π f t + φ_i) + noise, with f, A and φ drawn anew for each episode.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from mbrl_bilevel.base.rounding import as_type

#: Standard deviation of the noise, in half-ranges of the action.
_NOISE = 0.2


class Gaits:
    """``gaits(obs, t) -> action`` within ``space``; f between the two ``frequencies`` (cycles a step), A
    between .2 and 1 half-ranges."""

    def __init__(
        self,
        space: gym.spaces.Box,
        generator: np.random.Generator,
        frequencies: tuple[float, float] = (0.02, 0.2),
    ) -> None:
        self._space, self._generator, self._frequencies = space, generator, frequencies
        self._centre = (space.high.astype(np.float64) + space.low) / 2.0
        self._half = (space.high.astype(np.float64) - space.low) / 2.0

    def __call__(self, obs: npt.NDArray[Any], t: int) -> npt.NDArray[Any]:
        if t == 0:
            self._frequency = self._generator.uniform(*self._frequencies)
            self._amplitude = self._generator.uniform(0.2, 1.0)
            self._phase = self._generator.uniform(0.0, 2.0 * np.pi, self._space.shape)
        wave = self._amplitude * np.sin(2.0 * np.pi * self._frequency * t + self._phase)
        noise = _NOISE * self._generator.standard_normal(self._space.shape)
        action = self._centre + self._half * (wave + noise)
        return np.clip(as_type(action, self._space.dtype), self._space.low, self._space.high)
