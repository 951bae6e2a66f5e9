"""What the rows of bench share: their sizes, what a pair of timings is, a network and its data.

The shapes are those of HalfCheetah-v5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from agents.planners import ICEM
from mbrl_bilevel.data.splits import FitData, cross_fit, group_by_episode, groups_needed
from mbrl_bilevel.policies.policies import GaussianPolicy
from mbrl_bilevel.policies.scales import Scale
from mbrl_bilevel.training.settings import Schedule

#: The shapes of HalfCheetah-v5; a target is (Δobservation, reward).
OBS, ACTION = 17, 6
INPUTS, TARGETS = OBS + ACTION, OBS + 1


@dataclass(frozen=True)
class Sizes:
    """How much work the rows do; the defaults are those of the agent and of ``fit``.

    ``steps`` gradient steps of ``batch_size`` rows make one fit, on ``rows`` of data.
    """

    members: int = 5
    hidden: tuple[int, ...] = (200, 200)
    planner: ICEM = ICEM(horizon=20, population=80, iterations=4, elite_fraction=0.15)
    rows: int = 5000
    batch_size: int = Schedule.batch_size
    steps: int = Schedule.steps


@dataclass(frozen=True)
class Pair:
    """Two ways to do the same work: one call of either does ``amount`` of it, counted in ``unit``.

    ``check`` raises AssertionError unless both compute the same; it is not timed. Where a call is
    ``slow`` (many seconds), it is warmed up once and repeated five times at most. ``facts`` are
    numbers to go with the times, asked for after them, before ``close``. With ``peer_seconds`` the
    peer is a limit: that time is taken for its call.
    """

    ours: Callable[[], object]
    peer: Callable[[], object]
    check: Callable[[], None]
    peer_name: str
    amount: float
    unit: str
    slow: bool = False
    facts: Callable[[], Mapping[str, float]] = dict
    close: Callable[[], object] = bool
    peer_seconds: float | None = None


def make_policy(sizes: Sizes, generator: torch.Generator, scale: Scale) -> GaussianPolicy:
    return GaussianPolicy(
        INPUTS,
        TARGETS,
        generator=generator,
        members=sizes.members,
        hidden=sizes.hidden,
        scale=scale,
    )


def make_data(sizes: Sizes, seed: int) -> FitData:
    """Normalised rows of HalfCheetah's shapes, from a smooth map with noise, in 20 episodes."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((sizes.rows, INPUTS))
    y = np.tanh(x @ random.standard_normal((INPUTS, TARGETS)) / math.sqrt(INPUTS))
    y += 0.1 * random.standard_normal(y.shape)
    length = math.ceil(sizes.rows / 20)
    row = np.arange(sizes.rows)
    groups = group_by_episode(row // length, row % length, groups_needed(sizes.members))
    folds = cross_fit(groups, sizes.members, random)
    return FitData(torch.from_numpy(x).float(), torch.from_numpy(y).float(), folds)
