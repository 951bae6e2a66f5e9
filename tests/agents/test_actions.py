"""Discrete actions: exact draws, known optima for every planner, and candidates that are one-hot."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from agents.planners import CEM, ICEM, MPPI, Planner, RandomShooting
from agents.planners.actions import DiscreteActions
from agents.planners.coloured_noise import coloured_noise
from mbrl_bilevel.base.errors import InvalidInputError

PLANNERS: list[Planner] = [
    CEM(horizon=5, population=100, iterations=5),
    ICEM(horizon=5, population=100, iterations=5),
    MPPI(horizon=5, population=100, iterations=5),
    RandomShooting(horizon=5, population=2000),
]
#: The best of three actions at each of five steps, for two starts.
BEST = torch.tensor([[2, 0, 1, 1, 0], [1, 1, 2, 0, 2]])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matches(actions: Tensor) -> Tensor:
    """Minus the number of steps that differ from BEST; 3⁵ sequences, one of them at 0."""
    assert ((actions == 0) | (actions == 1)).all()
    assert (actions.sum(-1) == 1).all()
    return (actions.argmax(-1) == BEST[:, None]).float().sum(-1) - 5.0


@pytest.mark.parametrize("beta", [0.0, 2.0])
def test_draws_have_the_probabilities_at_every_step_whatever_the_colour(beta: float) -> None:
    wanted = torch.tensor([[0.7, 0.2, 0.1, 0.0], [0.25, 0.25, 0.1, 0.4], [0.0, 0.0, 1.0, 0.0]])
    noise = coloured_noise((1, 40_000, 3, 4), beta, seeded())
    drawn = DiscreteActions(4).draw(wanted[None], torch.zeros(()), noise)
    found = drawn[0].mean(0)
    assert (found - wanted).abs().max() < 0.012  # five standard errors of a half
    assert (found[wanted == 0] == 0).all()


def test_coloured_choices_last_longer_than_white_ones() -> None:
    kept = {}
    for beta in (0.0, 2.0):
        noise = coloured_noise((1, 2000, 20, 3), beta, seeded())
        index = DiscreteActions(3).draw(torch.full((1, 20, 3), 1 / 3), noise, noise).argmax(-1)
        kept[beta] = float((index[..., 1:] == index[..., :-1]).float().mean())
    assert kept[0.0] == pytest.approx(1 / 3, abs=0.02)
    assert kept[2.0] > 0.5


@pytest.mark.parametrize("planner", PLANNERS)
def test_finds_the_best_sequence(planner: Planner) -> None:
    state = planner.initial_state(2, DiscreteActions(3))
    action, after, info = planner.plan(matches, state, seeded())
    assert torch.equal(action, torch.nn.functional.one_hot(BEST[:, 0], 3).float())
    assert torch.equal(after.mean[:, :-1].argmax(-1), BEST[:, 1:])
    assert info.best_score.tolist() == [0.0, 0.0]
    torch.testing.assert_close(after.mean.sum(-1), torch.ones(2, 5))


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_nan_never_wins_and_the_plan_can_still_change_its_mind(planner: Planner) -> None:
    """After it was certain of one sequence, another becomes the best."""

    def lost(actions: Tensor) -> Tensor:
        return matches(actions).masked_fill(actions[..., 0, 2] == 1, torch.nan) - 100.0

    state = planner.initial_state(2, DiscreteActions(3))
    for step in range(3):
        action, state, info = planner.plan(lost, state, seeded(step))
        assert action[0, 2] == 0
        assert info.nonfinite > 0
    action, state, _ = planner.plan(matches, state, seeded(3))
    assert torch.equal(action.argmax(-1), BEST[:, 0])
    fresh = planner.reset(state, torch.tensor([True, False]))
    torch.testing.assert_close(fresh.mean[0], torch.full((5, 3), 1 / 3))
    assert torch.equal(fresh.mean[1], state.mean[1])


def test_exploring_takes_a_uniform_choice_with_the_given_probability() -> None:
    actions = DiscreteActions(4)
    plain = torch.eye(4)[torch.full((20_000,), 2)]
    explored = actions.explored(plain, 0.4, torch.Generator().manual_seed(0))
    share = explored.mean(0)
    assert explored.sum(1).unique().tolist() == [1.0]
    assert share.tolist() == pytest.approx([0.1, 0.1, 0.7, 0.1], abs=0.012)


@pytest.mark.parametrize("count", [0, 1, 10**6])
def test_the_number_of_actions_is_checked(count: int) -> None:
    with pytest.raises(InvalidInputError, match=f"actions must be from 2 to 100,000; got {count}"):
        DiscreteActions(count)
