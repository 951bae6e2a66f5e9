"""Agents alike that learn at once: each acts for itself, their fits and updates are made as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from stable_baselines3.common.type_aliases import MaybeCallback

from agents.learners.fast_sac import FastSAC
from agents.learners.held import divergence_told
from agents.learners.side_by_side import SideBySide, require_alike, side_by_side
from agents.planning_agent.agent import PlanningAgent
from agents.planning_agent.look_ahead import StepsSideBySide
from agents.planning_agent.refits import fit_side_by_side
from mbrl_bilevel.base.errors import BilevelError, InvalidInputError
from mbrl_bilevel.base.threads import few_threads


def learn_side_by_side(
    agents: Sequence[PlanningAgent],
    total_timesteps: int | float,
    callbacks: Sequence[MaybeCallback] | None = None,
    log_interval: int | None = 4,
    *,
    until: int | float | None = None,
) -> list[BilevelError | None]:
    """Let each of ``agents`` learn as its ``learn`` does, with the k-th of ``callbacks``; the others' arguments as there.

    They are repeats of one agent: of one class, with the same settings and spaces, and as many steps behind them. Fits
    are made as one larger ensemble (``fit_dynamics_side_by_side``), and so are updates of the learners, which must be
    FastSACs. Each agent has its own environment, data, parameters and draws, and becomes what it becomes by itself, to
    the rounding of the batched products: which the next thousand steps may well blow up, as they do with any.

    What became of each: None, or the error that it ended by; the others go on. Raises InvalidInputError for agents that
    do not go together.
    """
    _require_repeats(agents)
    given = [None] * len(agents) if callbacks is None else callbacks
    if len(given) != len(agents):
        raise InvalidInputError(
            f"callbacks: give one for each of the {len(agents)} agents; got {len(given)}"
        )
    going = [
        _Going(agent, agent.turns(total_timesteps, callback, log_interval, until=until))
        for agent, callback in zip(agents, given, strict=True)
    ]
    every = list(going)
    with few_threads(max(agent.widest for agent in agents)), _Updates() as updates:
        while going:
            for one in going:
                one.act()
            going = [one for one in going if not one.over]
            _keep_up(going)
            going = [one for one in going if not one.over]
            updates.make(going)
    return [one.error for one in every]


class _Going:
    """One of the agents, and how far it is."""

    def __init__(self, agent: PlanningAgent, turns: Iterator[int]) -> None:
        self.agent, self._turns = agent, turns
        self.wanted, self.over = 0, False
        self.error: BilevelError | None = None

    def act(self) -> None:
        """Until updates are due: ``wanted`` of them."""
        with self._failing():
            try:
                self.wanted = next(self._turns)
            except StopIteration:
                self.over = True
                with divergence_told(self.agent.algorithm):
                    pass
            except ValueError as error:
                with divergence_told(self.agent.algorithm):
                    raise error

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except BilevelError as error:
            self.fail(error)

    def fail(self, error: BilevelError) -> None:
        """It ends here."""
        self.over, self.error = True, error


def _keep_up(going: Sequence[_Going]) -> None:
    """Fits and imagined rows, where they are due."""
    due = [one for one in going if one.agent.upkeep.refit_due()]
    found = fit_side_by_side([one.agent.next_refit() for one in due]) if due else []
    for one, fitted in zip(due, found, strict=True):
        if isinstance(fitted, BilevelError):
            one.fail(fitted)
        else:
            one.agent.take_refit(fitted)
    for one in going:
        if not one.over:
            with one._failing():
                one.agent.upkeep.imagine_due(one in due)


class _Updates:
    """The learners that are joined now; a context, behind which each is by itself again."""

    def __init__(self) -> None:
        self._open = ExitStack()
        self._joined: tuple[list[PlanningAgent], SideBySide] | None = None

    def __enter__(self) -> _Updates:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def make(self, going: Sequence[_Going]) -> None:
        """As many for each as it wants; those that want the same in one."""
        kinds: dict[tuple[int, int, bool], list[PlanningAgent]] = {}
        for one in going:
            learner = one.agent.algorithm
            kind = (one.wanted, learner._n_updates, one.agent.model is None)
            kinds.setdefault(kind, []).append(one.agent)
        for (count, *_), agents in kinds.items():
            if count:
                self._train(agents, count)

    def _train(self, agents: list[PlanningAgent], count: int) -> None:
        if self._joined is None or self._joined[0] != agents:
            self._open.close()
            learners = [_learner(agent) for agent in agents]
            made = self._open.enter_context(side_by_side(learners, StepsSideBySide))
            self._joined = agents, made
        with ExitStack() as lent:
            draws = [lent.enter_context(agent.draws()) for agent in agents]
            self._joined[1].train(count, agents[0].algorithm.batch_size, draws)


def _learner(agent: PlanningAgent) -> FastSAC:
    assert isinstance(agent.algorithm, FastSAC)
    return agent.algorithm


def _require_repeats(agents: Sequence[PlanningAgent]) -> None:
    """Raises InvalidInputError for agents that cannot keep in step."""
    if not agents:
        raise InvalidInputError("agents: give at least one")
    for agent in agents:
        for name in ("settings", "observation_space", "action_space", "n_envs", "num_timesteps"):
            mine, first = getattr(agent, name), getattr(agents[0], name)
            if type(agent) is not type(agents[0]) or mine != first:
                raise InvalidInputError(
                    f"agents side by side must be repeats of one agent; their {name} are {first} and {mine}: let "
                    "them learn one after another"
                )
        if agent.earlier is not None:
            raise InvalidInputError(
                "agents side by side: one has earlier tasks behind it; let them learn one after another"
            )
    require_alike([agent.algorithm for agent in agents])
