"""What an MPC agent is made of."""

from __future__ import annotations

from dataclasses import dataclass

from agents.planners import ICEM, Planner
from agents.planning_agent.terminal_value import ValueSettings
from mbrl_bilevel.errors import InvalidInputError, require_count
from mbrl_bilevel.fit import Schedule
from mbrl_bilevel.methods import get_method
from mbrl_bilevel.model_env import Imagination


@dataclass(frozen=True)
class MPCSettings:
    """The choices behind an MPC agent; each has a default.

    ``method``: how its model is trained (``mbrl_bilevel.methods``). ``learning_starts`` random
    steps come first; then the model is fitted from scratch every ``refit_every`` steps, to all
    experience. While learning, Gaussian noise of ``exploration`` half-ranges is added to actions;
    a discrete action is replaced by a uniform one with that probability. ``replan_every``: steps that
    a plan is followed before the next is made; 1 plans at every step. ``elites``: plan with this many
    of the ``members``, those of the lowest held-out criterion; None with all. Either number divides
    the particles of ``imagination``.
    ``value``: how the value beyond the horizon is fitted, for tasks whose episodes can terminate;
    None plans without.
    """

    method: str = "bilevel"
    planner: Planner = ICEM(horizon=15, population=64, iterations=3, elite_fraction=0.15)
    imagination: Imagination = Imagination()
    members: int = 5
    hidden: tuple[int, ...] = (200, 200)
    schedule: Schedule = Schedule(steps=1500)
    learning_starts: int = 250
    refit_every: int = 250
    exploration: float = 0.2
    replan_every: int = 1
    elites: int | None = None
    value: ValueSettings | None = ValueSettings()

    def __post_init__(self) -> None:
        get_method(self.method)
        # Written down, and saved with the agent: it goes on as it began.
        object.__setattr__(self, "imagination", self.imagination.settled())
        planning = "members" if self.elites is None else "elites"
        for name in ("members", planning, "learning_starts", "refit_every", "replan_every"):
            require_count(name, getattr(self, name))
        for width in self.hidden:
            require_count("hidden", width)
        if self.replan_every > self.planner.horizon:
            raise InvalidInputError(
                "replan_every must be at most the planner's horizon "
                f"({self.planner.horizon}); got {self.replan_every}"
            )
        if not 0.0 <= self.exploration <= 1000.0:
            raise InvalidInputError(f"exploration must be from 0 to 1000; got {self.exploration}")
        count = getattr(self, planning)
        if count > self.members:
            raise InvalidInputError(
                f"elites must be at most the {self.members} members; got {count}"
            )
        if self.imagination.particles % count:
            raise InvalidInputError(
                f"{planning} must divide the {self.imagination.particles} particles of imagination; "
                f"got {count}"
            )
