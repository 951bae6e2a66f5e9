"""The planners against known optima, the LQR, the spectrum they promise, and hostile scores."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import solve_discrete_are
from torch import Tensor

from agents.planners.actions import BoxActions
from agents.planners.base import PlanInfo, PlannerState, Score
from agents.planners.cem import CEM, ICEM
from agents.planners.coloured_noise import coloured_noise
from agents.planners.elites import elite_weight, refit
from mbrl_bilevel.base.errors import InvalidInputError

PLANNERS = [CEM, ICEM]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def quadratic(target: Tensor, scale: Tensor | float = 1.0) -> Score:
    """Best where every step's action is target [A], or [S, 1, 1, A]; always negative."""
    return lambda actions: -1.0 - ((actions - target) / scale).square().sum((-1, -2))


def recorded(score: Score) -> tuple[Score, list[Tensor]]:
    """The score, and the list of all the candidates that it will have been asked about."""
    seen: list[Tensor] = []

    def recording(actions: Tensor) -> Tensor:
        seen.append(actions.clone())
        return score(actions)

    return recording, seen


def plan_once(
    planner: CEM, score: Score, starts: int, low: list[float], high: list[float], seed: int = 0
) -> tuple[Tensor, PlannerState, PlanInfo]:
    return planner.plan(score, planner.initial_state(starts, BoxActions(low, high)), seeded(seed))


@pytest.mark.parametrize("kind", PLANNERS)
def test_finds_an_optimum_inside_the_bounds_at_every_scale(kind: type[CEM]) -> None:
    target = torch.tensor([[0.31, -70.0], [-0.62, 250.0]])[:, None, None]
    scale = torch.tensor([1.0, 200.0])
    planner = kind(horizon=4, population=400, iterations=10, elite_fraction=0.05)
    score = quadratic(target, scale)
    action, state, info = plan_once(planner, score, 2, [-1.0, -100.0], [1.0, 300.0])
    assert ((action - target[:, 0, 0]).abs() / scale).max() < 0.03
    assert ((state.mean - target[:, 0]).abs() / scale).max() < 0.03
    assert (info.std / scale).max() < 0.03  # it started at 0.5
    assert info.nonfinite == 0
    assert (info.best_score >= info.elite_score).all()


@pytest.mark.parametrize("kind", PLANNERS)
def test_an_optimum_outside_the_bounds_gives_the_bound(kind: type[CEM]) -> None:
    planner = kind(horizon=3, population=300, iterations=15, elite_fraction=0.05)
    action, _, _ = plan_once(planner, quadratic(torch.tensor([5.0, -9.0])), 1, [-1, -2], [1, 3])
    torch.testing.assert_close(action, torch.tensor([[1.0, -2.0]]), atol=1e-2, rtol=0)


@pytest.mark.parametrize("kind", PLANNERS)
def test_closed_loop_on_the_double_integrator_is_near_the_lqr_optimum(kind: type[CEM]) -> None:
    a, b = np.array([[1.0, 0.2], [0.0, 1.0]]), np.array([[0.02], [0.2]])
    p = solve_discrete_are(a, b, np.eye(2), np.array([[0.1]]))
    at, bt, pt = (torch.tensor(m, dtype=torch.float32) for m in (a, b, p))

    def cost(x: Tensor, u: Tensor) -> Tensor:
        return x.square().sum(-1) + 0.1 * u.square().sum(-1)

    def score_from(x: Tensor) -> Score:
        def score(actions: Tensor) -> Tensor:
            y, total = x[:, None].expand(-1, actions.shape[1], -1), torch.zeros(())
            for u in actions.unbind(2):
                total, y = total - cost(y, u), y @ at.T + u @ bt.T
            return total - torch.einsum("sni,ij,snj->sn", y, pt, y)

        return score

    x = torch.tensor([[1.0, 0.0], [-0.5, 1.0], [0.3, -0.8]])
    optimum = torch.einsum("si,ij,sj->s", x, pt, x)
    planner = kind(horizon=6, population=300, iterations=8, elite_fraction=0.05)
    state, generator, total = (
        planner.initial_state(3, BoxActions([-6.0], [6.0])),
        seeded(),
        torch.zeros(3),
    )
    for _ in range(30):
        action, state, _ = planner.plan(score_from(x), state, generator)
        total, x = total + cost(x, action), x @ at.T + action @ bt.T
    total = total + torch.einsum("si,ij,sj->s", x, pt, x)
    assert (total >= 0.999 * optimum).all()
    assert (total / optimum).max() < 1.03


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0, 3.0])
def test_coloured_noise_has_the_slope_it_promises(beta: float) -> None:
    noise = coloured_noise((400, 128, 2), beta, seeded())
    power = torch.fft.rfft(noise.double(), dim=-2).abs().square().mean((0, 2))[1:-1]
    slope = np.polyfit(np.log(np.arange(1, 64)), power.log().numpy(), 1)[0]
    assert slope == pytest.approx(-beta, abs=0.05)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5, 50.0])
