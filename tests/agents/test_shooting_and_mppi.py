"""Random shooting and MPPI: known optima, the weights by hand, hostile scores, explicit state."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.planners.actions import BoxActions
from agents.planners.base import Planner, Score
from agents.planners.candidates import path_weights
from agents.planners.cem import ICEM
from agents.planners.mppi import MPPI
from agents.planners.shooting import RandomShooting
from mbrl_bilevel.base.errors import InvalidInputError

PLANNERS: list[Planner] = [
    MPPI(horizon=3, population=200, iterations=6),
    RandomShooting(horizon=3, population=1200),
]
UNIT = BoxActions([-1.0], [1.0])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadratic(target: Tensor) -> Score:
    return lambda actions: -1.0 - (actions - target).square().sum((-1, -2))


@pytest.mark.parametrize("planner", PLANNERS)
def test_comes_near_an_optimum_inside_the_bounds(planner: Planner) -> None:
    target = torch.tensor([0.5, -0.4, 0.0, 0.7])[:, None, None, None]
    state = planner.initial_state(4, UNIT)
    action, after, info = planner.plan(quadratic(target), state, seeded())
    assert (action - target[:, 0, 0]).abs().mean() < 0.15
    assert after.mean.shape == (4, 3, 1)
    assert info.nonfinite == 0
    assert (info.best_score > -1.15).all()


def test_random_shooting_executes_the_best_of_uniform_candidates() -> None:
    seen: list[Tensor] = []

    def score(actions: Tensor) -> Tensor:
        seen.append(actions.clone())
        return actions[..., 0].sum(-1)

    planner = RandomShooting(horizon=2, population=4000)
    box = BoxActions([-2.0, 5.0], [1.0, 6.0])
    action, after, info = planner.plan(score, planner.initial_state(2, box), seeded())
    best = seen[0][..., 0].sum(-1).argmax(1)
    for s in range(2):
        torch.testing.assert_close(action[s], seen[0][s, best[s], 0], rtol=0, atol=0)
        torch.testing.assert_close(after.mean[s, 0], seen[0][s, best[s], 1], rtol=0, atol=0)
    share = (seen[0] - box.low) / (box.high - box.low)
    assert (share.mean((0, 1)) - 0.5).abs().max() < 0.02
    assert (share.var((0, 1)) - 1 / 12).abs().max() < 0.005
    torch.testing.assert_close(info.best_score, seen[0][..., 0].sum(-1).amax(1))


def test_one_update_is_the_weighted_mean_of_the_candidates() -> None:
    """Williams et al. 2017, alg. 2, one number at a time."""
    seen: list[Tensor] = []

    def score(actions: Tensor) -> Tensor:
        seen.append(actions.clone())
        return -(actions - 0.3).square().sum((-1, -2))

    planner = MPPI(horizon=2, population=30, iterations=1, temperature=0.7)
    action, after, info = planner.plan(score, planner.initial_state(1, UNIT), seeded())
    returns = [-sum((float(a) - 0.3) ** 2 for a in row.flatten()) for row in seen[0][0]]
    scale = 0.7 * float(np.std(returns))
    weights = [math.exp(r / scale) for r in returns]
    for h, found in ((0, action[0, 0]), (1, after.mean[0, 0, 0])):
        pairs = zip(weights, seen[0][0, :, h, 0].tolist(), strict=True)
        expected = sum(w * a for w, a in pairs) / sum(weights)
        assert found.item() == pytest.approx(expected, abs=1e-5)
    mean = sum(w * r for w, r in zip(weights, returns, strict=True)) / sum(weights)
    assert info.elite_score.item() == pytest.approx(mean, rel=1e-4)


def test_the_weights_do_not_depend_on_the_units_of_return_and_span_best_to_mean() -> None:
    scores = torch.randn(3, 40, generator=seeded(1))
    weight = path_weights(scores, 0.5)
    torch.testing.assert_close(weight.sum(1), torch.ones(3))
    for other in (1000.0 * scores, scores - 100.0, 1e-6 * scores):
        torch.testing.assert_close(path_weights(other, 0.5), weight, rtol=1e-3, atol=1e-5)
    coldest, warmest = path_weights(scores, 1e-4), path_weights(scores, 1e6)
    assert torch.equal(coldest.argmax(1), scores.argmax(1))
    torch.testing.assert_close(coldest.amax(1), torch.ones(3))
    torch.testing.assert_close(warmest, torch.full((3, 40), 1 / 40), rtol=1e-4, atol=0)
    same = path_weights(torch.full((1, 5), 7.0), 0.5)
    torch.testing.assert_close(same, torch.full((1, 5), 0.2))


def test_nonfinite_scores_weigh_nothing_and_leave_the_others_as_they_were() -> None:
    scores = torch.randn(2, 10, generator=seeded(2)) - 50.0
    broken = torch.cat([scores, torch.full((2, 3), -torch.inf)], 1)
    weight = path_weights(broken, 0.5)
    assert torch.equal(weight[:, 10:], torch.zeros(2, 3))
    torch.testing.assert_close(weight[:, :10], path_weights(scores, 0.5))


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_nonfinite_score_never_wins_though_all_others_are_negative(
    planner: Planner, bad: float
) -> None:
    counted = 0

    def score(actions: Tensor) -> Tensor:
        nonlocal counted
        lost = (actions[..., 0, 0] > 0) & torch.tensor([True, False])[:, None]
        counted += int(lost.sum())
        value = -1000.0 - (actions - 0.5).square().sum((-1, -2))
        return value.masked_fill(lost, bad)

    action, state, info = planner.plan(score, planner.initial_state(2, UNIT), seeded())
    assert action[0] <= 0
    assert action[1] == pytest.approx(0.5, abs=0.3)
    assert info.nonfinite == counted > 0
    assert (info.best_score < -999).all()
    assert (info.elite_score > -1003).all()
    assert state.mean.isfinite().all()


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_start_without_any_finite_score_keeps_its_plan(planner: Planner) -> None:
    score = quadratic(torch.tensor([0.8]))
    _, state, _ = planner.plan(score, planner.initial_state(2, UNIT), seeded())
    broken = torch.tensor([[0.0], [torch.nan]])
    action, after, info = planner.plan(lambda a: score(a) + broken, state, seeded())
    assert torch.equal(action[1], state.mean[1, 0])
    assert torch.equal(after.mean[1, :-1], state.mean[1, 1:])
    assert info.nonfinite == sum(planner.populations())
    assert info.best_score[1] == info.elite_score[1] == -torch.inf
    assert action.isfinite().all()


def test_mppi_goes_on_from_its_last_plan_and_reset_clears_it() -> None:
    planner = MPPI(horizon=4, population=300, iterations=1, temperature=0.1, std=0.2)
    score, fresh = quadratic(torch.tensor([0.9])), planner.initial_state(2, UNIT)
    state, firsts = fresh, []
    for step in range(8):
        action, state, _ = planner.plan(score, state, seeded(step))
        firsts.append(float(action.mean()))
    assert firsts[0] < 0.4
    assert firsts[-1] > 0.8
    after = planner.reset(state, np.array([True, False]))
    assert torch.equal(after.mean[0], fresh.mean[0])
    assert torch.equal(after.mean[1], state.mean[1])
    again, _, _ = planner.plan(score, after, seeded(0))
    begun, _, _ = planner.plan(score, fresh, seeded(0))
    assert torch.equal(again[0], begun[0])
    assert again[1] > 0.8


@pytest.mark.parametrize("planner", PLANNERS)
def test_same_seed_same_bits_starts_apart_and_no_shared_memory(planner: Planner) -> None:
    results = []
    for second in (0.6, float("nan")):
        target = torch.tensor([0.2, second, -0.4])[:, None, None, None]
        state = planner.initial_state(3, UNIT)
        before = state.mean.clone()
        action, after, _ = planner.plan(quadratic(target), state, seeded())
        assert torch.equal(state.mean, before)
        kept = after.mean.clone()
        results.append(action.clone())
        action.fill_(9.0)
        assert torch.equal(after.mean, kept)
    assert torch.equal(results[0][[0, 2]], results[1][[0, 2]])
    assert not torch.equal(results[0][1], results[1][1])


@pytest.mark.parametrize("planner", PLANNERS)
def test_candidates_and_actions_stay_within_the_bounds(planner: Planner) -> None:
    box = BoxActions([-0.1, 3.0], [0.2, 700.0])

    def score(actions: Tensor) -> Tensor:
        assert ((actions >= box.low) & (actions <= box.high)).all()
        return actions.sum((-1, -2))

    state = planner.initial_state(2, box)
    for _ in range(2):
        action, state, _ = planner.plan(score, state, seeded())
        assert ((action >= box.low) & (action <= box.high)).all()
        assert ((state.mean >= box.low) & (state.mean <= box.high)).all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("horizon", 0),
        ("population", -1),
        ("iterations", 0),
        ("temperature", 0.0),
        ("std", float("nan")),
        ("noise_beta", -1.0),
    ],
)
def test_a_wrong_setting_is_named_with_what_came(name: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"{name} must be .*; got {value}"):
        replace(PLANNERS[0], **{name: value})


def test_more_search_finds_more_at_an_equal_number_of_candidates() -> None:
    """Eight steps at once are too many for blind draws."""
    target = torch.linspace(-0.7, 0.7, 8)[:, None]
    icem = ICEM(horizon=8, population=100, iterations=6, noise_beta=0.5)
    budget = sum(icem.populations())
    mppi = MPPI(horizon=8, population=-(-budget // 6), iterations=6, temperature=0.1)
    blind = RandomShooting(horizon=8, population=budget)
    found = []
    for planner in (icem, mppi, blind):
        state = planner.initial_state(32, UNIT)
        _, after, _ = planner.plan(quadratic(target), state, seeded())
        found.append(float((after.mean[:, :-1] - target[1:]).square().mean()))
    assert found[0] < 0.5 * found[2]
    assert found[1] < 0.5 * found[2]
