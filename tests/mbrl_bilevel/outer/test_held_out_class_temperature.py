from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.losses import NLL, Loss, PolicyGradient
from mbrl_bilevel.inner.positive import PositiveFunction
from mbrl_bilevel.inner.regularisers import KL, Entropy, Sum
from mbrl_bilevel.inner.rewards import LogTangent, Mahalanobis, RewardMatrix
from mbrl_bilevel.outer.held_out_class_temperature import ClosedFormBeta, HeldOutClassTemperature
from mbrl_bilevel.outer.implicit import ExactImplicit, FisherImplicit
from mbrl_bilevel.outer.linear_solvers import conjugate_gradient
from mbrl_bilevel.outer.problem import Problem, Warm
from mbrl_bilevel.policies.policies import CategoricalPolicy
from mbrl_bilevel.policies.tempered import TemperedPolicy, tempered
from mbrl_bilevel.theory.brute_force import finite_differences, relative_error, solve_inner


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def groups(rows: int, classes: int = 3, seed: int = 1) -> Batch:
    """One-hot inputs of four groups, float64: a linear policy is free at each x."""
    draw = generator(seed)
    index = torch.randint(4, (rows,), generator=draw)
    table = (1.2 * torch.randn(4, classes, generator=generator(0), dtype=torch.float64)).softmax(-1)
    y = torch.multinomial(table[index], 1, generator=draw).double()
    return Batch(torch.nn.functional.one_hot(index, 4).double().unsqueeze(0), y.unsqueeze(0))


def test_the_inner_optimum_at_another_temperature_is_a_power() -> None:
    """What the file stands on: logits at λ = 2.5 are those at λ = 1 divided by 2.5."""
    found: list[Tensor] = []
    matrix = torch.eye(3) + 0.2 * torch.randn(3, 3, generator=generator(5))
    for temperature in (1.0, 2.5):
        policy = TemperedPolicy(4, 3, generator=generator(), hidden=()).double()
        loss = PolicyGradient(RewardMatrix(2.0 * matrix), regulariser=Entropy(temperature)).double()
        solve_inner(Problem(policy, loss, groups(300), groups(300)))
        found.append(policy.logits(torch.eye(4, dtype=torch.float64).unsqueeze(0)).detach())
    torch.testing.assert_close(found[0], 2.5 * found[1], rtol=1e-6, atol=1e-8)


def test_beside_a_kl_it_is_a_power_where_the_reference_is_raised_to_it_too() -> None:
    """λ_H and λ_K over s, the reference to the power s: the logits are s times those before."""
    sharper, reward = 0.4, RewardMatrix(2.0 * torch.eye(3))
    reference = TemperedPolicy(4, 3, generator=generator(3), hidden=()).double()
    raised = reference.untempered()
    raised.temper[:, 0] = math.log(sharper)
    found: list[Tensor] = []
    for s, near in ((1.0, reference), (sharper, raised)):
        policy = TemperedPolicy(4, 3, generator=generator(), hidden=()).double()
        both = Sum(Entropy(1.0 / s), KL(near, 0.7 / s))
        loss = PolicyGradient(copy.deepcopy(reward), regulariser=both).double()
        problem = Problem(policy, loss, groups(300), groups(300))
        HeldOutClassTemperature().check(problem)
        solve_inner(problem)
        found.append(policy.logits(torch.eye(4, dtype=torch.float64).unsqueeze(0)).detach())
    torch.testing.assert_close(sharper * found[0], found[1], rtol=1e-6, atol=1e-8)


def likely(*shares: float) -> tuple[Tensor, Batch]:
    """q [C] of one input, and all of its classes with these weights."""
    q = torch.tensor(shares, dtype=torch.float64)
    x = torch.ones(1, len(q), 1, dtype=torch.float64)
    y = torch.arange(len(q), dtype=torch.float64).reshape(1, -1, 1)
    return q, Batch(x, y, q.unsqueeze(0))


