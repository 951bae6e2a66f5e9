"""What a planning agent is made of: a model, a planner, imagined rows, and a pace.

Each field says what it is, which is also the help of the option of ``scripts/train.py`` made of it. Nothing here
imports PyTorch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agents.planners import ICEM, Planner
from mbrl_bilevel.base.errors import InvalidInputError, require_count
from mbrl_bilevel.imagination.settings import Branching, Imagination
from mbrl_bilevel.training.settings import Schedule, WarmStart


@dataclass(frozen=True)
class RolloutLength:
    """Steps of an imagined branch: ``first`` until real step ``begin``, growing linearly to ``last`` at
    ``end`` (Janner et al. 2019, appendix C: x → y over steps a → b).

    Raises InvalidInputError where a field is out of its range.
    """

    first: int = 1
    """Steps of an imagined branch at first,"""
    last: int = 1
    """and in the end."""
    begin: int = 0
    """The real step from which imagined branches grow linearly,"""
    end: int = 1
    """and the one at which they are as long as in the end."""

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
class ValueSettings:
    """A value function fitted to real experience, behind the horizon of a plan (``terminal_value.py``).

    Raises InvalidInputError where a field is out of its range.
    """

    discount: float = 0.99
    """Discount of the fitted value."""
    pessimism: float = 1.0
    """Standard deviations of the members' values taken off the fitted value."""
    rounds: int = 3
    """Rounds of regression of the fitted value; up to three times as many while what follows a truncated
    episode still moves."""
    steps: int = 300
    """Gradient steps of a round of the fitted value at most."""
    members: int = 5
    """Networks of the fitted value, an ensemble."""
    width: int = 64
    """Width of each of the two hidden layers of the fitted value."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.discount < 1.0:
            raise InvalidInputError(f"discount must be in [0, 1); got {self.discount}")
        if not 0.0 <= self.pessimism < math.inf:
            raise InvalidInputError(f"pessimism must be finite and >= 0; got {self.pessimism}")
        for name in ("rounds", "steps"):
            require_count(name, getattr(self, name))
        for name in ("members", "width"):
            require_count(name, getattr(self, name), 100_000)

    def rows_needed(self) -> int:
        """Fewer rows than this cannot be split among the members."""
        from mbrl_bilevel.data.splits import groups_needed  # it brings in PyTorch

        return 8 * groups_needed(self.members)


@dataclass(frozen=True)
class PlanningSettings:
    """The choices behind a planning agent; each has a default.

    Four groups of fields: the model, fitted to all experience; acting by plan; learning from imagined rows; and
    the learner. Raises InvalidInputError for a value out of its range, or values that do not go together.
    """

    method: str = "bilevel"
    """How the model is trained: bilevel, bilevel-constant, bilevel-k-step, bilevel-mixture, bilevel-return, bilevel-look-ahead,
    nll, mse, mse-network, beta-nll, beta-nll-1, faithful, nll-mixture, k-step, paper, paper-exponential, or one that is
    registered."""
    members: int = 5
    """Ensemble members of the model."""
    hidden: tuple[int, ...] = (200, 200)
    """Width of each hidden layer of the model."""
    schedule: Schedule = Schedule(steps=3000)
    """How long and how fast the model is trained."""
    elites: int | None = None
    """Plan with this many members, those of the lowest held-out criterion; none: all."""
    learning_starts: int = 1000
    """Random steps before the first model and the first update."""
    refit_every: int = 500
    """Real steps between two fits of the model, each on all experience."""
    fresh_every: int = 4
    """One fit in so many is from scratch, the others go on from the last one; 1: all are from scratch."""
    warm_start: WarmStart = WarmStart(part=0.25)
    """How a fit goes on from the last one."""
    direct: bool = False
    """Let the model predict the next observation, not its change."""

    planner: Planner | None = ICEM(horizon=12, population=60, iterations=2)
    """Which planner; random tries all its sequences at once; none, of planning: the policy acts alone, and
    learns as before."""
    imagination: Imagination = Imagination(sample=False, pessimism=0.5)
    """How a plan is imagined."""
    replan_every: int = 2
    """Steps that a plan is followed before the next is made."""
    proposals: int = 5
    """Action sequences drawn from the policy, one of them without noise, that compete with the planner's own."""
    value: ValueSettings | Literal["critic"] | None = None
    """What a plan is worth behind its horizon: the learner's critic says (critic), a value function fitted to
    experience (fitted), or nothing (none)."""
    exploration: float = 0.1
    """Noise added to planned actions while learning, in half-ranges of the action space; the probability that
    a discrete action is replaced by a random one."""
    plan_share: float | Literal["auto"] = "auto"
    """The part of the steps that are acted by plan while learning, drawn anew at every 50th step of an episode;
    in the others the policy explores. auto: a tenth, and another tenth by the policy's best guess, so that it is
    known which of them does better. 0: no plan is made unless ``predict`` is asked for one. Without a policy, plans act
    throughout."""

    imagine_every: int = 50
    """Real steps between two imaginations; one also follows each fit."""
    rollouts_per_step: int = 100
    """Imagined branches begun for each real step, in real states."""
    rollout: RolloutLength = RolloutLength()
    """How long a branch is."""
    rollout_cut: float | None = None
    """A branch ends where the members disagree more than at this quantile of all first steps; none: never."""
    branching: Branching = Branching()
    """How a branch grows."""
    imagined_rows: int = 100_000
    """Imagined rows kept, the newest."""
    real_share: float | Literal["auto"] = 1.0
    """The share of real rows in an update; auto: as the model deserves on new steps; 1: none is imagined."""
    least_real_share: float = 0.05
    """The share of real rows that auto never goes below."""

    updates_per_step: int = 10
    """Updates of the learner after a real step."""
    real_rows: int = 1_000_000
    """Real rows kept, the newest."""
    n_steps: int = 1
    """Real rewards that a target adds up before it asks the critics."""
    look_ahead: int = 0
    """Imagined steps through which the policy's update is differentiated before it asks the critics; 0: it asks
    them alone. Of fast-sac."""
    look_ahead_lambda: float = 1.0
    """λ of the mean over all horizons up to that many steps, by which the policy's update goes: 1 takes the
    longest alone, 0 the critics alone."""

    def __post_init__(self) -> None:
        self._check_kinds()
        require_in_range(vars(self))
        from mbrl_bilevel.training.methods import get_method  # it brings in PyTorch

        get_method(self.method)
        # Written down, and saved with the agent: it goes on as it began.
        object.__setattr__(self, "imagination", self.imagination.settled())
        if self.elites is not None and self.elites > self.members:
            raise InvalidInputError(
                f"elites must be at most the {self.members} members; got {self.elites}"
            )
        begun = self.rollouts_per_step * self.imagine_every
        if begun > 10**7:
            raise InvalidInputError(
                f"rollouts_per_step times imagine_every must be at most {10**7:,}; got {begun:,}"
            )
        if self.planner is not None:
            self._check_plan(self.planner)

    @property
    def imagines(self) -> bool:
        """Whether the learner also gets imagined rows."""
        return self.real_share != 1.0

    @property
    def uses_model(self) -> bool:
        """Whether a model is fitted at all."""
        return self.imagines or self.planner is not None or self.look_ahead > 0

    def _check_kinds(self) -> None:
        for name, kind in _KINDS.items():
            found: object = getattr(self, name)
            if not isinstance(found, kind):
                wanted = " or ".join(each.__name__ for each in kind).replace("NoneType", "None")
                raise InvalidInputError(f"{name} must be {wanted}; got {found!r}")

    def _check_plan(self, planner: Planner) -> None:
        if self.replan_every > planner.horizon:
            raise InvalidInputError(
                f"replan_every must be at most the planner's horizon ({planner.horizon}); "
                f"got {self.replan_every}"
            )
        imagined = planner.population * self.imagination.particles
        if imagined > 10**7:
            raise InvalidInputError(
                f"population times particles must be at most {10**7:,}; got {imagined:,}"
            )
        planning = "members" if self.elites is None else "elites"
        count = self.members if self.elites is None else self.elites
        if self.imagination.particles % count:
            raise InvalidInputError(
                f"{planning} must divide the {self.imagination.particles} particles of imagination; "
                f"got {count}"
            )