@pytest.mark.parametrize("steps", [1, 2, 7, 30])
def test_coloured_noise_is_standard_at_every_step(beta: float, steps: int) -> None:
    noise = coloured_noise((20_000, steps, 1), beta, seeded())
    assert noise.shape == (20_000, steps, 1)
    assert noise.mean(0).abs().max() < 0.04
    assert (noise.var(0) - 1).abs().max() < 0.06


def test_coloured_noise_is_independent_across_candidates_and_actions() -> None:
    noise = coloured_noise((4000, 2, 10, 2), 2.0, seeded())
    first = noise[:, 0, :, 0]
    for other in (noise[:, 1, :, 0], noise[:, 0, :, 1]):
        assert (first * other).mean().abs() < 0.03


def test_white_and_coloured_candidates_reach_the_score_as_asked() -> None:
    steps: dict[float, float] = {}
    for beta in (0.0, 3.0):

        def score(actions: Tensor, beta: float = beta) -> Tensor:
            steps[beta] = float(actions.diff(dim=2).square().mean())
            return actions.sum((-1, -2))

        plan_once(CEM(iterations=1, initial_std=0.1, noise_beta=beta), score, 4, [-1], [1])
    assert steps[0.0] == pytest.approx(2 * 0.1**2, rel=0.1)
    assert steps[3.0] < 0.3 * steps[0.0]


def point_mass(actions: Tensor) -> tuple[Tensor, Tensor]:
    """Positions and velocities [S, N, H] of a unit mass pushed from rest for steps of 0.1 s."""
    velocity = (0.1 * actions[..., 0]).cumsum(2)
    return (0.1 * velocity).cumsum(2), velocity


def stop_far_away(actions: Tensor) -> Tensor:
    goal = torch.linspace(2.0, 7.0, 16)[:, None]
    position, velocity = point_mass(actions)
    return -(position[..., -1] - goal).abs() - 0.5 * velocity[..., -1].abs()


def steps_beyond_a_far_line(actions: Tensor) -> Tensor:
    return (point_mass(actions)[0] > 5.0).float().sum(2)


@pytest.mark.parametrize(("score", "gap"), [(stop_far_away, 0.2), (steps_beyond_a_far_line, 5.0)])
def test_icem_beats_cem_at_equal_budget_on_a_long_horizon(score: Score, gap: float) -> None:
    icem = ICEM(horizon=60, population=60, iterations=4, noise_beta=2.0)
    cem = CEM(horizon=60, population=-(-sum(icem.populations()) // 4), iterations=4)
    assert sum(cem.populations()) >= sum(icem.populations())
    means = []
    for planner in (icem, cem):
        runs = [plan_once(planner, score, 16, [-1], [1], seed)[2].best_score for seed in range(5)]
        means.append(float(torch.stack(runs).mean()))
    assert means[0] > means[1] + gap, means


def alternate(actions: Tensor) -> Tensor:
    """What a gait asks for: full force to and fro, three steps each."""
    wave = torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0]).repeat(3)
    return -(actions[..., 0] - wave[: actions.shape[2]]).square().sum(-1)


