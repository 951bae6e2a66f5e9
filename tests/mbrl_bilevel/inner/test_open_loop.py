"""Segments and open-loop rollouts: against a rollout in raw units, and what looking ahead corrects."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch, Transitions
from mbrl_bilevel.data.splits import Chain, FitData, Folds, successors
from mbrl_bilevel.inner.losses import MSE, KStep, PolicyGradient
from mbrl_bilevel.inner.open_loop import open_loop
from mbrl_bilevel.inner.rewards import Mahalanobis
from mbrl_bilevel.inner.shifted_reward import AffineShift, Shifted
from mbrl_bilevel.models.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.outer.held_out_shift import HeldOutShift
from mbrl_bilevel.outer.implicit import FisherImplicit
from mbrl_bilevel.outer.objectives import KStepMSE
from mbrl_bilevel.outer.problem import Problem, Theta, Warm
from mbrl_bilevel.policies.distributions import DiagonalGaussian
from mbrl_bilevel.policies.policies import (
    CategoricalPolicy,
    FullGaussianPolicy,
    GaussianPolicy,
    Policy,
)
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule

#: A swing with friction, pushed: next = state @ A.T + B·action.
A = np.array([[1.0, 0.3], [-0.3, 0.86]])
B = np.array([0.0, 0.3])


def swings(episodes: int, length: int, noise: float, seed: int) -> tuple[Transitions, npt.NDArray]:
    """What is observed, with ``noise`` on every observation, and the true states [N, L + 1, 2]."""
    g = np.random.default_rng(seed)
    states = np.zeros((episodes, length + 1, 2))
    states[:, 0] = g.normal(size=(episodes, 2))
    action = g.uniform(-1.0, 1.0, size=(episodes, length, 1))
    for t in range(length):
        states[:, t + 1] = states[:, t] @ A.T + action[:, t] * B
    seen = (states + noise * g.normal(size=states.shape)).astype(np.float32)
    rows, off = episodes * length, np.zeros(episodes * length, dtype=np.bool_)
    return (
        Transitions(
            seen[:, :-1].reshape(rows, 2),
            action.reshape(rows, 1).astype(np.float32),
            np.zeros(rows, dtype=np.float32),
            seen[:, 1:].reshape(rows, 2),
            off,
            off,
            np.repeat(np.arange(episodes), length),
            np.tile(np.arange(length), episodes),
        ),
        states,
    )


def test_successors_by_hand() -> None:
    episode = np.array([7, 7, 7, 3, 3, 3, 3])
    t = np.array([1, 0, 2, 0, 1, 3, 4])
    groups = np.array([0, 0, 0, 1, 1, 1, 2])
    # 7: rows 1, 0, 2 in time; 3: a gap after row 4, and row 6 is on another side of the split.
    np.testing.assert_array_equal(successors(episode, t, groups), [2, 0, -1, 4, -1, -1, -1])
    groups[:3] = -1  # rows of no group
    np.testing.assert_array_equal(successors(episode, t, groups)[:3], [-1, -1, -1])


def chained(horizon: int) -> FitData:
    """Five rows of one state, one action and a reward target; 0 → 1 → 2 and 3 → 4."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(5, 2, generator=g), torch.randn(5, 2, generator=g)
    successor = torch.tensor([1, 2, -1, 4, -1])
    chain = Chain(successor, torch.tensor([[2.0], [0.0]]), torch.tensor([0.5]), horizon)
    rows = (np.arange(5),)
    return FitData(x, y, Folds(rows, rows, rows), chain)


def test_a_segment_holds_what_followed() -> None:
    data = chained(3)
    segment = data.sample(data.folds.train).segment
    assert segment is not None
    assert segment.horizon == 3
    there = [[1, 1, 1, 1, 1], [1, 1, 0, 1, 0], [1, 0, 0, 0, 0]]
    assert segment.there[:, 0].tolist() == there
    for t, rows in enumerate([[0, 1, 2, 3, 4], [1, 2, 2, 4, 4], [2, 2, 2, 4, 4]]):
        assert torch.equal(segment.x[t, 0], data.x[rows])
        assert torch.equal(segment.y[t, 0], data.y[rows])


