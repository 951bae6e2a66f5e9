"""Imagined rollouts against plain loops and closed forms, on models whose numbers are known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Step
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.imagination.particles import imagined_returns, imagined_trajectories
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.models.regression import Regression
from mbrl_bilevel.policies import fast_inference
from mbrl_bilevel.policies.policies import GaussianPolicy
from mbrl_bilevel.policies.precision import Precision

LinearModel = Callable[..., DynamicsModel]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ends_softly(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return torch.sigmoid(next_obs[..., 0] - action[..., 0])


@pytest.fixture
def three_members(linear_model: LinearModel) -> DynamicsModel:
    """Three members that differ, a learned reward, a soft termination and a jump at it."""
    g = seeded(1)
    weight = 0.4 * torch.randn(3, 3, 3, generator=g)
    bias, std = 0.3 * torch.randn(3, 3, generator=g), torch.rand(3, 3, generator=g) + 0.1
    return linear_model(weight, bias, std, 2, termination=ends_softly, terminal_jump=-1.5)


@pytest.fixture
def plans() -> tuple[Tensor, Tensor]:
    """obs [S=4, O=2] and actions [S=4, N=5, H=6, A=1]."""
    g = seeded(2)
    return torch.randn(4, 2, generator=g), torch.randn(4, 5, 6, 1, generator=g)


def loop(model: DynamicsModel, obs: Tensor, actions: Tensor) -> np.ndarray:
    """The mean return over members, [S, N], one number at a time in float64."""
    weight = model.policy.network.last.weight.detach().double().numpy()
    bias = model.policy.network.last.bias.detach().double().numpy()[:, 0]
    found = np.zeros(actions.shape[:2])
    for s in range(actions.shape[0]):
        for n in range(actions.shape[1]):
            for e in range(model.members):
                state, alive, total = obs[s].double().numpy(), 1.0, 0.0
                for action in actions[s, n].double().numpy():
                    y = np.concatenate([state, action]) @ weight[e] + bias[e]
                    state = state + y[:2]
                    ended = 1.0 / (1.0 + math.exp(action[0] - state[0]))
                    total += alive * (y[2] + model.terminal_jump * ended)
                    alive *= 1.0 - ended
                found[s, n] += total / model.members
    return found


@pytest.mark.parametrize("particles", [3, 6])
def test_returns_are_those_of_a_plain_loop(
    three_members: DynamicsModel, plans: tuple[Tensor, Tensor], particles: int
) -> None:
    follow = Imagination(particles, "tsinf", sample=False)
    found = imagined_returns(three_members, *plans, follow, seeded())
    assert found.shape == (4, 5)
    np.testing.assert_allclose(found, loop(three_members, *plans), rtol=1e-4, atol=1e-5)


def test_a_certain_end_stops_the_count(linear_model: LinearModel) -> None:
    """Position grows by the action; 1 a step until it passes 2.5, and that step still counts."""
    model = linear_model(
        torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]),
        torch.tensor([[0.0, 1.0]]),
        torch.ones(1, 2),
        1,
        termination=lambda obs, action, next_obs: next_obs[..., 0] > 2.5,
    )
    actions = torch.tensor([1.0, 0.5, 0.0]).view(1, 3, 1, 1).expand(1, 3, 8, 1)
    follow = Imagination(1, sample=False)
    found = imagined_returns(model, torch.zeros(1, 1), actions, follow, seeded())
    assert found.tolist() == [[3.0, 6.0, 8.0]]


def test_ts1_with_members_alike_is_tsinf(
    linear_model: LinearModel, plans: tuple[Tensor, Tensor]
) -> None:
    g = seeded(3)
    weight = (0.3 * torch.randn(1, 3, 3, generator=g)).expand(3, -1, -1)
    bias, std = torch.randn(1, 3, generator=g).expand(3, -1), torch.ones(3, 3)
    model = linear_model(weight, bias, std, 2, termination=ends_softly)
    found = [
        imagined_returns(model, *plans, Imagination(6, kind, sample=False), seeded())
        for kind in ("ts1", "tsinf")
    ]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def counting_model(linear_model: LinearModel, members: int) -> DynamicsModel:
    """Member e adds e + 1 to the state at every step."""
    steps = torch.arange(1.0, members + 1).view(members, 1)
    bias = torch.cat([steps, torch.zeros(members, 1)], 1)
    return linear_model(torch.zeros(members, 2, 2), bias, torch.ones(members, 2), 1)


def members_followed(
    model: DynamicsModel, imagination: Imagination, generator: torch.Generator, horizon: int
) -> np.ndarray:
    """Which member moved each particle at each step, [P, H]."""
    obs, actions = torch.zeros(1, 1), torch.zeros(1, horizon, 1)
    states, _ = imagined_trajectories(model, obs, actions, imagination, generator)
    moves = torch.diff(states[:, 0, :, 0], dim=1, prepend=torch.zeros(len(states), 1))
    return moves.round().long().numpy() - 1


def test_ts1_draws_every_member_anew_at_every_step(linear_model: LinearModel) -> None:
    model, draws = counting_model(linear_model, 3), seeded(4)
    anew = Imagination(6, "ts1", sample=False)
    followed = np.stack([members_followed(model, anew, draws, 2) for _ in range(900)])
    # At each step every member moves its share of the particles ...
    assert all((np.bincount(row, minlength=3) == 2).all() for row in followed[:, :, 1])
    # ... and one particle's members at two steps are independent and uniform: 9 pairs alike.
    pairs = np.bincount(3 * followed[:, 0, 0] + followed[:, 0, 1], minlength=9)
    assert stats.chisquare(pairs).pvalue > 1e-3


def test_tsinf_keeps_the_member(linear_model: LinearModel) -> None:
    model = counting_model(linear_model, 3)
    keep = Imagination(6, "tsinf", sample=False)
    followed = members_followed(model, keep, seeded(), 5)
    assert (followed == followed[:, :1]).all()
    assert np.bincount(followed[:, 0]).tolist() == [2, 2, 2]


@pytest.mark.parametrize("particles", [3, 6])
def test_pessimism_takes_the_spread_of_the_members_off(
    linear_model: LinearModel, particles: int
) -> None:
    """Member e moves by (e + 1)·u a step and pays where it is: returns 3u, 6u, 9u after two steps,
    whose deviation is √6·|u|."""
    step = torch.arange(1.0, 4.0).view(3, 1, 1)
    weight = torch.cat(
        [
            torch.cat([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)], 2),
            torch.cat([step, step], 2),
        ],
        1,
    )
    model = linear_model(weight, torch.zeros(3, 2), torch.ones(3, 2), 1)
    u = torch.tensor([-2.0, 0.0, 0.5, 1.0])
    actions = u.view(1, 4, 1, 1).expand(1, 4, 2, 1)
    for pessimism in (0.0, 0.7, 2.0):
        follow = Imagination(particles, sample=False, pessimism=pessimism)
        found = imagined_returns(model, torch.zeros(1, 1), actions, follow, seeded())
        expected = 6.0 * u - pessimism * math.sqrt(6.0) * u.abs()
        torch.testing.assert_close(found[0], expected, rtol=1e-5, atol=1e-5)


def test_chance_that_all_members_share_is_no_reason_for_pessimism(
    linear_model: LinearModel,
) -> None:
    """Members alike: what is left is the deviation of a mean over a member's own draws."""
    model = linear_model(
        torch.zeros(2, 2, 2), torch.zeros(2, 2), torch.tensor([[1e-3, 1.0]]).expand(2, -1), 1
    )
    lost = []
    for particles in (2, 2000):
        wary, plain = (Imagination(particles, pessimism=p) for p in (1.0, 0.0))
        call = torch.zeros(1, 1), torch.zeros(1, 1, 4, 1)
        with_, without = (imagined_returns(model, *call, i, seeded(1)) for i in (wary, plain))
        lost.append(float(without - with_))
    assert 0.0 < lost[1] < 0.15 < lost[0]