def fixed_point(loss: PolicyGradient, policy: TemperedPolicy, batch: Batch) -> Tensor:
    """p [C] where the inner gradient is zero, for losses whose reward follows the policy too."""
    theta = [p for p in policy.parameters() if p.requires_grad]
    optimiser = torch.optim.LBFGS(
        theta, max_iter=500, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        value: Tensor = loss(policy, batch, generator())[0].sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return policy.dist(batch.x).probs[0, 0].detach()


SIX = (0.46, 0.39, 0.09, 0.04, 0.015, 0.005)


def test_a_bounded_reward_has_no_temperature_that_gives_six_likely_classes() -> None:
    """The cause of losing on noisy tables: softmax(β·q/λ) is q for no λ, and is off by much."""
    q, _ = likely(*SIX)
    beta = torch.linspace(0.0, 30.0, 3001, dtype=torch.float64).unsqueeze(1)
    apart = (q * (q.log() - (beta * q).log_softmax(1))).sum(1)
    assert apart.min() > 0.04


def test_the_tangent_of_the_likelihood_has_its_fixed_point_at_the_truth() -> None:
    """λ_H = 0 (nearly): p = q, six classes likely or not. With λ_H: q = p·(1 + λ_H·(log p + H(p)))."""
    q, batch = likely(*SIX)
    for weight in (1e-9, 0.1, 0.3):
        policy = TemperedPolicy(1, 6, generator=generator(), hidden=()).double()
        loss = PolicyGradient(LogTangent(policy), regulariser=Entropy(weight)).double()
        p = fixed_point(loss, policy, batch)
        closed = p * (1.0 + weight * (p.log() - (p * p.log()).sum()))
        torch.testing.assert_close(closed, q, rtol=1e-6, atol=1e-8)
    # And to first order it is a power, which another temperature undoes.
    policy = TemperedPolicy(1, 6, generator=generator(), hidden=()).double()
    small = 0.02
    p = fixed_point(
        PolicyGradient(LogTangent(policy), regulariser=Entropy(small)).double(), policy, batch
    )
    raised = p ** (1.0 + small)
    assert (raised / raised.sum() - q).abs().max() < 0.3 * (p - q).abs().max() < 0.01


def test_near_a_guess_the_optimum_is_right_to_second_order() -> None:
    """Near any p̂ (λ_K = 1) p* ∝ p̂·exp(r̄), r̄ = q/p̂ + const: q where p̂ = q, and else off by a square."""
    q, batch = likely(0.5, 0.3, 0.2)
    miss = torch.tensor([0.3, -0.2, -0.1], dtype=torch.float64)
    apart = []
    for size in (0.0, 0.05, 0.1):
        guess = TemperedPolicy(1, 3, generator=generator(), hidden=()).double()
        with torch.no_grad():
            guess.network.last.weight.zero_()
            guess.network.last.bias.copy_((q.log() + size * miss).reshape(1, 1, 3))
        said = guess.dist(batch.x).log_probs[0, 0].detach()
        answers = torch.arange(3.0, dtype=torch.float64).reshape(3, 1, 1, 1).expand(3, 1, 3, 1)
        mean = (q * LogTangent(guess)(answers, batch.y, batch.x)).sum((1, 2))
        apart.append(((said + mean).softmax(0) - q).abs().max().item())
    assert apart[0] < 1e-12
    assert 3.0 < apart[2] / apart[1] < 5.0


def test_solvers_that_differentiate_the_optimum_refuse_it() -> None:
    policy = TemperedPolicy(4, 3, generator=generator(), hidden=()).double()
    loss = PolicyGradient(LogTangent(policy), regulariser=Entropy(0.3, learnable=True)).double()
    problem = Problem(policy, loss, groups(30), groups(30))
    HeldOutClassTemperature().check(problem)
    for solver in (FisherImplicit(), ExactImplicit()):
        with pytest.raises(UnsupportedCombinationError, match="LogTangent follows the policy"):
            solver.check(problem)


def test_its_gradient_is_that_of_likelihood_and_its_draws_have_its_mean() -> None:
    policy = TemperedPolicy(4, 3, generator=generator(), hidden=(5,)).double()
    batch = groups(50)
    theta = [p for p in policy.parameters() if p.requires_grad]
    ours = PolicyGradient(LogTangent(policy), regulariser=Entropy(1e-12))
    both: list[Loss] = [ours, NLL()]
    values = [loss(policy, batch, generator())[0].sum() for loss in both]
    torch.testing.assert_close(*values, rtol=1e-9, atol=1e-9)
    for got, wanted in zip(*(torch.autograd.grad(v, theta) for v in values), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-8, atol=1e-10)
    dist, reward = policy.dist(batch.x), LogTangent(policy)
    classes = torch.arange(3.0, dtype=torch.float64).reshape(3, 1, 1, 1).expand(3, 1, 50, 1)
    each = reward(classes, batch.y, batch.x)
    mean = (dist.probs.movedim(-1, 0) * each).sum(0)
    torch.testing.assert_close(mean, reward.expected(dist, batch.y, batch.x))


def test_hypergradient_of_a_temperature_of_x_is_that_of_brute_force() -> None:
    policy = CategoricalPolicy(4, 3, generator=generator(), hidden=()).double()
    temperature = PositiveFunction(4, initial=0.8, span=10.0)
    with torch.no_grad():  # away from the constant, so that every slope matters
        for parameter in temperature.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator(2)))
    reward = RewardMatrix.identity(3, 1.7).requires_grad_(False)
    loss = PolicyGradient(reward, regulariser=Entropy(temperature)).double()
    problem = Problem(policy, loss, groups(400), groups(400, seed=7))
    solve_inner(problem)
    tight = partial(conjugate_gradient, tolerance=1e-10, max_iterations=500)
    solver = FisherImplicit(tight, damping=0.0, rows=None)
    result = solver.hypergradient(problem, Warm(), generator())
    got = torch.cat([g.flatten() for g in result.gradient])
    assert relative_error(got, finite_differences(problem)) < 1e-6


