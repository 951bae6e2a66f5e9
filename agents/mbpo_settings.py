"""What an MBPO agent is made of."""

from __future__ import annotations

from dataclasses import dataclass

from mbrl_bilevel.branches import Branching
from mbrl_bilevel.errors import InvalidInputError, require_count
from mbrl_bilevel.fit import Schedule
from mbrl_bilevel.methods import get_method


@dataclass(frozen=True)
class RolloutLength:
    """Steps of an imagined branch: ``first`` until real step ``begin``, growing linearly to ``last`` at
    ``end`` (Janner et al. 2019, appendix C: x → y over steps a → b)."""

    first: int = 1
    last: int = 1
    begin: int = 0
    end: int = 1

    def __post_init__(self) -> None:
        for name in ("first", "last"):
            require_count(f"RolloutLength: {name}", getattr(self, name), 1000)
        require_count("RolloutLength: end", self.end)
        if type(self.begin) is not int or not 0 <= self.begin < self.end:
            raise InvalidInputError(
                f"RolloutLength: begin must be an int from 0 to below end ({self.end}); got {self.begin!r}"
            )

    def at(self, step: int) -> int:
        """The length at a real step."""
        share = (step - self.begin) / (self.end - self.begin)
        return round(self.first + min(max(share, 0.0), 1.0) * (self.last - self.first))


@dataclass(frozen=True)
class MBPOSettings:
    """The choices behind an MBPO agent; each has a default.

    ``method``: how its model is trained (``mbrl_bilevel.methods``). ``learning_starts`` random steps come
    first; then the model is fitted from scratch every ``refit_every`` steps, to all experience. Every
    ``imagine_every`` steps, and after each fit, ``rollouts_per_step`` branches for each of these steps
    are begun in real states, each ``rollout`` long. After each real step the held agent makes
    ``updates_per_step`` updates, on batches of which ``real_share`` is real.

    With ``real_share`` 1 nothing is imagined, and no model is made: that is the held agent alone.
    """

    method: str = "bilevel"
    members: int = 5
    hidden: tuple[int, ...] = (200, 200)
    schedule: Schedule = Schedule(steps=1500)
    learning_starts: int = 500
    refit_every: int = 250
    imagine_every: int = 50
    rollouts_per_step: int = 100
    rollout: RolloutLength = RolloutLength()
    branching: Branching = Branching()
    updates_per_step: int = 10
    real_share: float = 0.05
    real_rows: int = 1_000_000
    imagined_rows: int = 100_000

    def __post_init__(self) -> None:
        get_method(self.method)
        for name in (
            *("members", "learning_starts", "refit_every", "imagine_every", "rollouts_per_step"),
            *("updates_per_step", "real_rows", "imagined_rows"),
        ):
            require_count(name, getattr(self, name))
        for width in self.hidden:
            require_count("hidden", width)
        if not 0.0 <= self.real_share <= 1.0:
            raise InvalidInputError(f"real_share must be from 0 to 1; got {self.real_share}")
