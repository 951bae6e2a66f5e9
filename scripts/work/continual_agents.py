"""Agents that learn a sequence of tasks by acting: one cell of continual with --agents."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from options.continual import Args
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.common.experience import RandomBehaviour
from agents.planning_agent.agent import PlanningAgent
from agents.sequence_agents import SequenceAgent, get_sequence_agent
from envs.tasks.layers import Env
from envs.tasks.make import require_time_limit
from envs.tasks.sequences import Task, TaskSequence
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.studies.cells import Done

#: Looks at a task while it is learned: of so many equal stretches the last is its end.
_LOOKS = 5

#: Which episodes an agent is tested by, and which its best policy is chosen by.
_TESTS, _CHOICES = 1_000_000, 2_000_000

Score = dict[str, float]


@dataclass
class Told:
    """What a cell has found so far: ``scores`` [i][j] of task j after task i, ``curves`` [i][l] of task i while it was
    learned, and the seconds that each took."""

    scores: list[list[Score]] = field(default_factory=list)
    curves: list[list[Score]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def learn_agent_cell(args: Args, key: Row) -> Done:
    """One agent on one sequence: returns (and successes, where the environments tell) on every task before and after
    each, and while it is learned."""
    sequence = args.sequence(key["sequence"])
    assert isinstance(sequence, TaskSequence)
    sequence.check()
    tasks = sequence.told_apart().tasks
    recipe = get_sequence_agent(key["method"], args.memory)
    bed = Bed(args, tasks, key["seed"])
    random = [bed.score(RandomPolicy(task.make(), key["seed"]), j) for j, task in enumerate(tasks)]
    told = Told()
    with warnings.catch_warnings():
        # What is told of one agent is not told of each cell of a study; a task begins without a model.
        warnings.filterwarnings("ignore", "after .* steps the model is off")
        warnings.filterwarnings("ignore", "learn\\(\\) ended after .* before learning_starts")
        _LEARN[recipe.tasks](bed, recipe, told)
    found: Row = {"tasks": [task.name for task in tasks], "train_seconds": told.seconds}
    for name in random[0]:
        found[name] = [[score[name] for score in line] for line in told.scores]
        found[f"{name}_before"] = [score[name] for score in random]
        found[f"{name}_curves"] = [[score[name] for score in line] for line in told.curves]
    return Done(found)


@dataclass(frozen=True)
class Bed:
    """The tasks of a repeat, and how an agent is tested on them."""

    args: Args
    tasks: tuple[Task, ...]
    seed: int

    def env(self, j: int) -> Env:
        """Task j, whose episodes are cut."""
        env = self.tasks[j].make()
        require_time_limit(env, self.tasks[j].robot, "register it with max_episode_steps")
        return env

    def make(self, recipe: SequenceAgent, *tasks: int) -> PlanningAgent:
        """A new agent for these tasks."""
        names = ("updates_per_step", "learning_starts")
        changes = {name: getattr(self.args, name) for name in names}
        given = {name: value for name, value in changes.items() if value is not None}
        agent = recipe.make([self.env(j) for j in tasks], self.seed, **given)
        if agent.settings.learning_starts >= self.args.agent_steps:
            raise InvalidInputError(
                f"--agent-steps: it must be above the {agent.settings.learning_starts} random steps that a task "
                f"begins with; got {self.args.agent_steps}: give more, or fewer --learning-starts"
            )
        return agent

    def score(self, policy: Any, j: int, starts: int = _TESTS) -> Score:
        """The mean return of episodes of task j, and the share of them that succeeded where its steps say
        ``info["success"]``; ``starts`` and the repeat's seed say which episodes."""
        count = self.args.eval_episodes
        envs = DummyVecEnv([lambda: Monitor(self.env(j)) for _ in range(count)])
        envs.seed(self.seed + starts)
        successes: dict[int, bool] = {}

        def note(inside: dict[str, Any], _: Any) -> None:
            if "success" in inside["info"]:
                i = inside["i"]
                successes[i] = successes.get(i, False) or bool(inside["info"]["success"])

        returns: Any
        returns, _ = evaluate_policy(
            policy, envs, count, callback=note, return_episode_rewards=True
        )
        envs.close()
        found = {"return": float(np.mean(returns))}
        return found | ({"success": float(np.mean(list(successes.values())))} if successes else {})

    def scores(self, agent: PlanningAgent) -> list[Score]:
        """Of every task. An agent that plans goes by the rewards of the task that it is in."""
        found = []
        for j in range(len(self.tasks)):
            if agent.n_envs == 1:
                agent.set_env(self.env(j))
            found.append(self.score(agent, j))
        return found

    def learn(self, agent: PlanningAgent, j: int) -> list[Score]:
        """Task j, the one that ``agent`` is in; its scores on the way. It ends with its best policy of these looks, where
        that is asked for."""
        curve, best = [], -np.inf
        kept: Any = None
        for steps in np.diff(
            np.linspace(0, self.args.agent_steps, _LOOKS + 1).astype(int)
        ).tolist():
            agent.learn(steps, log_interval=None, until=self.args.agent_steps)
            curve.append(self.score(agent, j))
            if self.args.keep_best:
                found = self.score(agent, j, _CHOICES)["return"]
                if found >= best:
                    best, kept = found, deepcopy(agent.algorithm.get_parameters())
        if kept is not None:
            agent.algorithm.set_parameters(kept, device=agent.algorithm.device)
        return curve


def _in_turn(bed: Bed, recipe: SequenceAgent, told: Told) -> None:
    agent = bed.make(recipe, 0)
    for j in range(len(bed.tasks)):
        began = time.perf_counter()
        if j:
            agent.next_task(bed.env(j), recipe.keeping)
        told.curves.append(bed.learn(agent, j))
        told.seconds.append(time.perf_counter() - began)
        told.scores.append(bed.scores(agent))


def _alone(bed: Bed, recipe: SequenceAgent, told: Told) -> None:
    for j in range(len(bed.tasks)):
        began, agent = time.perf_counter(), bed.make(recipe, j)
        told.curves.append(bed.learn(agent, j))
        told.seconds.append(time.perf_counter() - began)
        told.scores.append(bed.scores(agent))


def _joint(bed: Bed, recipe: SequenceAgent, told: Told) -> None:
    """As many steps of each task as in turn; what stands after task i is after as many steps of all together."""
    count = len(bed.tasks)
    agent = bed.make(recipe, *range(count))
    for _ in range(count):
        began = time.perf_counter()
        agent.learn(bed.args.agent_steps, log_interval=None)
        told.seconds.append(time.perf_counter() - began)
        told.scores.append(bed.scores(agent))


_LEARN: dict[str, Callable[[Bed, SequenceAgent, Told], None]] = {
    "turn": _in_turn,
    "alone": _alone,
    "joint": _joint,
}


class RandomPolicy:
    """Uniform actions, for SB3's ``evaluate_policy``."""

    def __init__(self, env: gym.Env[Any, Any], seed: int) -> None:
        self._behave = RandomBehaviour(env.action_space, np.random.default_rng(seed))  # type: ignore[arg-type]

    def predict(self, observations: Any, *args: Any, **kwargs: Any) -> tuple[Any, None]:
        """An action for each of the observations."""
        return np.stack([self._behave(obs, 1) for obs in observations]), None
