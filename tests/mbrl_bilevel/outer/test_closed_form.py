"""The optimal reward in closed form, against the sample's and the true optimum, and its refusals."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import DivergedError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.estimators import GroupNormalised
from mbrl_bilevel.inner.losses import MSE, PolicyGradient
from mbrl_bilevel.inner.positive import Form, PositiveFunction
from mbrl_bilevel.inner.regularisers import KL, Entropy, Sum
from mbrl_bilevel.inner.rewards import RBF, Mahalanobis, RewardMatrix
from mbrl_bilevel.outer.closed_form import (
    ClosedForm,
    ClosedFormGradient,
    HeldOutVariance,
    held_out_second_moment,
)
from mbrl_bilevel.outer.objectives import OneStepMSE
from mbrl_bilevel.outer.problem import Problem, Warm
from mbrl_bilevel.policies.policies import CategoricalPolicy, FullGaussianPolicy, GaussianPolicy
from mbrl_bilevel.theory.brute_force import solve_inner

FACTOR = torch.tensor([[0.9, 0.0], [0.7, 0.4]], dtype=torch.float64)
SIGMA = FACTOR @ FACTOR.mT


def problem(
    form: Form = "full",
    *,
    full: bool = True,
    rows: int = 400,
    temperature: float = 1.0,
    members: int = 1,
) -> Problem:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    slope = normal(2, 2)

    def sample() -> Batch:
        x = normal(members, rows, 2)
        return Batch(x, x @ slope + normal(members, rows, 2) @ FACTOR.mT)

    kind = FullGaussianPolicy if full else GaussianPolicy
    policy = kind(2, 2, generator=generator, members=members, hidden=()).double()
    loss = PolicyGradient(Mahalanobis(2, form), regulariser=Entropy(temperature)).double()
    return Problem(policy, loss, sample(), sample())


def reward_of(made: Problem) -> Mahalanobis:
    assert isinstance(made.loss, PolicyGradient)
    assert isinstance(made.loss.reward, Mahalanobis)
    return made.loss.reward


def residual_moment(made: Problem) -> Tensor:
    """Σ by an independent route: numpy-like least squares on the train rows."""
    x, y = made.train.x[0], made.train.y[0]
    ones = torch.ones(len(x), 1, dtype=x.dtype)
    coefficients = torch.linalg.lstsq(torch.cat([x, ones], 1), y).solution
    held_x, held_y = made.held_out.x[0], made.held_out.y[0]
    residual = held_y - torch.cat([held_x, ones], 1) @ coefficients
    return residual.mT @ residual / len(residual)


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_full_u_is_half_lambda_over_sigma(temperature: float) -> None:
    made = problem("full", temperature=temperature)
    solve_inner(made)
    ClosedForm().step(made)
    expected = 0.5 * temperature * torch.linalg.inv(residual_moment(made))
    torch.testing.assert_close(reward_of(made).matrix, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("full", [True, False])
def test_diagonal_and_scaled_identity(full: bool) -> None:
    made = problem("diagonal", full=full, temperature=0.7)
    solve_inner(made)
    ClosedForm().step(made)
    sigma = residual_moment(made)
    torch.testing.assert_close(reward_of(made).u, 0.35 / sigma.diagonal(), rtol=1e-5, atol=1e-8)
    made = problem("scaled_identity", full=full, temperature=0.7)
    solve_inner(made)
    ClosedForm().step(made)
    beta = 0.7 * 2 / (2.0 * sigma.trace())
    torch.testing.assert_close(reward_of(made).u, beta.expand(2), rtol=1e-5, atol=1e-8)


def test_truth_is_recovered_with_many_rows() -> None:
    made = problem("full", rows=20_000)
    solve_inner(made)
    ClosedForm().step(made)
    truth = 0.5 * torch.linalg.inv(SIGMA)
    assert (reward_of(made).matrix - truth).norm() / truth.norm() < 0.05


@pytest.mark.parametrize("form", ["full", "diagonal"])
def test_finish_leaves_the_policy_at_the_inner_optimum(form: Form) -> None:
    made = problem(form, full=form == "full", members=2)
    solve_inner(made)
    report = ClosedForm().finish(made)
    assert math.isfinite(report["u_geometric_mean"])
    dist = made.policy.dist(made.train.x)
    assert not isinstance(dist, nn.Module)
    _, covariance = dist.moments()  # type: ignore[union-attr]
    expected = 0.5 * torch.linalg.inv(reward_of(made).matrix)
    torch.testing.assert_close(covariance, expected.expand_as(covariance), rtol=1e-6, atol=1e-9)
    # σ was set, the mean was solved for: nothing is left to gain.
    assert ClosedForm().step(made)["inner_gradient_norm"] < 1e-7


def test_the_moment_pools_members_and_leaves_out_weightless_rows() -> None:
    made = problem("diagonal", full=False, members=2, rows=6)
    weight = torch.ones(2, 6, dtype=torch.float64)
    weight[1, 2:] = 0.0
    held_out = Batch(made.held_out.x, made.held_out.y, weight)
    dist = made.policy.dist(held_out.x)
    residual = (held_out.y - dist.mean).detach()  # type: ignore[union-attr]
    rows = torch.cat([residual[0], residual[1, :2]])
    torch.testing.assert_close(
        held_out_second_moment(made.policy, held_out, floor=0.0), rows.mT @ rows / 8
    )


def test_non_finite_residuals_are_a_divergence() -> None:
    made = problem("diagonal", full=False)
    with torch.no_grad():
        for parameter in made.policy.parameters():
            parameter.fill_(math.nan)
    with pytest.raises(DivergedError, match="learning_rate"):
        ClosedForm().step(made)


def test_gradient_form_vanishes_at_the_closed_form() -> None:
    """d F/dφ is zero at U*, has the sign towards it elsewhere, and is −1/(2U)-consistent."""
    for form in ("full", "diagonal", "scaled_identity"):
        made = problem(form, full=True)  # type: ignore[arg-type]
        solve_inner(made)
        ClosedForm().step(made)
        gradient = ClosedFormGradient().hypergradient(made, Warm(), torch.Generator()).gradient
        assert max(g.abs().max().item() for g in gradient) < 1e-7
        with torch.no_grad():
            for parameter in reward_of(made).parameters():
                parameter += 0.1
        gradient = ClosedFormGradient().hypergradient(made, Warm(), torch.Generator()).gradient
        assert max(g.abs().max().item() for g in gradient) > 1e-3


def test_gradient_form_fits_an_input_dependent_u() -> None:
    """u(x) learned from residuals reaches λ/(2σ²(x)) in each of two groups."""
    generator = torch.Generator().manual_seed(0)
    x = torch.nn.functional.one_hot(torch.arange(400) % 2, 2).double().unsqueeze(0)
    std = x[0] @ torch.tensor([0.2, 1.0], dtype=torch.float64)
    y = std.reshape(1, -1, 1) * torch.randn(1, 400, 1, generator=generator, dtype=torch.float64)
    policy = GaussianPolicy(
        2, 1, generator=generator, members=1, hidden=(), scale="network"
    ).double()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()  # the true mean
    function = PositiveFunction(2, 1, initial=0.5)
    made = Problem(
        policy, PolicyGradient(Mahalanobis(1, function=function)).double(), Batch(x, y), Batch(x, y)
    )
    optimiser = torch.optim.Adam(function.parameters(), lr=0.1)
    for _ in range(200):
        result = ClosedFormGradient().hypergradient(made, Warm(), generator)
        for parameter, gradient in zip(function.parameters(), result.gradient, strict=True):
            parameter.grad = gradient
        optimiser.step()
    for group in range(2):
        variance = y[0, group::2].square().mean()
        torch.testing.assert_close(
            function(x)[0, group, 0].detach(), 0.5 / variance, rtol=1e-3, atol=0.0
        )


def test_held_out_variance() -> None:
    made = replace(problem("diagonal", full=False), loss=MSE())
    assert HeldOutVariance().step(made) == {}
    HeldOutVariance().finish(made)
    moment = held_out_second_moment(made.policy, made.held_out).diagonal()
    std = made.policy.dist(made.train.x).std[0, 0]  # type: ignore[union-attr]
    torch.testing.assert_close(std, moment.sqrt())


def _categorical(made: Problem) -> Problem:
    policy = CategoricalPolicy(2, 2, generator=torch.Generator().manual_seed(0)).double()
    return replace(made, policy=policy)


def _with(made: Problem, **changes: object) -> Problem:
    assert isinstance(made.loss, PolicyGradient)
    parts = {"reward": made.loss.reward, "regulariser": made.loss.regulariser, **changes}
    return replace(made, loss=PolicyGradient(**parts).double())  # type: ignore[arg-type]


def _kl(made: Problem) -> Problem:
    return _with(made, regulariser=Sum(Entropy(0.5), KL(made.policy, 0.5)))


REFUSED: dict[str, tuple[Callable[[], Problem], str]] = {
    "full U, diagonal policy": (lambda: problem("full", full=False), "diagonal policy"),
    "KL": (lambda: _kl(problem()), "reference"),
    "λ(x)": (lambda: _with(problem(), regulariser=Entropy(PositiveFunction(2))), "temperature"),
    "biased": (lambda: _with(problem(), estimator=GroupNormalised(8)), "unbiased"),
    "reward": (lambda: _with(problem(), reward=RBF(2)), "Mahalanobis"),
    "classes": (lambda: _with(problem(), reward=RewardMatrix.identity(2)), "Mahalanobis"),
    "policy": (lambda: _categorical(problem()), "Gaussian"),
    "objective": (lambda: replace(problem(), objective=OneStepMSE()), "one-step likelihood"),
    "loss": (lambda: replace(problem(), loss=MSE()), "PolicyGradient"),
    "U(x)": (
        lambda: _with(problem(), reward=Mahalanobis(2, function=PositiveFunction(2, 2))),
        "depends on x",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_what_it_is_not_the_optimum_of(case: str) -> None:
    make, reason = REFUSED[case]
    with pytest.raises(UnsupportedCombinationError, match=reason):
        ClosedForm().check(make())


def test_refuses_a_network_scale_and_the_gradient_form_lets_it_pass() -> None:
    generator = torch.Generator().manual_seed(0)
    policy = GaussianPolicy(
        2, 2, generator=generator, members=1, hidden=(), scale="network"
    ).double()
    made = replace(problem("diagonal", full=False), policy=policy)
    with pytest.raises(UnsupportedCombinationError, match="scale"):
        ClosedForm().check(made)
    with pytest.raises(UnsupportedCombinationError, match="scale"):
        HeldOutVariance().check(made)
    ClosedFormGradient().check(made)


@pytest.mark.parametrize(
    "case", ["full U, diagonal policy", "KL", "biased", "reward", "policy", "objective"]
)
def test_the_gradient_form_refuses_the_same(case: str) -> None:
    make, _ = REFUSED[case]
    with pytest.raises(UnsupportedCombinationError):
        ClosedFormGradient().check(make())