def test_the_default_colour_serves_a_fast_system_and_a_slow_one_would_not() -> None:
    icem = ICEM(horizon=15, population=79, iterations=3, elite_fraction=0.15)
    cem = CEM(horizon=15, population=64, iterations=3, elite_fraction=0.15)
    assert sum(icem.populations()) <= sum(cem.populations())
    means = []
    for planner in (icem, cem, dataclasses.replace(icem, noise_beta=2.0)):
        runs = [plan_once(planner, alternate, 16, [-1], [1], seed)[2].best_score for seed in (0, 1)]
        means.append(float(torch.stack(runs).mean()))
    assert means[0] > means[1] > means[2] + 0.5, means


def test_populations_decay_to_twice_the_elites_and_are_what_the_score_sees() -> None:
    planner = ICEM(population=100, iterations=6, elite_fraction=0.2)
    score, seen = recorded(quadratic(torch.zeros(1)))
    plan_once(planner, score, 2, [-1.0], [1.0])
    assert (
        tuple(actions.shape[1] for actions in seen)
        == planner.populations()
        == (100, 80, 64, 51, 40, 40)
    )
    assert CEM(population=30, iterations=3).populations() == (30, 30, 30)


def test_a_refit_is_the_elites_moments_with_momentum() -> None:
    score, seen = recorded(lambda actions: actions[..., 0].sum(-1))
    planner = CEM(horizon=3, population=40, iterations=1, elite_fraction=0.25, momentum=0.3)
    action, state, info = plan_once(planner, score, 1, [-2.0], [6.0])
    candidates = seen[0][0]
    elites = candidates[candidates[..., 0].sum(-1).argsort(descending=True)[:10]]
    mean = 0.3 * 2.0 + 0.7 * elites.mean(0)
    torch.testing.assert_close(action[0], mean[0])
    torch.testing.assert_close(state.mean[0], mean[[1, 2, 2]])
    std = 0.3 * 0.5 * 4.0 + 0.7 * elites.std(0, correction=0)
    torch.testing.assert_close(info.std[0], std)
    torch.testing.assert_close(info.best_score[0], elites[0].sum())
    torch.testing.assert_close(info.elite_score[0], elites.sum((-1, -2)).mean())


def test_where_all_scores_tie_the_plan_stays_unbiased_and_the_mean_is_executed() -> None:
    def constant(actions: Tensor) -> Tensor:
        return torch.ones(actions.shape[:2])

    score, seen = recorded(constant)
    planner = CEM(horizon=3, population=40, iterations=1, momentum=0.0)
    action, state, info = plan_once(planner, score, 2, [-1.0], [1.0])
    torch.testing.assert_close(action, seen[0].mean(1)[:, 0])
    torch.testing.assert_close(state.mean[:, 0], seen[0].mean(1)[:, 1])
    torch.testing.assert_close(info.std, seen[0].std(1, correction=0))
    # An arbitrary pick of K = 4 would be off by a standard error of 0.25, not by 0.08.
    many = CEM(horizon=3, population=2000, iterations=3, elite_fraction=0.002, momentum=0.0)
    _, state, _ = plan_once(many, constant, 8, [-1.0], [1.0])
    assert state.mean.abs().max() < 0.08

    score, seen = recorded(constant)
    icem = ICEM(horizon=3, population=40, iterations=3)
    generator, state = seeded(), icem.initial_state(2, BoxActions([-1.0], [1.0]))
    for _ in range(2):  # with and without elites kept from the step before
        action, state, _ = icem.plan(score, state, generator)
        before_last = seen[-2].mean(1)
        # The last iteration's μ, which competes in slot 0 and wins the tie.
        assert torch.equal(action, seen[-1][:, 0, 0])
        assert (action - before_last[:, 0]).abs().max() < 0.1


