"""The rows of bench on repeats: eight fits or agents as one, beside the same eight one after another."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from agents.planning_agent.agent import PlanningAgent
from agents.side_by_side import learn_side_by_side
from bench_rows.acting import preset_agent
from bench_rows.pair import INPUTS, TARGETS, Pair, Sizes, make_data
from mbrl_bilevel.base.records import FitResult
from mbrl_bilevel.training.methods import get_method
from mbrl_bilevel.training.settings import Schedule

#: How many repeats go side by side.
REPEATS = 8


def repeats_side_by_side(sizes: Sizes, seed: int) -> Pair:
    """Fits by the method bilevel, outer level and all, with the networks of ``sizes``."""
    method, seeds = get_method("bilevel"), range(seed, seed + REPEATS)
    data = [make_data(sizes, s) for s in seeds]
    steps = min(sizes.steps, 400)
    # Never stopped early: what stops sooner would look faster.
    schedule = Schedule(steps, sizes.batch_size, patience=steps)

    def fresh() -> tuple[list[Any], list[torch.Generator]]:
        draws = [torch.Generator().manual_seed(s) for s in seeds]
        shape: dict[str, Any] = {"members": sizes.members, "hidden": sizes.hidden}
        return [method.make_policy(INPUTS, TARGETS, generator=g, **shape) for g in draws], draws

    def together() -> list[Any]:
        policies, draws = fresh()
        return method.fit_side_by_side(policies, data, generators=draws, schedule=schedule)

    def in_turn() -> list[FitResult]:
        policies, draws = fresh()
        return [
            method.fit(policy, rows, generator=generator, schedule=schedule)
            for policy, rows, generator in zip(policies, data, draws, strict=True)
        ]

    def check() -> None:
        for one, other in zip(together(), in_turn(), strict=True):
            torch.testing.assert_close(
                torch.tensor(one.criterion), torch.tensor(other.criterion), rtol=0.02, atol=0.02
            )

    return Pair(
        together,
        in_turn,
        check,
        peer_name=f"{REPEATS} fits one after another",
        amount=float(REPEATS * steps * sizes.batch_size * sizes.members),
        unit="training samples/s",
        slow=True,
    )


def repeats_side_by_side_small(sizes: Sizes, seed: int) -> Pair:
    """The same with networks of 2 × 64, or smaller ones."""
    return repeats_side_by_side(
        replace(sizes, hidden=tuple(min(64, n) for n in sizes.hidden)), seed
    )


def agents_side_by_side(sizes: Sizes, seed: int, policy: tuple[int, ...] = (256, 256)) -> Pair:
    """Two steps of agents at the preset of HalfCheetah-v5, looking ahead in models with the networks of ``sizes``, with
    the updates that go with them and no fit. ``policy``: units of the learner's hidden layers."""
    steps = 2

    def fresh() -> list[PlanningAgent]:
        shape: dict[str, Any] = {"members": sizes.members, "hidden": sizes.hidden}
        shape["imagination"] = {"particles": sizes.members}
        seeds = range(seed, seed + REPEATS)
        return [preset_agent(s, 10, policy, **shape)[0] for s in seeds]

    beside, apart = fresh(), fresh()

    def together() -> list[Any]:
        return learn_side_by_side(beside, steps)

    def in_turn() -> list[PlanningAgent]:
        return [agent.learn(steps) for agent in apart]

    def check() -> None:
        assert together() == [None] * REPEATS
        for one, other in zip(beside, in_turn(), strict=True):
            pairs = zip(one.policy.parameters(), other.policy.parameters(), strict=True)
            for mine, theirs in pairs:
                torch.testing.assert_close(mine, theirs, rtol=0.02, atol=0.02)

    updates = beside[0].settings.updates_per_step * steps
    return Pair(
        together,
        in_turn,
        check,
        peer_name=f"{REPEATS} agents one after another",
        amount=float(REPEATS * updates),
        unit="updates/s",
        slow=True,
    )


def agents_side_by_side_small(sizes: Sizes, seed: int) -> Pair:
    """The same with networks of 2 × 64, or smaller ones."""
    small = replace(sizes, hidden=tuple(min(64, n) for n in sizes.hidden))
    return agents_side_by_side(small, seed, small.hidden)
