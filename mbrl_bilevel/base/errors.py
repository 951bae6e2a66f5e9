"""The one exception family of the project: a bad input is told in one line, with its remedy."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

T = TypeVar("T")


class BilevelError(Exception):
    """Base of every error raised on purpose. Scripts print it as one line and exit with code 2."""


class InvalidInputError(BilevelError, ValueError):
    """An argument has a wrong value, shape or type. The message names it, what came and what would do."""


class CheckpointError(BilevelError):
    """A checkpoint is missing, damaged, hostile, or of a version this code cannot read."""


class UnsupportedCombinationError(BilevelError, ValueError):
    """A combination of slots that is mathematically wrong, with the reason and the remedy."""


class DivergedError(BilevelError):
    """Training produced NaN or infinity. What ``fit`` trains holds its last good state."""


class EnvironmentFailedError(BilevelError):
    """An environment raised, hung, or returned what its own spaces rule out."""


def require_count(name: str, value: object, most: int = 10**7) -> None:
    """Raises InvalidInputError unless ``value`` is an int (a plain one: not a bool, a float or NumPy's,
    which a file would not give back) from 1 to ``most``."""
    if type(value) is not int or not 1 <= value <= most:
        raise InvalidInputError(f"{name} must be an int from 1 to {most:,}; got {value!r}")


def look_up(table: Mapping[str, T], name: str, unknown: str) -> T:
    """``table[name]``. Raises InvalidInputError that begins with ``unknown`` and ends with the nearest
    name and all of them."""
    if name in table:
        return table[name]
    near = difflib.get_close_matches(name, table, n=1, cutoff=0.3)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise InvalidInputError(f"{unknown} {name!r}: {hint}choose from {', '.join(table)}")