def test_candidates_tied_with_the_worst_elite_share_what_the_better_ones_leave() -> None:
    nothing = -torch.inf
    scores = torch.tensor(
        [
            [5.0, 1.0, 4.0, 1.0, 1.0, 0.0],  # two better, three tied for one place
            [2.0, 2.0, 2.0, 2.0, 2.0, 2.0],
            [3.0, 3.0, 3.0, 1.0, 0.0, nothing],  # a tie, all of it among the elites
            [0.0, 7.0, nothing, nothing, nothing, nothing],  # fewer finite than elites
            [nothing] * 6,
        ]
    )
    third = 1.0 / 3.0
    expected = [
        [1.0, third, 1.0, third, third, 0.0],
        [0.5] * 6,
        [1.0, 1.0, 1.0, 0.0, 0.0, 0.0],
        [1.0, 1.0, 0.0, 0.0, 0.0, 0.0],
        [0.0] * 6,
    ]
    weight = elite_weight(scores, scores.topk(3, 1).values)
    torch.testing.assert_close(weight, torch.tensor(expected))
    torch.testing.assert_close(weight.sum(1), torch.tensor([3.0, 3.0, 3.0, 2.0, 0.0]))


@pytest.mark.parametrize("elites", [1, 7, 30])
def test_without_ties_the_elites_alone_have_weight(elites: int) -> None:
    scores = torch.stack([torch.randperm(30, generator=seeded(s)) for s in range(5)]).float()
    top = scores.topk(elites, 1)
    expected = torch.zeros(5, 30).scatter(1, top.indices, 1.0)
    assert torch.equal(elite_weight(scores, top.values), expected)
    # μ and σ are then those of the plain refit to the K best.
    candidates = torch.randn(5, 30, 4, 2, generator=seeded(9))
    mean, std = torch.randn(2, 5, 4, 2, generator=seeded(8)).unbind(0)
    found = refit(mean, std.abs(), candidates, expected, 0.2)
    best = candidates[torch.arange(5)[:, None], top.indices]
    torch.testing.assert_close(found[0], 0.2 * mean + 0.8 * best.mean(1))
    moved = 0.2 * std.abs() + 0.8 * best.std(1, correction=0)
    torch.testing.assert_close(found[1], moved if elites > 1 else std.abs())


def test_icem_keeps_elites_adds_the_mean_and_executes_the_best() -> None:
    value = quadratic(torch.tensor([0.4]))
    score, seen = recorded(value)
    planner = ICEM(horizon=5, population=50, iterations=3, elite_fraction=0.2)
    assert (planner.num_elites, planner.num_kept) == (10, 3)
    generator = seeded()
    action, state, info = planner.plan(
        score, planner.initial_state(2, BoxActions([-1], [1])), generator
    )
    rows = torch.arange(2)[:, None]
    for before, after in itertools.pairwise(seen):
        kept = before[rows, value(before).topk(3).indices]
        torch.testing.assert_close(after[:, -3:], kept, rtol=0, atol=0)
    final = value(seen[-1])
    torch.testing.assert_close(action, seen[-1][rows[:, 0], final.argmax(1), 0], rtol=0, atol=0)
    torch.testing.assert_close(info.best_score, final.amax(1))

    best = seen[-1][rows, final.topk(3).indices]
    planner.plan(score, state, generator)
    torch.testing.assert_close(seen[3][:, -3:, :-1], best[:, :, 1:], rtol=0, atol=0)
    last = seen[3][:, -3:, -1]
    assert (last != best[:, :, -1]).all()  # drawn anew, not repeated

    score, seen = recorded(value)
    alone = dataclasses.replace(planner, iterations=1)
    alone.plan(score, state, generator)
    torch.testing.assert_close(seen[0][:, 0], state.mean, rtol=0, atol=0)


@pytest.mark.parametrize("kind", PLANNERS)
def test_starts_do_not_influence_each_other(kind: type[CEM]) -> None:
    planner = kind(horizon=5, population=64, iterations=4)
    results = []
    for second in (0.9, float("nan")):
        target = torch.tensor([0.2, second, -0.4])[:, None, None, None]
        state, generator, actions = (
            planner.initial_state(3, BoxActions([-1.0], [1.0])),
            seeded(),
            [],
        )
        for _ in range(3):
            action, state, _ = planner.plan(quadratic(target), state, generator)
            actions.append(action)
        results.append(torch.stack(actions))
    assert torch.equal(results[0][:, [0, 2]], results[1][:, [0, 2]])
    assert not torch.equal(results[0][:, 1], results[1][:, 1])
    assert (results[0][0, :, 0] - torch.tensor([0.2, 0.9, -0.4])).abs().max() < 0.2