@pytest.mark.parametrize("propagation", ["ts1", "tsinf"])
def test_variance_of_sampled_returns(linear_model: LinearModel, propagation: str) -> None:
    """s' = s + σε with reward s + ρη: Var Σ r = σ²(2² + 1²) + 3ρ² over three steps."""
    sigma, rho = 0.7, 0.4
    model = linear_model(
        torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]).expand(2, -1, -1),
        torch.zeros(2, 2),
        torch.tensor([[sigma, rho]]).expand(2, -1),
        1,
    )
    variance, mean = 5 * sigma**2 + 3 * rho**2, 3 * 2.0
    many = Imagination(20_000, propagation)
    _, reward = imagined_trajectories(
        model, torch.full((1, 1), 2.0), torch.zeros(1, 3, 1), many, seeded(5)
    )
    returns = reward[:, 0].sum(-1)
    assert returns.var().item() == pytest.approx(variance, rel=0.05)  # 5 standard errors
    assert returns.mean().item() == pytest.approx(mean, abs=5 * math.sqrt(variance / 20_000))
    # The mean over P particles varies by a P-th of that.
    few, draws = Imagination(4, propagation), seeded(6)
    means = torch.cat(
        [
            imagined_returns(model, torch.full((1, 1), 2.0), torch.zeros(1, 1, 3, 1), few, draws)
            for _ in range(800)
        ]
    )
    assert means.var().item() == pytest.approx(variance / 4, rel=0.2)  # 4 standard errors


