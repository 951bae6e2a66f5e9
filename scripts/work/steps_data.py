"""Training and test data of one repeat: from an environment, a Minari data set, or a table.

Each repeat draws a new split, and new noise where there is some; steps of one episode are never on
both sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from options.shared import EnvironmentArgs
from options.sources import Source
from torch import Tensor

from agents.common.experience import RandomBehaviour, collect
from envs.datasets.noise import Units, add_noise
from envs.datasets.offline import load_minari
from envs.datasets.steps import load_steps
from envs.datasets.tables import Missing, Table, Text, load_table
from envs.tasks.make import make_env
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.data.splits import stretch_means

#: Stretches that are slower than this share of them are for training, faster than that for the test.
_SLOW, _FAST = 0.5, 0.75


def open_env(
    args: EnvironmentArgs, env_id: str, distractor: str | None = None
) -> gym.Env[Any, Any]:
    """The environment of that name, with the run's own module and time limit, and a ``distractor``."""
    return make_env(env_id, distractor=distractor, **args.making)


def never(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """The rule of a termination that does not matter: nothing ends an episode."""
    return torch.zeros_like(next_obs[..., 0])


@dataclass(frozen=True)
class Split:
    """The ``pool`` to train on and the ``test`` steps, both with noise; the test steps as they were
    (``clean``), the noise's own nats per dimension, and another data set for the outer level."""

    pool: Transitions
    test: Transitions
    clean: Transitions
    noise_nll: float | None = None
    outer: Transitions | None = None


def steps_split(
    source: Source, args: EnvironmentArgs, seed: int, *, largest: int, n_test: int, segment: int
) -> Split:
    """The split of one repeat. Raises InvalidInputError if there is too little data."""
    random = np.random.default_rng([seed, 0])
    if source.minari is not None:
        everything = _minari(source.minari)
    elif source.npz is not None:
        everything = _steps(source.npz)
    else:
        assert source.env_id is not None
        env = open_env(args, source.env_id, source.distractor)
        behaviour = RandomBehaviour(env.action_space, random)  # type: ignore[arg-type]
        everything = collect(env, behaviour, max(2 * largest, 10_000) + 2 * n_test, seed=seed)
        env.close()
    if source.test_minari is not None:
        pool, test = everything, _by_episode(_minari(source.test_minari), n_test, random)[1]
        _require_same_spaces(source, pool, test)
    else:
        # Of a speed's test episodes a quarter is kept, so four times as many are set aside.
        pool, test = _by_episode(everything, n_test * (4 if source.speed else 1), random)
    if source.speed:
        pool, test = slow_and_fast(pool, test, segment)
    outer = None if source.outer_minari is None else _minari(source.outer_minari)
    units = Units.of(pool)
    draws = np.random.default_rng([seed, 2])
    noisy_pool = add_noise(pool, source.noise, units, draws)
    noisy_test = add_noise(test, source.noise, units, draws)
    return Split(noisy_pool.transitions, noisy_test.transitions, test, noisy_test.nll, outer)


def table_split(source: Source, seed: int, n_test: int) -> tuple[Any, Any]:
    """((x, y) to train on, (x, y) to test on): at most a fifth of the rows is for the test."""
    assert source.csv is not None
    table = _table(source.csv, source.target, source.text, source.missing)
    order = np.random.default_rng([seed, 0]).permutation(len(table))
    held = min(n_test, len(table) // 5)
    train, test = order[held:], order[:held]
    return (table.x[train], table.y[train]), (table.x[test], table.y[test])


@lru_cache(maxsize=4)
def _minari(dataset: str) -> Transitions:
    return load_minari(dataset)


@lru_cache(maxsize=4)
def _steps(path: Path) -> Transitions:
    return load_steps(path)


@lru_cache(maxsize=4)
def _table(path: Path, target: tuple[str, ...], text: Text, missing: Missing) -> Table:
    return load_table(path, target, text=text, missing=missing)


def _by_episode(
    everything: Transitions, n_test: int, random: np.random.Generator
) -> tuple[Transitions, Transitions]:
    episodes = random.permutation(np.unique(everything.episode))
    _, place = np.unique(everything.episode, return_inverse=True)
    lengths = np.bincount(place)[np.searchsorted(np.unique(everything.episode), episodes)]
    held = int(np.searchsorted(np.cumsum(lengths), n_test)) + 1
    if held >= len(episodes):
        raise InvalidInputError(
            f"--n-test: {n_test} test steps leave no episode of {len(episodes)} to train on; ask for fewer, or "
            "give more episodes (of logged steps: with their flags)"
        )
    in_test = np.isin(everything.episode, episodes[:held])
    return everything[~in_test], everything[in_test]


def slow_and_fast(
    pool: Transitions, test: Transitions, length: int
) -> tuple[Transitions, Transitions]:
    """The slower half of the pool's stretches of ``length`` steps, and the test's that are faster than
    three quarters of the pool's. Speed: the size of Δobs in units of each dimension's spread."""
    spread = (pool.next_obs - pool.obs).std(0)
    spread = np.where(spread > 0.0, spread, 1.0)

    def speeds(rows: Transitions) -> Any:
        size = np.linalg.norm((rows.next_obs - rows.obs) / spread, axis=1)
        means, stretch = stretch_means(rows, size, length)
        return means[stretch]

    seen = speeds(pool)
    slow, fast = seen <= np.quantile(seen, _SLOW), speeds(test) >= np.quantile(seen, _FAST)
    if not (slow.any() and fast.any()):
        raise InvalidInputError("--shift speed: no stretch is faster than the others; more data")
    return pool[slow], test[fast]


def _require_same_spaces(source: Source, pool: Transitions, test: Transitions) -> None:
    widths = [(rows.obs.shape[1], rows.action.shape[1]) for rows in (pool, test)]
    if widths[0] != widths[1]:
        raise InvalidInputError(
            f"--test-minari: {source.test_minari} has {widths[1]} observation and action dimensions, "
            f"{source.minari} has {widths[0]}; give data of the same environment"
        )
