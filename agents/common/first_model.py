"""When there can be a first model: told before the random steps are taken, not after them."""

from __future__ import annotations

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.data.splits import rows_needed


def require_enough_for_a_model(
    members: int, learning_starts: int, recorded: int, real_rows: int | None = None
) -> None:
    """Raises InvalidInputError if a model is due on too few steps; ``recorded`` are there already, and at
    most ``real_rows`` are kept."""
    needed = rows_needed(members)
    if real_rows is not None and real_rows < needed:
        raise InvalidInputError(
            f"real_rows must be at least {needed}, which is what a model of {members} members needs to "
            f"hold out data; got {real_rows}"
        )
    if max(learning_starts, recorded) < needed:
        raise InvalidInputError(
            f"learning_starts must be at least {needed}, which is what a model of {members} "
            f"members needs to hold out data; got {learning_starts}"
        )