@pytest.mark.parametrize("kind", PLANNERS)
def test_the_warm_start_continues_the_plan(kind: type[CEM]) -> None:
    ramp = torch.linspace(-0.8, 0.8, 9)[:, None]
    planner = kind(horizon=9, population=300, iterations=8, noise_beta=0.0)
    _, state, _ = plan_once(planner, quadratic(ramp), 1, [-1.0], [1.0])
    expected = torch.cat([ramp[1:], ramp[-1:]])
    assert (state.mean[0] - expected).abs().max() < 0.15


def test_reset_clears_only_the_masked_starts() -> None:
    planner = ICEM(horizon=4, population=40, iterations=3)
    target = torch.tensor([0.7])
    _, state, _ = plan_once(planner, quadratic(target), 3, [-1.0], [1.0])
    fresh = planner.initial_state(3, BoxActions([-1.0], [1.0]))
    assert state.elite_valid.all()
    after = planner.reset(state, torch.tensor([False, True, False]))
    for name in ("mean", "elites", "elite_valid"):
        old, new, begun = (getattr(s, name) for s in (state, after, fresh))
        assert torch.equal(new[[0, 2]], old[[0, 2]])
        assert torch.equal(new[1], begun[1])
        assert not torch.equal(new[1], old[1])
    same = planner.reset(state, np.zeros(3, dtype=bool))
    assert torch.equal(same.mean, state.mean)
    assert torch.equal(same.elites, state.elites)

    score, seen = recorded(quadratic(target))
    planner.plan(score, after, seeded())
    kept = after.elites[:, :, :-1]
    inserted = (seen[0][:, -planner.num_kept :, :-1] == kept).flatten(1).all(1)
    assert inserted.tolist() == [True, False, True]


