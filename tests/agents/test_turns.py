"""Whose turn it is: what a turn was worth, against sums written out, and how often the better one acts."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from scipy.stats import norm

from agents.planning_agent.policy import HeldPolicy
from agents.planning_agent.replay import GUESS, PLAN, POLICY
from agents.planning_agent.turns import TURN, Record, record_of
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


def shares(record: Record, seed: int) -> tuple[float, float]:
    """How often the plan acts, and the best guess."""
    random = np.random.default_rng(seed)
    drawn = np.array([record.draw(random) for _ in range(8000)])
    return float(np.mean(drawn == PLAN)), float(np.mean(drawn == GUESS))


def test_the_better_one_acts_more_and_the_other_sometimes() -> None:
    rng = np.random.default_rng(0)
    better, worse = rng.normal(3.0, 1.0, size=10), rng.normal(0.0, 1.0, size=10)
    assert shares(Record(worse, better, worse), 1) == pytest.approx((0.5, 0.1), abs=0.02)
    assert shares(Record(better, worse, worse), 1) == pytest.approx((0.1, 0.1), abs=0.02)
    assert Record(worse, better, worse).plan_is_better
    assert not Record(worse, worse, better).plan_is_better


def test_where_little_is_known_the_draw_is_even() -> None:
    """Without turns; and where their spread hides a difference, near what the normal law says."""
    few = Record(np.array([5.0, 1.0]), np.array([1.0]), np.empty(0))
    for record in (Record.empty(), few):
        assert shares(record, 2)[0] == pytest.approx(0.3, abs=0.02)
        assert record.plan_is_better
    plan, policy = np.array([1.0, 3.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0, 2.0])
    spread = np.sqrt((np.square(plan - 2.5).sum() + np.square(policy - 2.0).sum()) / 6)
    likely = norm.cdf(0.5 / (spread * np.sqrt(2 / 4)))
    share = shares(Record(policy, plan, plan), 3)[0]
    assert share == pytest.approx(0.5 * likely + 0.1 * (1 - likely), abs=0.02)
