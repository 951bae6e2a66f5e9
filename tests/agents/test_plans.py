"""Plans beside a policy: its proposals in the search, around the first of them, its critics behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.planners import CEM, ICEM, MPPI, Planner, RandomShooting
from agents.planners.actions import ActionSet, BoxActions, DiscreteActions
from agents.planners.replanning import replan
from agents.planning_agent.plans import Plans, propose
from agents.planning_agent.settings import PlanningSettings
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Step
from mbrl_bilevel.imagination.settings import Imagination

BOX = BoxActions([-1.0, -2.0], [1.0, 3.0])
SEARCHES: list[Planner] = [
    MPPI(horizon=6, population=40, iterations=6, temperature=0.1),
    MPPI(horizon=6, population=40, iterations=6, temperature=0.1, elite_fraction=0.2),
    CEM(horizon=6, population=40, iterations=6, elite_fraction=0.02),
    ICEM(horizon=6, population=40, iterations=2),
    RandomShooting(horizon=6, population=40),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Leaky:
    """Two members, x' = c·x + a and reward 2 − x'², c = 0.5 and 0.9; ends beyond x' > ``ends``."""

    members, obs_dim, action_dim, noise_width = 2, 1, 1, 0
    device = torch.device("cpu")
    keeps = torch.tensor([0.5, 0.9]).view(2, 1, 1)

    def __init__(self, ends: float = np.inf) -> None:
        self.ends = ends

    def frozen(self, device: Any = None, precision: Any = None) -> Leaky:
        return self

    def step(self, obs: Tensor, action: Tensor, noise: Any = None) -> Step:
        keeps = self.keeps.reshape(2, *[1] * (obs.ndim - 1))
        after = keeps * obs + action
        ended = (after[..., 0] > self.ends).float()
        return Step(after, 2.0 - after[..., 0].square(), ended)