def test_an_imagined_step_and_the_target_that_undoes_an_error() -> None:
    batch = chained(2).sample((np.array([0]),))
    segment = batch.segment
    assert segment is not None
    y = torch.tensor([[[1.0, 9.0]]])
    moved = segment.moved(batch.x, y, 0)
    expected = [batch.x[0, 0, 0].item() + 2.0 + 0.5, segment.x[1, 0, 0, 1].item()]
    assert moved[0, 0].tolist() == pytest.approx(expected)
    # From a state that is 1 too far the state's target is ½ less; the reward's stays.
    ahead = batch.x + torch.tensor([1.0, 0.0])
    wanted = segment.target_from(ahead, 0)
    torch.testing.assert_close(wanted, batch.y - torch.tensor([0.5, 0.0]))
    landed, truth = segment.moved(ahead, wanted, 0), segment.moved(batch.x, batch.y, 0)
    torch.testing.assert_close(landed, truth)


def test_one_step_is_squared_error() -> None:
    data = chained(1)
    policy = GaussianPolicy(2, 2, generator=torch.Generator().manual_seed(1), members=1)
    batch = data.sample(data.folds.train)
    one, _ = KStep()(policy, batch, torch.Generator())
    two, _ = MSE()(policy, batch, torch.Generator())
    torch.testing.assert_close(one, two)


def fitted(name: str, data: Transitions, steps: int = 300, every: int = 20) -> DynamicsModel:
    schedule = Schedule(steps=steps, learning_rate=2e-2, evaluate_every=every)
    return fit_dynamics(
        data,
        METHODS[name],
        generator=torch.Generator().manual_seed(0),
        members=2,
        hidden=(),
        schedule=schedule,
    )[0]


def test_rollouts_are_those_of_raw_units() -> None:
    """Through normalisers, a constant dimension and the chain, against a loop over ``model.step``."""
    data, _ = swings(20, 6, 0.1, seed=0)
    seen: list[Batch] = []

    def spy(policy: Policy, batch: Batch) -> Tensor:
        seen.append(batch)
        return KStepMSE()(policy, batch)

    still = replace(
        data,
        obs=np.concatenate([data.obs, np.ones((120, 1), np.float32)], 1),
        next_obs=np.concatenate([data.next_obs, np.ones((120, 1), np.float32)], 1),
    )
    model, _ = fit_dynamics(
        still,
        replace(METHODS["k-step"], criterion=spy),
        generator=torch.Generator().manual_seed(0),
        members=2,
        hidden=(),
        schedule=Schedule(steps=20, evaluate_every=20),
    )
    assert model.active.tolist() == [True, True, False, False]
    batch = seen[-1]
    found = torch.stack(
        [a.mean((a.dist.mean - a.target).square()[..., 0]) for a in open_loop(model.policy, batch)]
    )
    segment = batch.segment
    assert segment is not None
    obs = model.inputs.denormalise(batch.x)[..., :3]
    assert batch.weight is not None
    with torch.no_grad():
        for t in range(segment.horizon):
            raw = model.inputs.denormalise(segment.x[t])
            obs = model.step(obs, raw[..., 3:]).next_obs
            truth = (
                raw[..., :3]
                + model.targets.denormalise(
                    torch.cat([segment.y[t], torch.zeros_like(segment.y[t])], -1)
                )[..., :3]
            )
            error = ((obs - truth) / model.targets.scale[:3])[..., 0].square()
            weight = batch.weight * segment.there[t]
            expected = (error * weight).sum(-1) / weight.sum(-1)
            torch.testing.assert_close(found[t], expected, rtol=1e-3, atol=1e-5)


