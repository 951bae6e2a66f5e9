"""Whose turn it is: what a turn was worth, against sums written out."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch

from agents.planning_agent.policy import HeldPolicy
from agents.planning_agent.replay import GUESS, PLAN, POLICY
from agents.planning_agent.turns import TURN, Record, draw_turn, record_of
from mbrl_bilevel.base.records import Transitions

GAMMA = 0.9


class Critic:
    """V(s) = 3 s."""

    discount = GAMMA

    def value(self, obs: torch.Tensor) -> torch.Tensor:
        return 3.0 * obs[..., 0]


HELD = cast(HeldPolicy, Critic())


def steps(
    lengths: list[int], ends: list[bool], first: int = 0, seed: int = 0
) -> tuple[Transitions, np.ndarray[Any, np.dtype[np.float64]]]:
    """Episodes of these ``lengths``, whose last step terminates where ``ends``; the first begins at time
    ``first``. The policy, the plan and the policy's best guess take turns."""
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    t = np.concatenate(
        [np.arange(length) + (first if i == 0 else 0) for i, length in enumerate(lengths)]
    )
    last = np.cumsum(lengths) - 1
    terminated = np.zeros(n, dtype=np.bool_)
    terminated[last] = ends
    obs, next_obs = (rng.normal(size=(n, 1)).astype(np.float32) for _ in range(2))
    rows = Transitions(
        obs=obs,
        action=np.zeros((n, 1), np.float32),
        reward=rng.normal(size=n).astype(np.float32),
        next_obs=next_obs,
        terminated=terminated,
        truncated=np.zeros(n, dtype=np.bool_),
        episode=np.repeat(np.arange(len(lengths)), lengths) + 7,
        t=t,
    )
    return rows, np.array([POLICY, PLAN, GUESS])[(t // TURN) % 3]


def advantage(rows: Transitions, start: int, stop: int) -> float:
    """Written out."""
    total = -3.0 * float(rows.obs[start, 0])
    for k in range(stop - start):
        total += GAMMA**k * float(rows.reward[start + k])
    if not rows.terminated[stop - 1]:
        total += GAMMA ** (stop - start) * 3.0 * float(rows.next_obs[stop - 1, 0])
    return total


def test_a_turn_is_worth_its_n_step_advantage() -> None:
    rows, who = steps([120, 30, 60], [False, True, True])
    found = record_of(rows, who, HELD)
    turns = {
        "policy": [(0, 50), (120, 150), (150, 200)],
        "plan": [(50, 100), (200, 210)],
        "guess": [(100, 120)],
    }
    for name, theirs in turns.items():
        wanted = [advantage(rows, *turn) for turn in theirs]
        assert getattr(found, name) == pytest.approx(wanted, rel=1e-5)


def test_a_turn_whose_beginning_is_forgotten_is_left_out() -> None:
    rows, who = steps([70], [False], first=20)
    found = record_of(rows, who, HELD)
    assert found.plan == pytest.approx([advantage(rows, 30, 80 - 10)], rel=1e-5)
    assert len(found.policy) == 0


def test_plan_and_best_guess_have_a_tenth_of_the_turns_each() -> None:
    random = np.random.default_rng(1)
    drawn = np.array([draw_turn(random) for _ in range(8000)])
    for who, share in ((PLAN, 0.1), (GUESS, 0.1), (POLICY, 0.8)):
        assert np.mean(drawn == who) == pytest.approx(share, abs=0.015)


def test_the_plan_is_better_unless_the_best_guess_has_done_better() -> None:
    rng = np.random.default_rng(0)
    better, worse = rng.normal(3.0, 1.0, size=10), rng.normal(0.0, 1.0, size=10)
    assert Record(worse, better, worse).plan_is_better
    assert not Record(better, worse, better).plan_is_better
    assert Record.empty().plan_is_better
    assert Record(better, worse, np.empty(0)).plan_is_better
