"""What a planner refuses, in one line that names the argument."""

from __future__ import annotations

from mbrl_bilevel.base.errors import InvalidInputError


def require(ok: bool, name: str, came: object, wanted: str) -> None:
    """Raises InvalidInputError unless ``ok``: ``name`` must be ``wanted``; got ``came``."""
    if not ok:
        raise InvalidInputError(f"planner: {name} must be {wanted}; got {came}")