@pytest.mark.parametrize("propagation", ["ts1", "tsinf"])
def test_candidates_share_their_noise(
    three_members: DynamicsModel, plans: tuple[Tensor, Tensor], propagation: str
) -> None:
    obs, actions = plans
    twice = torch.cat([actions, actions[:, :2]], 1)
    imagination = Imagination(6, propagation)
    found = imagined_returns(three_members, obs, twice, imagination, seeded(7))
    torch.testing.assert_close(found[:, 5:], found[:, :2], rtol=1e-6, atol=1e-6)
    # Their common draws are draws: another generator gives other returns.
    other = imagined_returns(three_members, obs, twice, imagination, seeded(8))
    assert (found - other).abs().min() > 1e-4
    again = imagined_returns(three_members, obs, twice, imagination, seeded(7))
    assert torch.equal(found, again)


def test_a_terminal_value_counts_where_the_episode_is_alive(
    three_members: DynamicsModel, plans: tuple[Tensor, Tensor]
) -> None:
    """Against imagined states and their survival, one particle and step at a time."""

    def value(obs: Tensor) -> Tensor:
        return 3.0 + obs[..., 0] - 0.5 * obs[..., 1].square()

    obs, actions = plans
    follow = Imagination(3, sample=False)
    found = imagined_returns(three_members, obs, actions, follow, seeded(), value)
    rewards = imagined_returns(three_members, obs, actions, follow, seeded())
    flat = actions.reshape(20, 6, 1)
    states, _ = imagined_trajectories(
        three_members, obs.repeat_interleave(5, 0), flat, follow, seeded()
    )
    alive = torch.sigmoid(flat[..., 0] - states[..., 0]).prod(2)
    added = (alive * value(states[:, :, -1])).mean(0).reshape(4, 5)
    assert added.abs().max() > 1e-3
    torch.testing.assert_close(found - rewards, added, rtol=1e-4, atol=1e-5)


def test_no_value_lies_beyond_a_certain_end(linear_model: LinearModel) -> None:
    model = linear_model(
        torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]),
        torch.tensor([[0.0, 1.0]]),
        torch.ones(1, 2),
        1,
        termination=lambda obs, action, next_obs: next_obs[..., 0] > 2.5,
    )
    actions = torch.tensor([1.0, 0.5, 0.25]).view(1, 3, 1, 1).expand(1, 3, 8, 1)
    follow = Imagination(1, sample=False)
    found = imagined_returns(
        model, torch.zeros(1, 1), actions, follow, seeded(), lambda obs: 10.0 * obs[..., 0]
    )
    assert found.tolist() == [[3.0, 6.0, 8.0 + 20.0]]


