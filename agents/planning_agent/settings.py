"""What a planning agent is made of: a model, a planner, imagined rows, and a pace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from agents.planners import ICEM, Planner
from agents.planning_agent.terminal_value import ValueSettings
from mbrl_bilevel.base.errors import InvalidInputError, require_count
from mbrl_bilevel.imagination.branches import Branching
from mbrl_bilevel.imagination.particles import Imagination
from mbrl_bilevel.training.fit import Schedule
from mbrl_bilevel.training.methods import get_method
from mbrl_bilevel.training.warm_start import WarmStart


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
class PlanningSettings:
    """The choices behind a planning agent; each has a default.

    The model: ``method`` (how it is trained, ``mbrl_bilevel.training.methods``), an ensemble of ``members``
    networks of ``hidden`` layers, fitted by ``schedule`` after ``learning_starts`` random steps and then
    every ``refit_every`` steps, to all experience. Every ``fresh_every``-th fit is from scratch, the others go
    on from the last one as ``warm_start`` says. ``direct``: the next observation is predicted, not its change.
    ``elites``: use this many of the members alone, those of the lowest held-out criterion; None uses all.

    Acting by plan: ``planner`` (None: the policy acts), in candidates imagined as ``imagination`` says;
    ``replan_every`` steps lie between two plans. ``proposals`` action sequences drawn from the policy
    compete with the planner's own, one of them without noise. ``value``: what a plan is worth behind its
    horizon: the learner's "critic", a value function fitted to experience (``ValueSettings``), or None.
    While learning, Gaussian noise of ``exploration`` half-ranges is added to planned actions, a discrete
    action is replaced by a uniform one with that probability; ``plan_share`` is the part of the
    time that is acted by plan, drawn anew at every 50th step of an episode; in the rest the policy
    explores as its algorithm does. "auto": the one that has done better in its turns acts more, and acts
    where ``predict`` is not told by which (``agents.planning_agent.turns``). Without a policy, plans act throughout.

    Learning from imagined rows: every ``imagine_every`` steps, and after each fit, ``rollouts_per_step``
    branches for each of these steps are begun in real states, each ``rollout`` long, and join a ring of
    ``imagined_rows``; with ``rollout_cut`` q, a branch ends where the members disagree more than at the
    quantile q of all first steps. Of each batch ``real_share`` is real; "auto" lets the share follow how good the
    model is on new steps (``imagined_share``), never below ``least_real_share``. With 1 nothing is imagined.

    The learner makes ``updates_per_step`` updates after each real step, on a replay of ``real_rows``, with
    returns of ``n_steps``.
    """

    method: str = "bilevel"
    members: int = 5
    hidden: tuple[int, ...] = (200, 200)
    schedule: Schedule = Schedule(steps=3000)
    elites: int | None = None
    learning_starts: int = 1000
    refit_every: int = 500
    fresh_every: int = 4
    warm_start: WarmStart = WarmStart(part=0.25)
    direct: bool = False

    planner: Planner | None = ICEM(horizon=12, population=60, iterations=2)
    imagination: Imagination = Imagination(sample=False, pessimism=0.5)
    replan_every: int = 2
    proposals: int = 5
    value: ValueSettings | Literal["critic"] | None = None
    exploration: float = 0.1
    plan_share: float | Literal["auto"] = "auto"

    imagine_every: int = 50
    rollouts_per_step: int = 100
    rollout: RolloutLength = RolloutLength()
    rollout_cut: float | None = None
    branching: Branching = Branching()
    imagined_rows: int = 100_000
    real_share: float | Literal["auto"] = 1.0
    least_real_share: float = 0.05

    updates_per_step: int = 10
    real_rows: int = 1_000_000
    n_steps: int = 1

    def __post_init__(self) -> None:
        self._check_kinds()
        get_method(self.method)
        # Written down, and saved with the agent: it goes on as it began.
        object.__setattr__(self, "imagination", self.imagination.settled())
        for name in (
            *("members", "learning_starts", "refit_every", "fresh_every", "replan_every"),
            "imagine_every",
            *("rollouts_per_step", "updates_per_step", "real_rows", "imagined_rows", "n_steps"),
        ):
            require_count(name, getattr(self, name))
        for width in self.hidden:
            require_count("hidden", width)
        if type(self.direct) is not bool:
            raise InvalidInputError(f"direct must be True or False; got {self.direct!r}")
        if self.elites is not None:
            require_count("elites", self.elites)
            if self.elites > self.members:
                raise InvalidInputError(
                    f"elites must be at most the {self.members} members; got {self.elites}"
                )
        if type(self.proposals) is not int or not 0 <= self.proposals <= 100_000:
            raise InvalidInputError(
                f"proposals must be an int from 0 to 100,000; got {self.proposals!r}"
            )
        if not (self.value in (None, "critic") or isinstance(self.value, ValueSettings)):
            raise InvalidInputError(
                f'value must be "critic", ValueSettings or None; got {self.value!r}'
            )
        self._check_shares()
        if self.planner is not None:
            self._check_plan(self.planner)

    @property
    def imagines(self) -> bool:
        """Whether the learner also gets imagined rows."""
        return self.real_share != 1.0

    @property
    def uses_model(self) -> bool:
        """Whether a model is fitted at all."""
        return self.imagines or self.planner is not None

    def _check_kinds(self) -> None:
        for name, kind in _KINDS.items():
            found: object = getattr(self, name)
            if not isinstance(found, kind):
                wanted = " or ".join(each.__name__ for each in kind).replace("NoneType", "None")
                raise InvalidInputError(f"{name} must be {wanted}; got {found!r}")

    def _check_shares(self) -> None:
        for name in ("real_share", "plan_share"):
            value = getattr(self, name)
            if value != "auto" and not _within(value, 1.0):
                raise InvalidInputError(f'{name} must be from 0 to 1, or "auto"; got {value!r}')
        if not _within(self.least_real_share, 1.0):
            raise InvalidInputError(
                f"least_real_share must be from 0 to 1; got {self.least_real_share!r}"
            )
        cut = self.rollout_cut
        if cut is not None and not (_within(cut, 1.0) and cut > 0.0):
            raise InvalidInputError(
                f"rollout_cut must be above 0 and at most 1, or None; got {cut!r}"
            )
        if not _within(self.exploration, 1000.0):
            raise InvalidInputError(f"exploration must be from 0 to 1000; got {self.exploration!r}")

    def _check_plan(self, planner: Planner) -> None:
        if self.replan_every > planner.horizon:
            raise InvalidInputError(
                f"replan_every must be at most the planner's horizon ({planner.horizon}); "
                f"got {self.replan_every}"
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


def _within(value: object, most: float) -> bool:
    """Whether ``value`` is a number from 0 to ``most``."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= most