def test_untouched_it_is_the_plain_classifier() -> None:
    kinds = (TemperedPolicy, CategoricalPolicy)
    x = torch.randn(2, 6, 4, generator=generator())
    probs = [k(4, 3, generator=generator(3), members=2, hidden=(5,)).dist(x).probs for k in kinds]
    torch.testing.assert_close(*probs)


def test_the_bend_straightens_the_link_of_a_bounded_reward() -> None:
    """Two classes, R = βI: p* has the logit β(2q − 1). b = ⅓ is right to second order."""
    beta, q = 1.7, torch.linspace(0.25, 0.75, 51, dtype=torch.float64)
    logits = torch.stack([q - 0.5, 0.5 - q], -1).unsqueeze(0) * beta
    truth, error = torch.logit(q), []
    for bend in (0.0, 1.0 / 3.0):
        shape = tempered(logits, logits.new_tensor([0.0, bend]), beta)[0]
        link = shape[:, 0] - shape[:, 1]
        best = (link * truth).sum() / link.square().sum()
        error.append((best * link - truth).abs().max().item())
    assert error[1] < 0.25 * error[0] < 0.05


def held_out_problem(
    members: int, rows: int = 60, shared: bool = False
) -> tuple[TemperedPolicy, Problem]:
    """A random policy, and classes drawn at twice its first member's logits."""
    policy = TemperedPolicy(3, 4, generator=generator(1), members=members, hidden=(), reach=2.0)
    x = torch.randn(members, rows, 3, generator=generator(2))
    if shared:
        x = x[:1].expand(members, -1, -1)
    y = torch.multinomial((2.0 * policy.logits(x)[0]).softmax(-1), 1, generator=generator(4))
    batch = Batch(x, y.float().expand(members, -1, -1), torch.ones(members, rows))
    loss = PolicyGradient(RewardMatrix.identity(4, 2.0))
    return policy, Problem(policy, loss, batch, batch)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("bend_ridge", [None, 3.0])