@pytest.mark.parametrize("discount", [0.0, 0.8, 0.99, 1.0])
def test_a_constant_reward_and_value_are_discounted_as_a_geometric_series(
    linear_model: LinearModel, discount: float
) -> None:
    """Reward 1 a step and V = 10 behind: (1 − γⁿ) / (1 − γ) + 10 γⁿ over n steps without an end; where
    the third step is an end, 1 + γ + γ² alone."""
    model = linear_model(
        torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]),
        torch.tensor([[0.0, 1.0]]),
        torch.ones(1, 2),
        1,
        termination=lambda obs, action, next_obs: next_obs[..., 0] > 2.5,
    )
    follow, gamma = Imagination(1, sample=False), discount
    for horizon in (1, 5, 12):
        actions = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1).expand(1, 2, horizon, 1)
        found = imagined_returns(
            model,
            torch.zeros(1, 1),
            actions,
            follow,
            seeded(),
            lambda obs: torch.full_like(obs[..., 0], 10.0),
            gamma,
        )
        series = horizon if gamma == 1.0 else (1.0 - gamma**horizon) / (1.0 - gamma)
        lasting = series + 10.0 * gamma**horizon
        ended = 1.0 + gamma + gamma**2 if horizon > 3 else lasting
        assert found.flatten().tolist() == pytest.approx([lasting, ended], rel=1e-5)


def test_discounting_is_an_end_by_chance_that_the_value_shares(
    three_members: DynamicsModel, plans: tuple[Tensor, Tensor]
) -> None:
    """γ beside a soft end is a survival of γ(1 − p): the same as a rule that says 1 − γ(1 − p)."""

    def sooner(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return 1.0 - 0.7 * (1.0 - ends_softly(obs, action, next_obs))

    def value(obs: Tensor) -> Tensor:
        return 2.0 + obs[..., 0]

    follow, model = Imagination(3, sample=False), replace(three_members, terminal_jump=0.0)
    found = imagined_returns(model, *plans, follow, seeded(), value, 0.7)
    other = replace(model, termination=sooner)
    expected = imagined_returns(other, *plans, follow, seeded(), value)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - imagined_returns(model, *plans, follow, seeded(), value)).abs().min() > 1e-3


