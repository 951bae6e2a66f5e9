"""Numbers as the users of Stable-Baselines3 type them: 1e5, NumPy's integers, no seed at all."""

from __future__ import annotations

from typing import Any

import numpy as np

from mbrl_bilevel.base.errors import InvalidInputError, require_count


def as_count(name: str, value: Any, most: int = 10**12) -> int:
    """``value``, an integer of Python's or NumPy's or a whole float, as a plain int.

    Raises InvalidInputError, which begins with ``name``, unless it is from 1 to ``most``.
    """
    whole = isinstance(value, float | np.floating) and float(value).is_integer()
    count = int(value) if whole or isinstance(value, np.integer) else value
    require_count(name, count, most)
    return int(count)


def as_seed(seed: Any) -> int:
    """``seed`` as a plain int, which a file gives back; one that the system draws for None.

    Raises InvalidInputError unless it is from 0 to below 2^62, which leaves room for the seeds that follow
    from it.
    """
    if seed is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    plain = int(seed) if isinstance(seed, np.integer) else seed
    if type(plain) is not int or not 0 <= plain < 2**62:
        raise InvalidInputError(f"seed must be None or an int from 0 to below 2**62; got {seed!r}")
    return plain