def test_it_finds_what_scipy_finds(shared: bool, bend_ridge: float | None) -> None:
    """Members that hold out the same rows are judged by the mean of their probabilities."""
    policy, problem = held_out_problem(2, shared=shared)
    logits = policy.logits(problem.held_out.x).detach().double()
    true = problem.held_out.y.long()

    def value(theta: np.ndarray) -> float:
        temper = torch.tensor([theta[0], 0.0 if bend_ridge is None else theta[1]])
        probs = tempered(logits, temper.double(), 2.0).softmax(-1).gather(-1, true).squeeze(-1)
        likelihood = probs.mean(0).log().sum() if shared else probs.log().sum()
        prior = 2.0 * (theta[0] - 0.5) ** 2 + (bend_ridge or 1.0) * theta[1] ** 2
        return float(-likelihood) + 0.5 * prior

    solver = HeldOutClassTemperature(ridge=2.0, start=0.5, bend_ridge=bend_ridge)
    report = solver.finish(problem)
    truth = minimize(value, [0.5, 0.0], method="Nelder-Mead", options={"xatol": 1e-6}).x
    assert report["log_sharpness"] == pytest.approx(truth[0], abs=1e-3)
    assert report["bend"] == pytest.approx(truth[1] if bend_ridge else 0.0, abs=1e-3)
    torch.testing.assert_close(policy.temper[0].double(), torch.tensor(truth), atol=1e-3, rtol=0.0)


def test_the_temperature_of_much_data_is_the_true_one() -> None:
    policy, problem = held_out_problem(1, rows=20_000)
    HeldOutClassTemperature(bend_ridge=None).finish(problem)
    assert policy.temper[0, 0].exp().item() == pytest.approx(2.0, rel=0.05)


def test_rows_without_weight_do_not_count() -> None:
    policy, problem = held_out_problem(1)
    weight = torch.zeros(1, 60)
    report = HeldOutClassTemperature(start=0.3).finish(
        Problem(policy, problem.loss, problem.train, Batch(*_xy(problem), weight))
    )
    assert report["log_sharpness"] == pytest.approx(0.3, abs=1e-6)


def _xy(problem: Problem) -> tuple[Tensor, Tensor]:
    return problem.held_out.x, problem.held_out.y


def test_beta_is_its_formula() -> None:
    policy, problem = held_out_problem(2)
    probs = policy.dist(problem.held_out.x).probs
    onehot = torch.nn.functional.one_hot(problem.held_out.y[..., 0].long(), 4)
    beta = 4.0 / (2.0 * (probs - onehot).square().sum(-1).mean())
    report = ClosedFormBeta().step(problem)
    assert report["beta"] == pytest.approx(beta.item(), rel=1e-5)
    loss = problem.loss
    assert isinstance(loss, PolicyGradient)
    assert isinstance(loss.reward, RewardMatrix)
    difference = (
        loss.reward.matrix.diagonal()
        - (loss.reward.matrix.sum(0) - loss.reward.matrix.diagonal()) / 3
    )
    torch.testing.assert_close(difference, torch.full((4,), 2.0 * beta.item()))


def test_what_it_would_be_wrong_for_is_refused() -> None:
    policy, problem = held_out_problem(1)
    plain = CategoricalPolicy(3, 4, generator=generator(), hidden=())
    near = PolicyGradient(RewardMatrix.identity(4), regulariser=KL(plain))
    solver = HeldOutClassTemperature()
    with pytest.raises(UnsupportedCombinationError, match="TemperedPolicy"):
        solver.check(Problem(plain, problem.loss, problem.train, problem.held_out))
    with pytest.raises(UnsupportedCombinationError, match="no power"):
        solver.check(Problem(policy, near, problem.train, problem.held_out))
    solver.check(Problem(policy, NLL(), problem.train, problem.held_out))
    with pytest.raises(UnsupportedCombinationError, match="RewardMatrix"):
        ClosedFormBeta().check(
            Problem(policy, PolicyGradient(Mahalanobis(1)), problem.train, problem.held_out)
        )
    with pytest.raises(InvalidInputError, match="ridge"):
        HeldOutClassTemperature(ridge=-1.0)