@pytest.mark.parametrize("propagation", ["ts1", "tsinf"])
@pytest.mark.parametrize("sample", [True, False])
def test_starts_side_by_side_are_starts_one_by_one(
    three_members: DynamicsModel,
    plans: tuple[Tensor, Tensor],
    propagation: str,
    sample: bool,
) -> None:
    obs, actions = plans
    imagination = Imagination(6, propagation, sample)
    together = imagined_returns(three_members, obs, actions, imagination, seeded(9))
    alone = [
        imagined_returns(three_members, obs[[s]], actions[[s]], imagination, seeded(9))
        for s in range(4)
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


def test_trajectories_are_those_of_the_steps(three_members: DynamicsModel) -> None:
    g = seeded(10)
    obs, actions = torch.randn(7, 2, generator=g), torch.randn(7, 4, 1, generator=g)
    follow = Imagination(3, sample=False)
    states, rewards = imagined_trajectories(three_members, obs, actions, follow, seeded())
    assert states.shape == (3, 7, 4, 2)
    assert rewards.shape == (3, 7, 4)
    state = obs.expand(3, -1, -1)
    for h in range(4):
        step = three_members.step(state, actions[:, h].expand(3, -1, -1))
        torch.testing.assert_close(states[:, :, h], step.next_obs.detach())
        torch.testing.assert_close(rewards[:, :, h], step.reward.detach())
        state = step.next_obs


@pytest.mark.parametrize("propagation", ["ts1", "tsinf"])
def test_nan_is_never_a_number(three_members: DynamicsModel, propagation: str) -> None:
    g = seeded(11)
    obs, actions = torch.randn(3, 2, generator=g), torch.randn(3, 4, 5, 1, generator=g)
    imagination = Imagination(3, propagation)
    obs[1, 0] = torch.nan
    actions[2, 3, 4, 0] = torch.nan  # in the last step of one candidate
    found = imagined_returns(three_members, obs, actions, imagination, seeded()).isfinite()
    expected = torch.ones(3, 4, dtype=torch.bool)
    expected[1], expected[2, 3] = False, False
    assert torch.equal(found, expected)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("ends", [True, False])
def test_one_broken_member_breaks_the_return(
    linear_model: LinearModel, bad: float, ends: bool
) -> None:
    """Even where the reward does not look at the state, or the episode ends at once."""
    model = linear_model(
        torch.ones(2, 2, 1),
        torch.zeros(2, 1),
        torch.ones(2, 1),
        1,
        termination=lambda obs, action, next_obs: ~(next_obs[..., 0].abs() < 1e6) & ends,
        reward=lambda obs, action, next_obs: -action[..., 0].square(),
    )
    with torch.no_grad():
        model.policy.network.last.bias[1] = bad
    actions = torch.ones(1, 2, 3, 1)
    found = imagined_returns(model, torch.zeros(1, 1), actions, Imagination(2), seeded())
    assert not found.isfinite().any()


@pytest.fixture(scope="module")
def network() -> DynamicsModel:
    """A network of the usual width that moves its state by about a tenth of its spread a step."""
    policy = GaussianPolicy(4, 4, generator=seeded(12), members=3, hidden=(200, 200))
    policy.set_std(torch.full((4,), 0.5))
    flat = torch.zeros(4, dtype=torch.bool)
    scale = torch.tensor([0.1, 0.1, 0.1, 1.0])
    inputs = Normaliser(torch.tensor([5.0, 0.0, -3.0, 0.0]), torch.ones(4), flat)
    targets = Normaliser(torch.tensor([0.0, 0.0, 0.0, 1.0]), scale, flat)
    return DynamicsModel(Regression(policy, inputs, targets), 3)


def test_plans_rank_alike_in_bfloat16(network: DynamicsModel) -> None:
    """Scores agree to 3 % of their spread, and so do the elites that a planner would keep."""
    g = seeded(13)
    obs = torch.tensor([[5.0, 0.0, -3.0]])
    actions = 2.0 * torch.rand(1, 300, 15, 1, generator=g) - 1.0
    exact, rough = (
        imagined_returns(network, obs, actions, Imagination(6, precision=precision), seeded(14))[0]
        for precision in ("float32", "bfloat16")
    )
    assert not torch.equal(exact, rough)
    assert (exact - rough).std() < 0.03 * exact.std()
    best = exact.topk(30).values.mean()
    chosen = exact[rough.topk(30).indices].mean()
    assert best - chosen < 0.01 * exact.std()


def test_bfloat16_adds_up_in_float32(network: DynamicsModel) -> None:
    """Far from zero bfloat16 could not hold a step: at 1000 its neighbours are 4 apart."""
    inputs = replace(network.inputs, shift=torch.tensor([1000.0, 0.0, 0.0, 0.0]))
    far = replace(network, regression=replace(network.regression, inputs=inputs))
    obs, actions = torch.tensor([[1000.0, 0.0, 0.0]]), torch.ones(1, 5, 1)
    exact, rough = (
        imagined_trajectories(
            far, obs, actions, Imagination(3, sample=False, precision=precision), seeded()
        )[0]
        for precision in ("float32", "bfloat16")
    )
    moved = (exact - obs.unsqueeze(1)).abs().amax()
    assert 0.0 < (exact - rough).abs().amax() < 0.03 * moved


@pytest.mark.parametrize("fastest", ["float32", "bfloat16"])
def test_auto_is_what_was_measured(
    network: DynamicsModel, monkeypatch: pytest.MonkeyPatch, fastest: Precision
) -> None:
    monkeypatch.setattr(fast_inference, "fastest_precision", lambda: fastest)
    obs, actions = torch.zeros(1, 3), torch.ones(1, 2, 4, 1)
    auto, named = Imagination(3, precision="auto"), Imagination(3, precision=fastest)
    assert auto.settled() == named
    found = [imagined_returns(network, obs, actions, i, seeded()) for i in (auto, named)]
    assert torch.equal(*found)


@pytest.mark.parametrize("particles", [1, 2, 4, 5])
def test_members_must_divide_the_particles(
    three_members: DynamicsModel, plans: tuple[Tensor, Tensor], particles: int
) -> None:
    with pytest.raises(InvalidInputError, match=f"multiple of the model's 3 members.*{particles}"):
        imagined_returns(three_members, *plans, Imagination(particles), seeded())


def test_settings_are_checked() -> None:
    with pytest.raises(InvalidInputError, match='"ts1" or "tsinf"'):
        Imagination(5, "ts2")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match='precision must be "float32"'):
        Imagination(5, precision="half")  # type: ignore[arg-type]
    with pytest.raises(
        InvalidInputError, match="particles must be an int from 1 to 100,000; got 0"
    ):
        Imagination(0)
    for wrong in (-0.1, math.inf, math.nan):
        with pytest.raises(InvalidInputError, match="pessimism must be finite and >= 0"):
            Imagination(pessimism=wrong)
    with pytest.raises(InvalidInputError, match='pessimism needs propagation "tsinf"'):
        Imagination(propagation="ts1", pessimism=1.0)