def linear_problem() -> tuple[Problem, Tensor, Tensor]:
    """A linear policy at the least-squares fit of y + b(x), where θ*(φ) is known: W_ols + unit·W_φ."""
    g = torch.Generator().manual_seed(0)
    rows = 60
    x, y = torch.randn(rows, 2, generator=g).double(), torch.randn(rows, 1, generator=g).double()
    successor = torch.cat([torch.arange(1, rows), torch.tensor([-1])])
    gain, drift = torch.tensor([[0.7]]).double(), torch.tensor([0.1]).double()
    whole = (np.arange(rows),)
    data = FitData(x, y, Folds(whole, whole, whole), Chain(successor, gain, drift, 3))
    reward = Mahalanobis(1, initial=0.5).requires_grad_(False)
    loss = PolicyGradient(Shifted(reward, AffineShift(2, 1, unit=1.0))).double()
    policy = GaussianPolicy(2, 1, generator=g, members=1, hidden=()).double()
    batch = data.sample(whole)
    ones = torch.cat([x, torch.ones(rows, 1).double()], 1)
    ols = torch.linalg.lstsq(ones, y).solution
    return Problem(policy, loss, batch, batch, KStepMSE()), ols[:2], ols[2]


def at_optimum(problem: Problem, weight: Tensor, bias: Tensor) -> float:
    with torch.no_grad():
        layer = problem.policy.network.last
        layer.weight.copy_(weight.unsqueeze(0))
        layer.bias.copy_(bias.reshape(1, 1, 1))
        return problem.objective(problem.policy, problem.held_out).item()


def test_the_hypergradient_of_the_shift_is_that_of_the_solved_inner_problem() -> None:
    problem, weight, bias = linear_problem()
    at_optimum(problem, weight, bias)
    found = FisherImplicit(damping=0.0, rows=None).hypergradient(
        problem, Warm(), torch.Generator().manual_seed(0)
    )
    assert (
        Theta.of(problem.policy)
        .grad(problem.loss(problem.policy, problem.train, torch.Generator())[0].sum())[0, :3]
        .abs()
        .max()
        < 1e-6
    )  # type: ignore[operator]
    for i in range(2):
        change = torch.zeros_like(weight)
        change[i] = 1e-5
        up, down = (at_optimum(problem, weight + s * change, bias) for s in (1.0, -1.0))
        assert found.gradient[0][i, 0].item() == pytest.approx((up - down) / 2e-5, rel=2e-2)
    up, down = (at_optimum(problem, weight, bias + s * 1e-5) for s in (1.0, -1.0))
    assert found.gradient[1].item() == pytest.approx((up - down) / 2e-5, rel=2e-2)


def drift_of(model: DynamicsModel, states: npt.NDArray, actions: npt.NDArray, steps: int) -> float:
    """Root mean square error of the members' mean rollouts from true states."""
    obs = torch.from_numpy(states[:, 0]).float().expand(model.members, -1, -1)
    with torch.inference_mode():
        for t in range(steps):
            action = torch.from_numpy(actions[:, t]).expand(model.members, -1, -1)
            obs = model.step(obs, action).next_obs
    return float(((obs.mean(0).numpy() - states[:, steps]) ** 2).mean() ** 0.5)


@pytest.fixture(scope="module")
def noisy() -> dict[str, float]:
    """Errors 5 steps ahead where the observations that a model learns from are noisy."""
    data, _ = swings(60, 25, 0.5, seed=1)
    test, states = swings(100, 25, 0.0, seed=2)
    actions = test.action.reshape(100, 25, 1)
    return {
        name: drift_of(fitted(name, data, 600, every=50), states, actions, 5)
        for name in ("mse", "k-step", "bilevel-k-step")
    }


def test_looking_ahead_corrects_what_one_step_cannot_see(noisy: dict[str, float]) -> None:
    """Noise in the inputs shrinks a one-step regression (errors in variables): its open-loop rollouts
    die away. The reward's shift, inferred on held-out rollouts, undoes that."""
    assert noisy["k-step"] < 0.6 * noisy["mse"]
    assert noisy["bilevel-k-step"] < 0.65 * noisy["mse"]
    assert noisy["bilevel-k-step"] < 1.2 * noisy["k-step"]


