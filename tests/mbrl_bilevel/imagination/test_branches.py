"""Imagined steps by members of their own, against the model's own step and closed forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.imagination.branches import branch_step, draw_members, uncertainty
from mbrl_bilevel.imagination.settings import Branching
from mbrl_bilevel.models.dynamics import DynamicsModel

LinearModel = Callable[..., DynamicsModel]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def model(linear_model: LinearModel) -> DynamicsModel:
    """Three members that differ, on obs [2], action [1], with a learned reward."""
    g = seeded(1)
    weight, bias = torch.randn(3, 3, 3, generator=g), torch.randn(3, 3, generator=g)
    return linear_model(weight, bias, torch.rand(3, 3, generator=g) + 0.1, 2)


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    g = seeded(2)
    return torch.randn(7, 2, generator=g), torch.randn(7, 1, generator=g)


@pytest.mark.parametrize("member", [[0, 2, 1, 2, 2, 0, 2], [1, 1, 1, 1, 1, 1, 1]])
def test_each_row_follows_its_own_member(
    model: DynamicsModel, rows: tuple[Tensor, Tensor], member: list[int]
) -> None:
    obs, action = rows
    every = model.step(obs.expand(3, -1, -1), action.expand(3, -1, -1))
    follow = Branching(sample=False)
    found = branch_step(model, obs, action, torch.tensor(member), follow, seeded())
    for row, e in enumerate(member):
        torch.testing.assert_close(found.next_obs[row], every.next_obs[e, row])
        torch.testing.assert_close(found.reward[row], every.reward[e, row])
    assert not found.diverged.any()
    assert found.uncertainty.tolist() == [0.0] * 7


def test_draws_have_the_members_mean_and_spread(model: DynamicsModel) -> None:
    obs, action = torch.zeros(30_000, 2), torch.zeros(30_000, 1)
    member = draw_members(model, 30_000, seeded(3))
    found = branch_step(model, obs, action, member, Branching(), seeded(4))
    mean, std = (part[:, 0] for part in model.dist(obs[:1], action[:1]).marginals())
    for e in range(3):
        mine = torch.cat([found.next_obs, found.reward[:, None]], 1)[member == e]
        assert abs(len(mine) - 10_000) < 400  # five standard deviations
        torch.testing.assert_close(mine.mean(0), mean[e], atol=0.06, rtol=0.0)
        torch.testing.assert_close(mine.std(0), std[e], atol=0.0, rtol=0.04)


def test_the_penalty_is_the_largest_norm_of_a_members_spread(
    linear_model: LinearModel, rows: tuple[Tensor, Tensor]
) -> None:
    """‖(.3, .4, 1e-4)‖ = .5 beats ‖(.1, .1, .1)‖; the members' means are ±(1, 2, 2), so ‖std‖ = 3."""
    std = torch.tensor([[0.3, 0.4, 1e-4], [0.1, 0.1, 0.1]])
    bias = torch.tensor([[1.0, 2.0, 2.0], [-1.0, -2.0, -2.0]])
    model = linear_model(torch.zeros(2, 3, 3), bias, std, 2)
    torch.testing.assert_close(uncertainty(model, *rows, "spread"), torch.full((7,), 0.5))
    torch.testing.assert_close(uncertainty(model, *rows, "disagreement"), torch.full((7,), 3.0))
    for kind, u in (("spread", 0.5), ("disagreement", 3.0)):
        branching: Any = Branching(sample=False, penalty=4.0, uncertainty=kind)  # type: ignore[arg-type]
        found = branch_step(model, *rows, torch.zeros(7, dtype=torch.long), branching, seeded())
        torch.testing.assert_close(found.reward, torch.full((7,), 2.0 - 4.0 * u))
        torch.testing.assert_close(found.uncertainty, torch.full((7,), u))


def test_termination_is_drawn_by_its_probability(
    model: DynamicsModel,
) -> None:
    def by_action(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return action[..., 0]

    model = replace(model, termination=by_action)
    action = torch.tensor([0.0, 1.0, 0.3]).repeat(6000).unsqueeze(1)
    member = draw_members(model, len(action), seeded(5))
    obs = torch.zeros(len(action), 2)
    ended = branch_step(model, obs, action, member, Branching(), seeded(6)).terminated
    shares = ended.float().reshape(-1, 3).mean(0)
    assert shares[0] == 0.0
    assert shares[1] == 1.0
    assert shares[2].item() == pytest.approx(0.3, abs=0.03)


def test_rows_that_leave_finite_numbers_are_marked(
    model: DynamicsModel, rows: tuple[Tensor, Tensor]
) -> None:
    obs, action = rows
    obs[3, 0] = 3e38
    member = torch.zeros(7, dtype=torch.long)
    found = branch_step(model, obs * 1e1, action, member, Branching(), seeded())
    assert found.diverged.tolist() == [row == 3 for row in range(7)]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"propagation": "ts2"}, "propagation"),
        ({"uncertainty": "doubt"}, "uncertainty"),
        ({"penalty": -1.0}, "penalty"),
        ({"penalty": float("nan")}, "penalty"),
    ],
)
def test_settings_out_of_range_are_named(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words):
        Branching(**wrong)
