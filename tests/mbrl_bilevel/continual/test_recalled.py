"""kl-seen: what a previous policy says at inputs like those of earlier tasks, in the place of their data."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.continual.keeping import Recalled
from mbrl_bilevel.continual.learner import Learner
from mbrl_bilevel.continual.recipes import get_recipe
from mbrl_bilevel.inner.losses import MSE
from mbrl_bilevel.outer.held_out_rows import Recollection
from mbrl_bilevel.outer.held_out_spread import HeldOutSpread
from mbrl_bilevel.outer.problem import Problem
from mbrl_bilevel.policies.policies import GaussianPolicy
from mbrl_bilevel.training.settings import Schedule


def policy(members: int, seed: int) -> GaussianPolicy:
    generator = torch.Generator().manual_seed(seed)
    made = GaussianPolicy(2, 3, generator=generator, members=members, hidden=(8,), scale="separate")
    made.set_std(torch.tensor([0.5, 1.0, 2.0]))
    return made


@pytest.mark.parametrize("members", [1, 3])
def test_recalled_rows_are_the_mean_square_that_the_previous_policy_expects(members: int) -> None:
    now, before = policy(members, 0), policy(members, 1)
    x = torch.randn(7, 2, generator=torch.Generator().manual_seed(2))
    rows = Recollection(before, x, 0.75).rows(now, 5)
    assert rows.squared.shape == (members, 15, 3)  # three quarters of 20, each input twice or more
    draws = before.dist(x.expand(members, -1, -1)).sample(200_000, torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = (draws - now.dist(x.expand(members, -1, -1)).mean).square().mean(0)
    torch.testing.assert_close(rows.squared[:, :7], expected, rtol=0.02, atol=0.0)
    torch.testing.assert_close(rows.squared[:, 7:14], rows.squared[:, :7])
    assert rows.judges.shape == (members, 15)
    if members > 1:
        assert (rows.judges.sum(0) == 1).all()


def test_the_spread_is_that_of_new_rows_and_of_remembered_ones_by_their_shares() -> None:
    now, before = policy(2, 0), policy(2, 0)
    before.set_std(torch.tensor([3.0, 3.0, 3.0]))
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 400, 2, generator=generator)
    with torch.no_grad():
        y = now.dist(x).mean + torch.randn(2, 400, 3, generator=generator)
    known = Recollection(before, torch.randn(900, 2, generator=generator), 0.6)
    problem = Problem(now, MSE(), Batch(x, y), Batch(x, y))
    solver = HeldOutSpread(shrinkage=(0.0, 1e-9), recollection=known)
    solver.step(problem)
    with torch.no_grad():
        std = now.dist(x).std.mean((0, 1))
    # Same means: σ² = .4·1 + .6·9.
    torch.testing.assert_close(std, torch.full((3,), 5.8**0.5), rtol=0.02, atol=0.0)
    replace(solver, recollection=None).step(problem)
    with torch.no_grad():
        torch.testing.assert_close(now.dist(x).std.mean(), torch.tensor(1.0), rtol=0.05, atol=0.0)


def tasks() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The same inputs; the target is .3 + noise, then −.3 + noise."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for level in (0.3, -0.3):
        x = torch.randn(600, 1, generator=generator)
        found.append((x, level + 0.3 * torch.randn(600, 1, generator=generator)))
    return found


@cache
def learned(name: str) -> tuple[Learner, Learner]:
    generator = torch.Generator().manual_seed(6)
    (x1, y1), (x2, y2) = tasks()
    groups, schedule = np.arange(600) // 10, Schedule(steps=300, learning_rate=3e-2)
    start = Learner.start(get_recipe(name), x1, y1, generator=generator, members=2, hidden=())
    once = start.learn(x1, y1, groups, generator=generator, schedule=schedule)
    frozen = copy.deepcopy(once)
    twice = once.learn(x2, y2, groups, generator=generator, schedule=schedule)
    for name_, value in frozen.model.policy.state_dict().items():
        torch.testing.assert_close(once.model.policy.state_dict()[name_], value, rtol=0.0, atol=0.0)
    return once, twice


def mean(learner: Learner) -> float:
    model, x = learner.model, torch.zeros(1, 1, 1)
    with torch.no_grad():
        dist = model.policy.dist(model.inputs.normalise(x[0]).expand(model.members, -1, -1))
    return float(model.targets.denormalise(dist.mean.mean(0)))


@pytest.mark.parametrize(
    ("name", "expected"),
    # n = 1 earlier task at the strength λ: (−.3 + λ·.3)/(1 + λ), both tasks having one spread.
    [
        ("nll+kl-seen", None),
        ("bilevel+kl-seen", 0.0),
        ("bilevel+kl-seen:3", 0.15),
        ("bilevel", -0.3),
    ],
)
def test_an_observation_remembered_counts_like_one_that_is_seen(
    name: str, expected: float | None
) -> None:
    once, twice = learned(name)
    assert mean(once) == pytest.approx(0.3, abs=0.03)
    if expected is None:
        # A likelihood that sets its own spread trades one for the other: it only lies in between.
        assert -0.25 < mean(twice) < 0.25
    else:
        assert mean(twice) == pytest.approx(expected, abs=0.05)


def test_inputs_come_from_the_densities_or_from_a_memory() -> None:
    _, twice = learned("bilevel+kl-seen")
    assert isinstance(twice.recipe.keep, Recalled)
    assert twice.recipe.keep.inputs is not None
    assert twice.recipe.keep.memory is None
    assert len(twice.recipe.keep.density.rows) == 2
    _, stored = learned("bilevel+kl-stored")
    assert isinstance(stored.recipe.keep, Recalled)
    assert stored.recipe.keep.memory is not None
    rows = stored.recipe.keep.memory.rows
    assert rows is not None
    assert stored.recipe.keep.inputs is not None
    assert sorted(stored.recipe.keep.inputs[:, 0].tolist()) == sorted(rows.x[:, 0].tolist())