def test_without_noise_there_is_nothing_to_ask_for() -> None:
    data, states = swings(30, 25, 0.0, seed=1)
    model = fitted("bilevel-k-step", data, 600, every=50)
    assert drift_of(model, states, data.action.reshape(30, 25, 1), 15) < 1e-2


def test_one_move_solves_the_linear_problem() -> None:
    """From the least-squares fit: b lands where the objective of the moved policy has no slope."""
    problem, weight, bias = linear_problem()
    before = at_optimum(problem, weight, bias)
    report = HeldOutShift(iterations=60, ridge=0.0).step(problem)
    shift = problem.loss.reward.shift  # type: ignore[attr-defined]
    moved = (weight + shift.weight.detach(), bias + shift.bias.detach())
    after = at_optimum(problem, *moved)
    assert report["shift_gain"] == pytest.approx(before - after, rel=1e-6)
    assert after < before
    for i in range(2):
        change = torch.zeros_like(weight)
        change[i] = 1e-4
        assert at_optimum(problem, moved[0] + change, moved[1]) > after
        assert at_optimum(problem, moved[0] - change, moved[1]) > after
    # θ has followed: nothing is left to move.
    at_optimum(problem, *moved)
    assert HeldOutShift(iterations=60, ridge=0.0).step(problem)["shift_gain"] < 1e-6


def test_few_rows_and_much_ridge_hold_the_shift_back() -> None:
    sizes = []
    for ridge in (0.0, 1e3):
        problem, weight, bias = linear_problem()
        at_optimum(problem, weight, bias)
        report = HeldOutShift(rows=20, ridge=ridge).step(problem)
        sizes.append(report["shift_size"])
    assert sizes[1] < 0.2 * sizes[0]


def test_the_shift_moves_the_mean_that_is_asked_for() -> None:
    shift = AffineShift(3, 2, unit=0.5).double()
    torch.nn.init.normal_(shift.weight, generator=torch.Generator().manual_seed(0))
    torch.nn.init.normal_(shift.bias, generator=torch.Generator().manual_seed(1))
    plain = Mahalanobis(2).double()
    reward = Shifted(plain, shift)
    g = torch.Generator().manual_seed(2)
    x, y, mean = (torch.randn(2, 5, n, generator=g).double() for n in (3, 2, 2))
    moved = y + 0.5 * (x @ shift.weight + shift.bias)
    dist = DiagonalGaussian(mean, torch.zeros_like(mean))
    assert torch.equal(reward(mean.unsqueeze(0), y, x), plain(mean.unsqueeze(0), moved, x))
    assert torch.equal(reward.expected(dist, y, x), plain.expected(dist, moved, x))
    assert {name.partition(".")[0] for name, _ in reward.named_parameters()} == {"reward", "shift"}


def test_what_is_refused() -> None:
    problem, *_ = linear_problem()
    HeldOutShift().check(problem)
    plain = replace(problem, loss=PolicyGradient(Mahalanobis(1)))
    with pytest.raises(UnsupportedCombinationError, match="AffineShift of a Shifted reward"):
        HeldOutShift().check(plain)
    full = FullGaussianPolicy(2, 1, generator=torch.Generator(), members=1)
    with pytest.raises(UnsupportedCombinationError, match="needs a GaussianPolicy"):
        HeldOutShift().check(replace(problem, policy=full))
    with pytest.raises(InvalidInputError, match="iterations"):
        HeldOutShift(iterations=0)
    policy = GaussianPolicy(2, 2, generator=torch.Generator(), members=1)
    x = torch.zeros(1, 3, 2)
    with pytest.raises(InvalidInputError, match="no segments"):
        KStep()(policy, Batch(x, x), torch.Generator())
    data = chained(2)
    classes = CategoricalPolicy(2, 3, generator=torch.Generator())
    with pytest.raises(UnsupportedCombinationError, match="follow a Gaussian policy's mean"):
        KStep()(classes, data.sample(data.folds.train), torch.Generator())