@pytest.mark.parametrize("kind", PLANNERS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_nonfinite_score_never_wins_though_all_others_are_negative(
    kind: type[CEM], bad: float
) -> None:
    counted = 0

    def score(actions: Tensor) -> Tensor:
        nonlocal counted
        lost = (actions[..., 0, 0] > 0) & (torch.tensor([True, False])[:, None])
        counted += int(lost.sum())
        value = -1000.0 - (actions - 0.5).square().sum((-1, -2))
        return value.masked_fill(lost, bad)

    planner = kind(horizon=2, population=100, iterations=5)
    action, state, info = plan_once(planner, score, 2, [-1.0], [1.0])
    assert action[0] <= 0
    assert action[1] == pytest.approx(0.5, abs=0.1)
    assert info.nonfinite == counted > 0
    assert (info.best_score < -999).all()
    assert (info.best_score > -1002).all()
    assert state.mean.isfinite().all()


@pytest.mark.parametrize("kind", PLANNERS)
def test_elites_are_only_the_finite_ones_when_these_are_few(kind: type[CEM]) -> None:
    """Two good candidates of forty: μ is theirs alone, not dragged by the 38 that failed."""

    def two_finite(actions: Tensor) -> Tensor:
        value = actions[..., 0].sum(-1)
        return value.masked_fill(value < value.topk(2).values[:, 1:], torch.nan)

    score, seen = recorded(two_finite)
    planner = kind(horizon=3, population=40, iterations=1, elite_fraction=0.5, momentum=0.0)
    planner = dataclasses.replace(planner, add_mean=False)
    _, state, info = plan_once(planner, score, 1, [-1.0], [1.0])
    two = seen[0][0, seen[0][0, ..., 0].sum(-1).topk(2).indices]
    torch.testing.assert_close(state.mean[0, 0], two.mean(0)[1])
    torch.testing.assert_close(info.elite_score[0], two.sum((-1, -2)).mean())
    assert info.nonfinite == 38
    assert state.elite_valid.sum() == min(2, planner.num_kept)


def test_a_single_finite_score_moves_the_mean_and_leaves_the_spread() -> None:
    def one_finite(actions: Tensor) -> Tensor:
        value = actions.sum((-1, -2))
        return value.masked_fill(value < value.amax(1, keepdim=True), torch.nan)

    planner = CEM(horizon=3, population=40, iterations=1, momentum=0.0)
    _, state, info = plan_once(planner, one_finite, 2, [-1.0], [1.0])
    assert torch.equal(info.std, torch.full((2, 3, 1), 0.5))
    assert torch.equal(info.best_score, info.elite_score)
    assert (state.mean != 0).all()


@pytest.mark.parametrize("kind", PLANNERS)
def test_a_start_without_any_finite_score_falls_back_to_its_mean(kind: type[CEM]) -> None:
    planner = kind(horizon=4, population=30, iterations=3)
    _, state, _ = plan_once(planner, quadratic(torch.tensor([0.8])), 2, [-1.0], [1.0])
    broken = torch.tensor([[0.0], [torch.nan]])
    action, after, info = planner.plan(
        lambda a: quadratic(torch.tensor([0.8]))(a) + broken, state, seeded()
    )
    assert torch.equal(action[1], state.mean[1, 0])
    assert torch.equal(after.mean[1, :-1], state.mean[1, 1:])
    assert after.elite_valid[0].all()
    assert not after.elite_valid[1].any()
    assert info.nonfinite == sum(planner.populations())
    assert info.best_score[1] == info.elite_score[1] == -torch.inf
    for part in (action, after.mean, after.elites, info.std):
        assert part.isfinite().all()
    action, _, _ = planner.plan(quadratic(torch.tensor([0.8])), after, seeded(1))
    assert (action - 0.8).abs().max() < 0.3  # the start recovers when the model does


@pytest.mark.parametrize("kind", PLANNERS)
def test_same_seed_same_bits_and_no_global_randomness(kind: type[CEM]) -> None:
    planner, score = kind(horizon=6, population=50), quadratic(torch.tensor([0.3, -0.2]))
    runs: list[Tensor] = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(runs))
        before = torch.get_rng_state()
        action, state, info = plan_once(planner, score, 2, [-1, -1], [1, 1], seed)
        assert torch.equal(before, torch.get_rng_state())
        runs.append(torch.cat([action.flatten(), state.mean.flatten(), info.std.flatten()]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("kind", PLANNERS)
def test_the_state_given_is_not_changed_and_shares_no_memory_with_what_comes_back(
    kind: type[CEM],
) -> None:
    planner = kind(horizon=3, population=20, iterations=2)
    low = torch.tensor([-1.0])
    state = planner.initial_state(2, BoxActions(low, np.array([1.0])))
    low.fill_(9.0)
    assert isinstance(state.actions, BoxActions)
    assert state.actions.low == -1.0
    copies = {f: getattr(state, f).clone() for f in ("mean", "elites", "elite_valid")}
    action, after, _ = planner.plan(quadratic(torch.tensor([0.5])), state, seeded())
    mean, elites = after.mean.clone(), after.elites.clone()
    planner.plan(quadratic(torch.tensor([-0.5])), after, seeded())
    action.fill_(7.0)
    assert torch.equal(mean, after.mean)
    assert torch.equal(elites, after.elites)
    for name, copy in copies.items():
        assert torch.equal(copy, getattr(state, name))


def test_no_gradient_flows_through_a_plan() -> None:
    weight = torch.tensor([0.5], requires_grad=True)
    action, state, info = plan_once(CEM(population=20), quadratic(weight), 1, [-1.0], [1.0])
    for part in (action, state.mean, info.best_score, info.std):
        assert not part.requires_grad
        assert not part.is_inference()  # so a caller may use it in a graph of its own


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(PLANNERS),
    bounds=st.lists(
        st.tuples(st.floats(-1e4, 1e4, width=32), st.floats(2**-7, 1e4, width=32)),
        min_size=1,
        max_size=3,
    ),
    starts=st.integers(1, 3),
    horizon=st.integers(1, 6),
    population=st.integers(1, 12),
    iterations=st.integers(1, 3),
    elite_fraction=st.floats(0.01, 1.0),
    keep_fraction=st.floats(0.0, 1.0),
    initial_std=st.floats(0.01, 10.0),
    seed=st.integers(0, 1000),
    broken=st.floats(0.0, 1.0),
)
def test_actions_and_candidates_are_always_finite_and_within_bounds(
    kind: type[CEM],
    bounds: list[tuple[float, float]],
    starts: int,
    seed: int,
    broken: float,
    **fields: Any,
) -> None:
    low = np.array([b[0] for b in bounds], dtype=np.float32)
    high = np.array([b[0] + b[1] for b in bounds], dtype=np.float32)
    noise = seeded(seed + 1)

    def inside(actions: Tensor) -> bool:
        values = actions.numpy()
        return bool(((values >= low) & (values <= high)).all())

    def score(actions: Tensor) -> Tensor:
        assert inside(actions)
        value = torch.randn(actions.shape[:2], generator=noise)
        return value.masked_fill(torch.rand(value.shape, generator=noise) < broken, torch.nan)

    planner = kind(**fields)
    state, generator = planner.initial_state(starts, BoxActions(low, high)), seeded(seed)
    for _ in range(3):
        action, state, info = planner.plan(score, state, generator)
        assert action.shape == (starts, len(low))
        assert action.dtype == torch.float32
        assert inside(action)
        assert inside(state.mean)
        assert inside(state.elites)
        assert info.std.isfinite().all()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("horizon", 0),
        ("horizon", 2.5),
        ("population", -3),
        ("iterations", 0),
        ("elite_fraction", 0.0),
        ("elite_fraction", 1.5),
        ("elite_fraction", float("nan")),
        ("momentum", 1.0),
        ("momentum", -0.1),
        ("initial_std", 0.0),
        ("initial_std", float("inf")),
        ("noise_beta", -1.0),
        ("keep_fraction", 1.1),
        ("decay", 0.5),
    ],
)
@pytest.mark.parametrize("kind", PLANNERS)
def test_a_wrong_setting_is_named_with_what_came(kind: type[CEM], name: str, value: Any) -> None:
    with pytest.raises(InvalidInputError, match=rf"{name} must be .*; got {value}"):
        kind(**{name: value})


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("low", [0.0, 2.0], [1.0, 2.0]),
        ("low", [-float("inf")], [1.0]),
        ("high", [0.0], [float("nan")]),
        ("high", [0.0], [1.0, 2.0]),
        ("low", 0.0, 1.0),
        ("low", [], []),
    ],
)
def test_wrong_bounds_are_named(name: str, low: list[float], high: list[float]) -> None:
    with pytest.raises(InvalidInputError, match=f"planner: {name} must be"):
        CEM().initial_state(1, BoxActions(low, high))