#: What a field has to be, where its value does not say so by itself.
_KINDS: dict[str, tuple[type, ...]] = {
    "method": (str,),
    "hidden": (tuple, list),
    "schedule": (Schedule,),
    "warm_start": (WarmStart,),
    "planner": (Planner, type(None)),
    "imagination": (Imagination,),
    "rollout": (RolloutLength,),
    "branching": (Branching,),
}


#: The counts among the fields, and the most of each: beyond it is a slip, or a hostile file.
_COUNTS: dict[str, int] = {
    **dict.fromkeys(("members", "elites"), 100_000),
    **dict.fromkeys(("learning_starts", "refit_every", "fresh_every", "replan_every"), 10**7),
    **dict.fromkeys(("imagine_every", "rollouts_per_step", "imagined_rows"), 10**7),
    **dict.fromkeys(("updates_per_step", "real_rows", "n_steps"), 10**7),
}


def require_in_range(values: Mapping[str, Any]) -> None:
    """Check values of fields of ``PlanningSettings`` by their names, each by itself.

    Raises InvalidInputError for the first that is out of the field's range, whatever the others are.
    """
    for name, most in _COUNTS.items():
        if values.get(name) is not None or (name in values and name != "elites"):
            require_count(name, values[name], most)
    for width in values.get("hidden", ()):
        require_count("hidden", width, 100_000)
    if type(values.get("direct", False)) is not bool:
        raise InvalidInputError(f"direct must be True or False; got {values['direct']!r}")
    for name, largest in (("proposals", 100_000), ("look_ahead", 1000)):
        count = values.get(name, 0)
        if type(count) is not int or not 0 <= count <= largest:
            raise InvalidInputError(f"{name} must be an int from 0 to {largest:,}; got {count!r}")
    value = values.get("value")
    if not (value in (None, "critic") or isinstance(value, ValueSettings)):
        raise InvalidInputError(f'value must be "critic", ValueSettings or None; got {value!r}')
    for name in ("real_share", "plan_share"):
        share = values.get(name, "auto")
        if share != "auto" and not _within(share, 1.0):
            raise InvalidInputError(f'{name} must be from 0 to 1, or "auto"; got {share!r}')
    limits = {"least_real_share": 1.0, "look_ahead_lambda": 1.0, "exploration": 1000.0}
    for name, limit in limits.items():
        if not _within(values.get(name, 0.0), limit):
            raise InvalidInputError(f"{name} must be from 0 to {limit:.0f}; got {values[name]!r}")
    cut = values.get("rollout_cut")
    if cut is not None and not (_within(cut, 1.0) and cut > 0.0):
        raise InvalidInputError(f"rollout_cut must be above 0 and at most 1, or None; got {cut!r}")


def _within(value: object, most: float) -> bool:
    """Whether ``value`` is a number from 0 to ``most``."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= most
