"""Agents alike that learn at once: each acts for itself, their fits and updates are made as one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import TypeVar

from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

from agents.learners.fast_sac import FastSAC
from agents.learners.held import divergence_told
from agents.learners.side_by_side import SideBySide, require_alike, side_by_side
from agents.planning_agent.agent import PlanningAgent
from agents.planning_agent.look_ahead import StepsSideBySide
from agents.planning_agent.refits import fit_side_by_side
from mbrl_bilevel.base.errors import BilevelError, InvalidInputError
from mbrl_bilevel.base.threads import few_threads

T = TypeVar("T")


def learn_side_by_side(
    agents: Sequence[PlanningAgent],
    total_timesteps: int | float,
    callbacks: Sequence[MaybeCallback] | None = None,
    log_interval: int | None = 4,
    *,
    until: int | float | None = None,
) -> list[BilevelError | None]:
    """Let each of ``agents`` learn as its ``learn`` does, with the k-th of ``callbacks``; the others' arguments as there.

    They are repeats of one agent: of one class, with the same settings and spaces, and as many steps behind them, each
    with an environment of its own. Fits are made as one larger ensemble (``fit_dynamics_side_by_side``), or one by one
    where models are not of one form, and so are updates of the learners, which must be FastSACs. Each agent has its
    own data, parameters and draws, and becomes what it becomes by itself, to the rounding of the batched products:
    which the next thousand steps may well blow up, as they do with any. A callback hears of the end of a collection
    before the fit that follows it, and the times of acting, fitting and updating are not logged.

    What became of each: None, or the error that it ended by; the others go on. Raises InvalidInputError for agents that
    do not go together.
    """
    _require_repeats(agents)
    given = [None] * len(agents) if callbacks is None else callbacks
    if len(given) != len(agents):
        raise InvalidInputError(
            f"callbacks: give one for each of the {len(agents)} agents; got {len(given)}"
        )
    with ExitStack() as ended, few_threads(max(agent.widest for agent in agents)):
        every = []
        for agent, callback in zip(agents, given, strict=True):
            turns = agent.turns(total_timesteps, callback, log_interval, until=until)
            every.append(_Going(agent, ended.enter_context(closing(turns))))
        updates = ended.enter_context(_Updates())
        while going := [one for one in every if not one.over]:
            for one in going:
                one.act()
            _keep_up([one for one in going if not one.over])
            updates.make([one for one in going if not one.over])
    return [one.error for one in every]


class _Going:
    """One of the agents, and how far it is."""

    def __init__(self, agent: PlanningAgent, turns: Generator[int]) -> None:
        self.agent, self._turns = agent, turns
        self.wanted, self.over = 0, False
        self.error: BilevelError | None = None

    def act(self) -> None:
        """Until updates are due: ``wanted`` of them; ``over`` where it has made all steps."""
        wanted = self.attempt(lambda: next(self._turns, None))
        if wanted is not None:
            self.wanted = wanted
        elif not self.over:
            self.over = True
            self.attempt(lambda: None)

    def attempt(self, work: Callable[[], T]) -> T | None:
        """What it gives; None where the agent fails, and ends by that."""
        try:
            with divergence_told(self.agent.algorithm, at_end=self.over):
                return work()
        except BilevelError as error:
            self.fail(error)
            return None

    def fail(self, error: BilevelError) -> None:
        """It ends here."""
        self.over, self.error = True, error
        self._turns.close()


def _keep_up(going: Sequence[_Going]) -> None:
    """Fits and imagined rows, where they are due."""
    wanted = {one: refit for one in going if (refit := one.attempt(one.agent.refit_due))}
    for one, found in zip(wanted, fit_side_by_side(list(wanted.values())), strict=True):
        if isinstance(found, BilevelError):
            one.fail(found)
        else:
            one.attempt(partial(one.agent.take_refit, found))
    for one in going:
        if not one.over:
            one.attempt(partial(one.agent.upkeep.imagine_due, one in wanted))


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
        """As many for each as it wants: they are repeats, and want the same."""
        agents = [one.agent for one in going]
        (count,) = {one.wanted for one in going} or {0}
        if not count:
            return
        if self._joined is None or self._joined[0] != agents:  # one has ended
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
    """Raises InvalidInputError for agents that cannot keep in step, or that share what each needs for itself."""
    if not agents:
        raise InvalidInputError("agents: give at least one")
    kinds = sorted({type(agent).__name__ for agent in agents})
    if len(kinds) > 1:
        raise _apart(f"they are {' and '.join(kinds)}")
    for name in ("settings", "observation_space", "action_space", "n_envs", "num_timesteps"):
        if any(getattr(agent, name) != getattr(agents[0], name) for agent in agents):
            raise _apart(f"their {name} differ")
    if any(agent.earlier is not None for agent in agents):
        raise _apart("one has earlier tasks behind it")
    own = [environment for agent in agents for environment in _environments(agent.env)]
    if len(set(map(id, own))) < len(own):
        raise InvalidInputError(
            "agents side by side: two of them are one, or act in one environment; give each its own"
        )
    require_alike([agent.algorithm for agent in agents])


def _apart(why: str) -> InvalidInputError:
    return InvalidInputError(
        f"agents side by side must be repeats of one agent: {why}; let them learn one after another"
    )


def _environments(env: VecEnv) -> list[object]:
    """What is stepped below the wrappers."""
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return [each.unwrapped for each in env.envs] if isinstance(env, DummyVecEnv) else [env]
