"""The outer level as a whole: its state persists, and it finds the optimal reward."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import DivergedError, InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.estimators import GroupNormalised
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.inner.rewards import Mahalanobis
from mbrl_bilevel.outer.closed_form import ClosedForm, ClosedFormGradient, HeldOutVariance
from mbrl_bilevel.outer.function_space import FunctionSpace
from mbrl_bilevel.outer.implicit import ExactImplicit, FisherImplicit, Neumann
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.problem import DirectSolver, GradientSolver, Hypergradient, Problem, Warm
from mbrl_bilevel.outer.unrolled import Unrolled
from mbrl_bilevel.policies.policies import GaussianPolicy
from mbrl_bilevel.theory.brute_force import learn, relative_error, solve_inner
from mbrl_bilevel.theory.catalogue import catalogue, hypergradient, sampled, solvers

FAST = partial(torch.optim.Adam, lr=0.1)
STRAIGHT = partial(torch.optim.SGD, lr=0.5, momentum=0.5)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def problem(name: str = "gaussian_2d_full") -> Problem:
    return catalogue()[name]().problem


def reward_of(made: Problem) -> Mahalanobis:
    assert isinstance(made.loss, PolicyGradient)
    assert isinstance(made.loss.reward, Mahalanobis)
    return made.loss.reward


def sample_optimum(made: Problem) -> Tensor:
    """(λ/2) Σ⁻¹ at the solved mean, by hand."""
    solve_inner(made)
    residual = (made.held_out.y - made.policy.dist(made.held_out.x).mean)[0].detach()  # type: ignore[union-attr]
    return 0.5 * torch.linalg.inv(residual.mT @ residual / len(residual))


@pytest.mark.parametrize(
    "name", ["exact_implicit", "fisher_implicit", "function_space", "closed_form_gradient"]
)
def test_learned_u_is_the_samples_optimum(name: str) -> None:
    made = problem()
    truth = sample_optimum(made)
    assert relative_error(reward_of(made).matrix.detach(), truth) > 0.1  # it starts elsewhere
    learn(made, Outer(solvers()[name], optimiser=STRAIGHT), 50, generator())
    assert relative_error(reward_of(made).matrix.detach(), truth) < 1e-3


@pytest.mark.parametrize("solver", [Unrolled(steps=60), solvers()["neumann"]])
def test_learned_u_by_the_other_hessian_solvers(solver: GradientSolver) -> None:
    made = problem("gaussian_1d")
    truth = sample_optimum(made)
    outer = Outer(solver, optimiser=partial(torch.optim.SGD, lr=0.7))
    learn(made, outer, 25, generator())
    assert relative_error(reward_of(made).matrix.detach(), truth) < 1e-3


def test_learned_u_from_draws() -> None:
    made = problem()
    truth = sample_optimum(made)
    outer = Outer(solvers()["fisher_implicit"], optimiser=STRAIGHT)
    learn(sampled(made, 64), outer, 50, generator(), inner=made)
    assert relative_error(reward_of(made).matrix.detach(), truth) < 0.05


def test_learned_u_is_near_the_truth_with_many_rows() -> None:
    """y = x + ε, ε ~ N(0, .25): u* = λ/(2·.25) = 2."""
    draws = torch.randn(2, 2, 1, 4000, 1, generator=generator(), dtype=torch.float64)
    train, held_out = (Batch(x, x + 0.5 * noise) for x, noise in draws)
    policy = GaussianPolicy(1, 1, generator=generator(), members=1, hidden=()).double()
    made = Problem(policy, PolicyGradient(Mahalanobis(1)).double(), train, held_out)
    learn(made, Outer(FisherImplicit(damping=0.0, rows=None), optimiser=FAST), 120, generator())
    assert reward_of(made).u.item() == pytest.approx(2.0, rel=0.05)


def test_slope_of_the_inner_optimum() -> None:
    """d log σ/dU = −1/(2U), so dF/d log u = ½(1 − Σ/σ²) in one dimension; zero at U*."""
    made = problem("gaussian_1d")
    optimum = sample_optimum(made).reshape(1)
    for factor in (0.5, 1.0, 3.0):
        reward_of(made).set_u(factor * optimum)
        solve_inner(made)
        spread = made.policy.dist(made.train.x).std[0, 0, 0]  # type: ignore[union-attr]
        assert spread.item() == pytest.approx((0.5 / (factor * optimum.item())) ** 0.5, rel=1e-9)
        # −F = log σ + Σ/(2σ²) with Σ/σ² = factor, d log σ/d log u = −½.
        expected = -0.5 * (1.0 - factor)
        for name in ("exact_implicit", "fisher_implicit", "function_space"):
            found = hypergradient(solvers()[name], made).item()
            assert found == pytest.approx(expected, abs=1e-7)


def test_the_optimiser_is_made_once_and_keeps_its_moments() -> None:
    made = problem("gaussian_1d")
    solve_inner(made)
    calls: list[int] = []

    def make(phi: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        calls.append(1)
        return torch.optim.Adam(phi, lr=0.01)

    outer = Outer(FisherImplicit(), optimiser=make)
    state = outer.start(made)
    first = state.optimiser
    for count in range(1, 4):
        solve_inner(made)
        state, report = outer.update(made, state, generator())
        assert state.updates == count
        assert state.optimiser is first
        assert state.warm.solution is not None
    assert len(calls) == 1
    assert first is not None
    assert next(iter(first.state.values()))["step"] == 3
    assert report["hypergradient_norm"] > 0.0
    assert {
        "inner_gradient_norm",
        "linear_residual",
        "linear_iterations",
        "linear_converged",
    } <= set(report)
    assert report["inner_converged"] == 1.0
    assert next(iter(reward_of(made).parameters())).grad is None


def test_the_last_solution_warms_the_next_solve() -> None:
    made = problem("mlp")
    solve_inner(made)
    outer = Outer(FisherImplicit(), optimiser=partial(torch.optim.SGD, lr=1e-6))
    state, first = outer.update(made, outer.start(made), generator())
    _, second = outer.update(made, state, generator())
    assert second["linear_iterations"] < first["linear_iterations"]


def test_a_large_hypergradient_is_not_clipped() -> None:
    made = problem("gaussian_2d")

    class Fixed:
        def check(self, problem: Problem) -> None: ...

        def hypergradient(
            self, problem: Problem, warm: Warm, generator: torch.Generator
        ) -> Hypergradient:
            return Hypergradient((torch.tensor([1e4, -3.0], dtype=torch.float64),), {})

    before = reward_of(made).log_u.detach().clone()
    outer = Outer(Fixed(), optimiser=partial(torch.optim.SGD, lr=1e-4))
    outer.update(made, outer.start(made), generator())
    moved = reward_of(made).log_u.detach() - before
    torch.testing.assert_close(moved, torch.tensor([-1.0, 3e-4], dtype=torch.float64))


def test_not_converged_inner_is_said() -> None:
    made = problem("gaussian_1d")
    outer = Outer(FisherImplicit())
    _, report = outer.update(made, outer.start(made), generator())
    assert report["inner_gradient_norm"] > outer.tol
    assert report["inner_converged"] == 0.0


def test_a_hypergradient_that_is_not_finite_leaves_phi_alone() -> None:
    made = problem("gaussian_1d")
    made.held_out.y[0, 0] = math.nan
    before = reward_of(made).u.detach().clone()
    outer = Outer(FisherImplicit())
    with pytest.raises(DivergedError, match="not finite"):
        outer.update(made, outer.start(made), generator())
    torch.testing.assert_close(reward_of(made).u.detach(), before)


def test_start_refuses_before_anything_runs() -> None:
    made = problem("gaussian_1d")
    biased = replace(made, loss=PolicyGradient(reward_of(made), GroupNormalised(8)))
    for solver in (
        ClosedForm(),
        ClosedFormGradient(),
        FisherImplicit(),
        ExactImplicit(),
        Neumann(),
        Unrolled(),
        FunctionSpace(),
    ):
        with pytest.raises(UnsupportedCombinationError, match="unbiased"):
            Outer(solver).start(biased)


def test_each_solver_fills_one_slot() -> None:
    direct = (ClosedForm(), HeldOutVariance())
    gradient = (
        FisherImplicit(),
        ExactImplicit(),
        Neumann(),
        Unrolled(),
        FunctionSpace(),
        ClosedFormGradient(),
    )
    assert all(isinstance(s, DirectSolver) and not isinstance(s, GradientSolver) for s in direct)
    assert all(isinstance(s, GradientSolver) and not isinstance(s, DirectSolver) for s in gradient)
    assert isinstance(Outer().solver, FisherImplicit)


def test_when_it_is_due() -> None:
    outer = Outer(every=10, warmup=5)
    assert [step for step in range(40) if outer.due(step)] == [5, 15, 25, 35]


@pytest.mark.parametrize(
    "wrong",
    [
        {"every": 0},
        {"warmup": -1},
        {"batch_size": 0},
        {"refresh": 0},
        {"tol": 0.0},
        {"tol": math.nan},
    ],
)
def test_bad_settings(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        Outer(**wrong)  # type: ignore[arg-type]
