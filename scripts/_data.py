"""Training and test data of one repeat: from an environment, a Minari data set, or a table.

Each repeat draws a new split; steps of one episode are never on both sides.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from agents.collect import RandomBehaviour, collect
from envs.offline import load_minari
from envs.tables import Table, load_table
from mbrl_bilevel.errors import InvalidInputError
from mbrl_bilevel.types import Transitions


def collect_split(
    env: gym.Env[Any, Any], seed: int, largest: int, n_test: int
) -> tuple[Transitions, Transitions]:
    """(training pool, test episodes), collected afresh with random actions."""
    random = np.random.default_rng([seed, 0])
    behaviour = RandomBehaviour(env.action_space, random)  # type: ignore[arg-type]
    everything = collect(env, behaviour, max(2 * largest, 10_000) + 2 * n_test, seed=seed)
    return _by_episode(everything, n_test, random)


def minari_split(dataset: str, seed: int, n_test: int) -> tuple[Transitions, Transitions]:
    """(training pool, test episodes) of a Minari data set."""
    return _by_episode(_minari(dataset), n_test, np.random.default_rng([seed, 0]))


def table_split(path: Path, target: tuple[str, ...], seed: int, n_test: int) -> tuple[Any, Any]:
    """((x, y) to train on, (x, y) to test on): at most a fifth of the rows is for the test."""
    table = _table(path, target)
    order = np.random.default_rng([seed, 0]).permutation(len(table))
    held = min(n_test, len(table) // 5)
    train, test = order[held:], order[:held]
    return (table.x[train], table.y[train]), (table.x[test], table.y[test])


@lru_cache(maxsize=1)
def _minari(dataset: str) -> Transitions:
    return load_minari(dataset)


@lru_cache(maxsize=1)
def _table(path: Path, target: tuple[str, ...]) -> Table:
    return load_table(path, target)


def _by_episode(
    everything: Transitions, n_test: int, random: np.random.Generator
) -> tuple[Transitions, Transitions]:
    episodes = random.permutation(np.unique(everything.episode))
    _, place = np.unique(everything.episode, return_inverse=True)
    lengths = np.bincount(place)[np.searchsorted(np.unique(everything.episode), episodes)]
    held = int(np.searchsorted(np.cumsum(lengths), n_test)) + 1
    if held >= len(episodes):
        raise InvalidInputError(
            f"--n-test: {n_test} test steps leave no episode to train on; ask for fewer"
        )
    in_test = np.isin(everything.episode, episodes[:held])
    return everything[~in_test], everything[in_test]
