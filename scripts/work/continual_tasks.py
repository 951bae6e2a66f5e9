"""The tasks of continual, whatever they are of: what to learn from, and how a learner is tested on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import gymnasium as gym
import numpy as np
import torch
from options.continual import CLASS_METRICS, Args
from torch import Tensor

from agents.common.experience import collect
from agents.common.spaces import vector_env
from envs.known.endings import termination_rule
from envs.tasks.class_sequences import ClassSequence, ClassTask
from envs.tasks.sequences import Task
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.continual.learner import Learner
from mbrl_bilevel.data.splits import IntArray, group_by_episode, groups_needed, regression_rows
from mbrl_bilevel.evaluation.class_scores import class_scores
from mbrl_bilevel.evaluation.dynamics import evaluate_one_step, evaluate_open_loop
from mbrl_bilevel.models.classification import Classification
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.models.regression import Regression
from work.planned_returns import planned_returns
from work.steps_data import never


@dataclass(frozen=True)
class TaskData:
    """A task: raw ``x`` [N, X] and ``y`` [N, D] to learn from, whose ``groups`` [N] are never parted, and
    what ``evaluate`` finds for a learner on test data of the task."""

    name: str
    x: Tensor
    y: Tensor
    groups: IntArray | None
    evaluate: Callable[[Learner], Mapping[str, float]]


@dataclass(frozen=True)
class Tasks:
    """The tasks of a repeat; ``classes`` is their number in all of them together, 0 for real targets."""

    tasks: tuple[TaskData, ...]
    classes: int = 0


@lru_cache(maxsize=2)
def make_tasks(args: Args, sequence: str, seed: int) -> Tasks:
    """Those of one repeat: always the same for a seed."""
    found = args.sequence(sequence)
    if isinstance(found, ClassSequence):
        parts = found.tasks(np.random.default_rng(seed))
        return Tasks(tuple(_of_classes(args, part, seed) for part in parts), found.classes)
    found.check()
    return Tasks(
        tuple(_of_dynamics(args, task, seed, seed + 1000 * i) for i, task in enumerate(found.tasks))
    )


def _of_classes(args: Args, task: ClassTask, seed: int) -> TaskData:
    train, test = task.split(args.n_train, args.n_test, seed)
    x, y = torch.from_numpy(train.x).float(), torch.from_numpy(train.y).float().unsqueeze(1)
    return TaskData(task.name, x, y, None, partial(_classified, test))


def _classified(test: ClassTask, learner: Learner) -> dict[str, float]:
    assert isinstance(learner.model, Classification)
    probs = learner.model.probs(torch.from_numpy(test.x).float())
    scores = class_scores(probs.numpy(), test.y)
    return {name: getattr(scores, name) for name in CLASS_METRICS}


def _of_dynamics(args: Args, task: Task, seed: int, data_seed: int) -> TaskData:
    train, test = task.data(collect, rows=args.n_train, test_rows=args.n_test, seed=data_seed)
    groups = group_by_episode(train.episode, train.t, groups_needed(args.members))
    return TaskData(
        task.name, *regression_rows(train), groups, partial(_predicted, args, task, test, seed)
    )


def _predicted(
    args: Args, task: Task, test: Transitions, seed: int, learner: Learner
) -> dict[str, float]:
    model = _dynamics(learner, test.obs.shape[1])
    one = evaluate_one_step(model, test)
    generator = torch.Generator().manual_seed(seed)
    ahead = evaluate_open_loop(model, test, generator=generator, steps=(args.horizon,))
    found = {"rmse": one.nrmse, "nll": one.nll, "k_rmse": ahead.nrmse[0]}
    if args.plan_episodes:
        env = task.make()
        rule = termination_rule(env)
        envs = vector_env(gym.wrappers.TimeLimit(env, args.plan_steps))
        known = replace(model, termination=rule)
        found["return"] = float(
            np.mean(planned_returns(known, rule, envs, args.plan_episodes, seed))
        )
        envs.close()
    return found


def _dynamics(learner: Learner, obs_dim: int) -> DynamicsModel:
    """What ends an episode is no method's, and no task's data: nothing does."""
    model = learner.model
    assert isinstance(model, Regression)
    return DynamicsModel(model, obs_dim, never)