@pytest.mark.parametrize(
    ("obs", "actions"),
    [((2,), (1, 3, 4, 1)), ((2, 2), (3, 3, 4, 1)), ((1, 2), (3, 4, 1)), ((1, 3), (1, 3, 4, 1))],
)
def test_shapes_are_checked(
    three_members: DynamicsModel, obs: tuple[int, ...], actions: tuple[int, ...]
) -> None:
    with pytest.raises(InvalidInputError, match="obs must be"):
        imagined_returns(
            three_members, torch.zeros(obs), torch.zeros(actions), Imagination(3), seeded()
        )


class Counting:
    """Like ``model``, and counts the rows that its members step."""

    def __init__(self, model: DynamicsModel, count: list[int]) -> None:
        self.model, self.count = model.frozen(), count
        self.members, self.device, self.noise_width = model.members, model.device, model.noise_width
        self.obs_dim, self.action_dim = model.obs_dim, model.action_dim

    def frozen(self, device: object = None, precision: Precision = "float32") -> Counting:
        return self

    def only(self, members: Sequence[int]) -> Counting:
        return Counting(self.model.only(members), self.count)

    def step(self, obs: Tensor, action: Tensor, noise: Tensor | None = None) -> Step:
        self.count[0] += math.prod(action.shape[:-1])
        return self.model.step(obs, action, noise)


@pytest.mark.parametrize("pessimism", [0.0, 0.5])
def test_all_members_judge_what_one_finds_best(
    three_members: DynamicsModel, plans: tuple[Tensor, Tensor], pessimism: float
) -> None:
    follow = Imagination(3, sample=False, pessimism=pessimism)
    count = [0]
    screened = replace(follow, screen=0.4)  # two of five
    found = imagined_returns(Counting(three_members, count), *plans, screened, seeded())
    assert count == [4 * 6 * (5 + 2 * 3)]
    judge = int(torch.randint(3, (), generator=seeded()))
    alone = imagined_returns(
        three_members.only([judge]), *plans, Imagination(1, sample=False), seeded()
    )
    whole = imagined_returns(three_members, *plans, follow, seeded())
    best = alone.topk(2, dim=1).indices
    torch.testing.assert_close(found.gather(1, best), whole.gather(1, best))
    dropped = torch.ones_like(found).scatter(1, best, 0.0).bool()
    least = found.gather(1, best).amin(1, keepdim=True)
    assert bool((found <= least + 1e-6)[dropped].all())
    # Below these, as the one ranks them.
    behind = (least - found)[dropped]
    expected = (alone.gather(1, best).amin(1, keepdim=True) - alone)[dropped]
    torch.testing.assert_close(behind, expected, rtol=1e-4, atol=1e-5)


def test_a_candidate_that_is_not_finite_is_not_screened_in(
    three_members: DynamicsModel, plans: tuple[Tensor, Tensor]
) -> None:
    obs, actions = plans
    actions = actions.clone()
    actions[0, 1], actions[1] = torch.nan, torch.inf
    screened = Imagination(3, sample=False, screen=0.4)
    found = imagined_returns(three_members, obs, actions, screened, seeded())
    assert found.isfinite().sum(1).tolist() == [4, 0, 5, 5]


def test_no_screen_draws_nothing(
    three_members: DynamicsModel, plans: tuple[Tensor, Tensor]
) -> None:
    whole, one = seeded(), seeded()
    full = imagined_returns(three_members, *plans, Imagination(6), whole)
    one_model = three_members.only([1])
    both = [
        imagined_returns(one_model, *plans, Imagination(6, screen=s), seeded()) for s in (1.0, 0.2)
    ]
    assert torch.equal(*both)  # one member has nobody to be judged by
    torch.testing.assert_close(
        full, imagined_returns(three_members, *plans, Imagination(6, screen=0.99), one)
    )
    assert torch.equal(whole.get_state(), one.get_state())


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"screen": 0.0}, "screen must be above 0"),
        ({"screen": 1.5}, "screen must be above 0"),
        ({"screen": 0.5, "propagation": "ts1"}, 'screen needs propagation "tsinf"'),
    ],
)
def test_refuses_a_screen(how: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Imagination(**how)