def test_wrong_calls_are_named() -> None:
    planner = ICEM(horizon=3, population=10)
    state = planner.initial_state(2, BoxActions([-1.0], [1.0]))
    with pytest.raises(InvalidInputError, match=r"num_starts must be .*got 0"):
        planner.initial_state(0, BoxActions([-1.0], [1.0]))
    with pytest.raises(
        InvalidInputError, match=r"score\(actions\) must be .*\(2, 10\); got .*\(10,\)"
    ):
        planner.plan(lambda a: a.sum((0, 2, 3)), state, seeded())
    with pytest.raises(InvalidInputError, match=r"state\.mean must be \(2, 4, 1\)"):
        ICEM(horizon=4, population=10).plan(quadratic(torch.zeros(1)), state, seeded())
    with pytest.raises(InvalidInputError, match=r"state\.elites must be"):
        CEM(horizon=3).plan(quadratic(torch.zeros(1)), state, seeded())
    for mask in (torch.tensor([1, 0]), torch.tensor([True])):
        with pytest.raises(InvalidInputError, match="mask must be bool"):
            planner.reset(state, mask)


def test_doing_nothing_competes_where_every_candidate_costs() -> None:
    """Off centre: the middle of the box is not zero."""
    box = BoxActions(np.array([-1.0, 0.0]), np.array([3.0, 1.0]))

    def cost(actions: Tensor) -> Tensor:
        return -(actions - torch.tensor([1.0, 0.5])).square().sum((-1, -2))

    for add, best in ((True, True), (False, False)):
        planner = ICEM(horizon=10, population=20, iterations=2, add_middle=add)
        action, _, info = planner.plan(cost, planner.initial_state(2, box), seeded())
        assert bool((info.best_score == 0.0).all()) == best
        assert torch.equal(action, torch.tensor([[1.0, 0.5]] * 2)) == best