class Leading:
    """A policy a = −x / 4, with noise of 0.1 where it draws; V(x) = 5 − 3x, γ = 0.8."""

    exists, discount = True, 0.8

    def act(self, obs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        guess = -obs / 4.0
        if generator is None:
            return guess
        return guess + 0.1 * torch.randn(guess.shape, generator=generator)

    def value(self, obs: Tensor) -> Tensor:
        return 5.0 - 3.0 * obs[..., 0]


def settings_of(planner: Planner, **more: Any) -> PlanningSettings:
    imagination = Imagination(2, sample=False)
    more = {"replan_every": 1, **more}
    return PlanningSettings(planner=planner, members=2, imagination=imagination, **more)


@pytest.mark.parametrize("actions", [BOX, DiscreteActions(5)])
@pytest.mark.parametrize("planner", SEARCHES)
def test_an_optimum_that_is_proposed_is_found(planner: Planner, actions: ActionSet) -> None:
    """Of each start its own; a single sequence that pays, and nothing that leads to it."""
    g = seeded(3)
    proposals = actions.uniform((3, 4, 6), g)
    best = proposals[:, 2]

    def score(candidates: Tensor) -> Tensor:
        far = (candidates - best[:, None]).abs().sum((-1, -2))
        return torch.where(far < 1e-6, 100.0, -1.0)

    fresh = planner.initial_state(3, actions)
    action, after, info = planner.plan(score, fresh, seeded(), proposals)
    torch.testing.assert_close(action, best[:, 0], atol=1e-4, rtol=0)
    if not isinstance(planner, ICEM):  # its μ lags behind the sequence that it executes
        chosen = actions.chosen(after.mean[:, :5])
        torch.testing.assert_close(chosen, best[:, 1:], atol=1e-4, rtol=0)
    assert info.best_score.tolist() == [100.0] * 3
    _, _, alone = planner.plan(score, fresh, seeded())
    assert bool((alone.best_score < 0.0).all())


@pytest.mark.parametrize("shape", [(2, 4, 6, 2), (3, 4, 5, 2), (3, 4, 6, 1), (3, 6, 2)])
@pytest.mark.parametrize("planner", SEARCHES)
def test_proposals_of_another_shape_are_refused(planner: Planner, shape: tuple[int, ...]) -> None:
    words = r"proposals must be \[S, M, H, A\] with S, H, A = \(3, 6, 2\); got shape"
    with pytest.raises(InvalidInputError, match=words):
        planner.plan(
            lambda actions: actions.sum((-1, -2)),
            planner.initial_state(3, BOX),
            seeded(),
            torch.zeros(shape),
        )


def test_only_the_elite_is_weighed() -> None:
    """The best quarter by hand, λ in their own standard deviations (TD-MPC, eq. 4)."""
    seen: list[Tensor] = []

    def score(actions: Tensor) -> Tensor:
        seen.append(actions.clone())
        return -(actions - 0.3).square().sum((-1, -2))

    planner = MPPI(horizon=2, population=32, iterations=1, temperature=0.7, elite_fraction=0.25)
    proposals = BOX.uniform((1, 8, 2), seeded(5))
    action, after, _ = planner.plan(score, planner.initial_state(1, BOX), seeded(), proposals)
    candidates = seen[0][0].double().numpy()
    assert len(candidates) == 40
    returns = -np.square(candidates - 0.3).sum((1, 2))
    elite = np.argsort(-returns)[:10]  # a quarter of all 40
    weights = np.exp((returns[elite] - returns.max()) / (0.7 * returns[elite].std()))
    expected = np.einsum("n,nha->ha", weights / weights.sum(), candidates[elite])
    np.testing.assert_allclose(action[0], expected[0], atol=1e-5)
    np.testing.assert_allclose(after.mean[0, 0], expected[1], atol=1e-5)


def test_a_first_plan_is_searched_around_the_first_proposal() -> None:
    """Of the starts without a plan; the others go on from theirs."""
    seen: list[Tensor] = []

    def score(actions: Tensor) -> Tensor:
        seen.append(actions.clone())
        return actions.sum((-1, -2))

    planner = CEM(horizon=4, population=4000, iterations=1, initial_std=0.02)
    state = planner.initial_state(3, BOX)
    state = replace(state, mean=0.5 * BOX.uniform((3, 4), seeded(1)))
    proposals = 0.5 * BOX.uniform((3, 2, 4), seeded(2))
    age = torch.tensor([0, 1, 5])
    replan(planner, 1, lambda rows: (score, proposals[rows]), state, age, seeded())
    middles = seen[0][:, :4000].mean(1)
    around = torch.stack([proposals[0, 0], state.mean[1], state.mean[2]])
    torch.testing.assert_close(middles, around, atol=4e-3, rtol=0)
    assert (proposals[:, 0] - state.mean).abs().amax((1, 2)).min() > 0.1  # told apart
    assert torch.equal(seen[0][:, 4000:], proposals)


def test_the_policy_proposes_what_it_would_do_in_the_members_mean() -> None:
    obs = torch.tensor([[1.0], [-2.0]])
    found = propose(Leaky(), Leading(), obs, 3, 4, seeded())  # type: ignore[arg-type]
    assert found.shape == (2, 3, 4, 1)
    # The mean of x' = c·x − x / 4 over c = 0.5 and 0.9 is 0.45 x.
    expected = -0.25 * obs[:, None] * 0.45 ** torch.arange(4.0)[None, :, None]
    torch.testing.assert_close(found[:, 0], expected)
    for drawn in (found[:, 1], found[:, 2]):
        gap = (drawn - expected).abs()
        assert bool((gap > 1e-4).all())
        assert gap.max() < 0.5
    again = propose(Leaky(), Leading(), obs, 3, 4, seeded())  # type: ignore[arg-type]
    assert torch.equal(found, again)


def acted(
    settings: PlanningSettings, obs: Tensor, policy: Any, value: Any = None, ends: float = np.inf
) -> Tensor:
    plans = Plans(BoxActions([-1.0], [1.0]), policy, torch.device("cpu"))
    memory = plans.fresh(settings, len(obs), 0)
    action, _ = plans.act(settings, Leaky(ends), value, obs, memory, None, False)
    return action


def best_by_hand(obs: float, gamma: float, slope: float) -> float:
    """argmax over a of the mean over members of 2 − (cx + a)² + γ (5 + slope · (cx + a))."""
    kept = np.array([0.5, 0.9]) * obs
    return float(np.clip(gamma * slope / 2.0 - kept.mean(), -1.0, 1.0))


def test_the_critics_stand_behind_the_horizon_discounted() -> None:
    obs = torch.tensor([[0.4], [-0.7]])
    planner = RandomShooting(horizon=1, population=20_000)
    critic = settings_of(planner, proposals=0, value="critic")
    wanted = [[best_by_hand(x, 0.8, -3.0)] for x in (0.4, -0.7)]
    assert wanted[1][0] > -0.95  # within the bounds, or the discount would say nothing
    found = acted(critic, obs, Leading())
    torch.testing.assert_close(found, torch.tensor(wanted), atol=0.01, rtol=0)
    none = acted(replace(critic, value=None), obs, Leading())
    wanted = [[best_by_hand(x, 1.0, 0.0)] for x in (0.4, -0.7)]
    torch.testing.assert_close(none, torch.tensor(wanted), atol=0.01, rtol=0)


def test_a_fitted_value_stands_there_undiscounted() -> None:
    obs = torch.tensor([[0.4], [-0.7]])
    planner = RandomShooting(horizon=1, population=20_000)
    fitted = settings_of(planner, proposals=0, value=None)

    class Rising:
        low = torch.zeros(1)

        def to(self, device: Any) -> Rising:
            return self

        def __call__(self, obs: Tensor) -> Tensor:
            return 5.0 + 1.5 * obs[..., 0]

    found = acted(fitted, obs, Leading(), Rising())
    wanted = [[best_by_hand(x, 1.0, 1.5)] for x in (0.4, -0.7)]
    torch.testing.assert_close(found, torch.tensor(wanted), atol=0.01, rtol=0)


def test_rewards_before_the_horizon_are_discounted_too() -> None:
    """Two steps without an end, the second one's reward and the value worth γ and γ²."""
    obs = torch.tensor([[0.6]])
    planner = RandomShooting(horizon=2, population=60_000)
    found = acted(settings_of(planner, proposals=0, value="critic"), obs, Leading())
    grid = torch.linspace(-1.0, 1.0, 201)
    first, second = torch.meshgrid(grid, grid, indexing="ij")
    total = torch.zeros(201, 201)
    for c in (0.5, 0.9):
        x = c * 0.6 + first
        y = c * x + second
        total += 2.0 - x.square() + 0.8 * (2.0 - y.square()) + 0.64 * (5.0 - 3.0 * y)
    best = grid[int(total.argmax()) // 201].item()
    assert abs(best) < 0.95
    assert found.item() == pytest.approx(best, abs=0.08)


def test_an_agent_plans_around_its_policy() -> None:
    """A search too small to find anything follows the policy; without proposals it does not."""
    obs = torch.tensor([[3.0], [-2.0]])
    planner = MPPI(horizon=3, population=2, iterations=1, std=1e-4)
    followed = acted(settings_of(planner, proposals=1, value=None), obs, Leading())
    torch.testing.assert_close(followed, -obs / 4.0, atol=1e-3, rtol=0)
    alone = acted(settings_of(planner, proposals=0, value=None), obs, Leading())
    torch.testing.assert_close(alone, torch.zeros(2, 1), atol=1e-3, rtol=0)


def test_a_policy_that_is_none_proposes_nothing() -> None:
    class Nobody(Leading):
        exists = False

    planner = MPPI(horizon=3, population=2, iterations=1, std=1e-4)
    settings = settings_of(planner, proposals=5, value="critic")
    found = acted(settings, torch.tensor([[3.0]]), Nobody())
    torch.testing.assert_close(found, torch.zeros(1, 1), atol=1e-3, rtol=0)
