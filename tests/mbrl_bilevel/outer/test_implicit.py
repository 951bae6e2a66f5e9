"""The pieces of the implicit solvers: Fisher products, cross terms, warm starts, memory, refusals."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.estimators import DiCE, GroupNormalised, LeaveOneOut
from mbrl_bilevel.inner.losses import NLL, PolicyGradient
from mbrl_bilevel.inner.regularisers import KL, Entropy, Sum
from mbrl_bilevel.inner.rewards import Mahalanobis
from mbrl_bilevel.outer.function_space import FunctionSpace
from mbrl_bilevel.outer.implicit import ExactImplicit, FisherImplicit, Neumann, cross_term
from mbrl_bilevel.outer.linear_solvers import conjugate_gradient
from mbrl_bilevel.outer.objectives import OneStepMSE
from mbrl_bilevel.outer.problem import Linearised, Problem, Theta, Warm
from mbrl_bilevel.outer.unrolled import Unrolled
from mbrl_bilevel.policies.policies import GaussianPolicy, MixturePolicy
from mbrl_bilevel.theory.brute_force import finite_differences, relative_error, solve_inner
from mbrl_bilevel.theory.catalogue import catalogue, hypergradient, sampled, solvers

TIGHT = partial(conjugate_gradient, tolerance=1e-10, max_iterations=500)


def problem(name: str, solve: bool = True) -> Problem:
    made = catalogue()[name]().problem
    if solve:
        solve_inner(made)
    return made


def loss_of(made: Problem) -> PolicyGradient:
    assert isinstance(made.loss, PolicyGradient)
    return made.loss


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def phi_of(made: Problem) -> list[nn.Parameter]:
    return [p for p in loss_of(made).parameters() if p.requires_grad]


def dense_fisher(made: Problem) -> Tensor:
    """Σ_b share_b Λ_b J_bᵀ F_b J_b by the score's second moment over all classes, [P, P]."""
    theta = Theta.of(made.policy)
    dist = made.policy.dist(made.train.x)
    classes = dist.params[0].shape[-1]
    share = made.train.share[0] * loss_of(made).regulariser.weight(made.train.x)
    total = torch.zeros(1)
    for c in range(classes):
        log_prob = dist.log_prob(torch.full_like(made.train.y, c))[0]
        for row in range(len(log_prob)):
            score = theta.grad(log_prob[row], create_graph=True).detach()[0]
            total = total + share[row] * log_prob[row].exp().detach() * torch.outer(score, score)
    return total


@pytest.mark.parametrize("fisher", ["exact", "sampled"])
def test_fisher_product_is_the_scores_second_moment(fisher: str) -> None:
    made = problem("categorical_5", solve=False)
    made = replace(made, train=Batch(made.train.x[:, :30], made.train.y[:, :30]))
    solver = FisherImplicit(fisher=fisher, samples=4000)  # type: ignore[arg-type]
    theta = Theta.of(made.policy)
    share = made.train.share
    product = solver.curvature(made, theta, made.train, share, generator())
    truth = dense_fisher(made)
    size = len(truth)
    found = torch.stack([product(e.reshape(1, -1))[0] for e in torch.eye(size).double()], dim=1)
    tolerance = 1e-10 if fisher == "exact" else 0.05
    assert relative_error(found, truth) < tolerance
    assert torch.linalg.eigvalsh((found + found.mT) / 2).min() > -1e-12


def test_linearised_pushes_and_pulls_the_jacobian() -> None:
    made = problem("mlp", solve=False)
    theta = Theta.of(made.policy)
    x = made.train.x[:, :3]
    outputs = Linearised(made.policy.dist(x).params, theta)
    flat = torch.cat([p.flatten() for p in made.policy.dist(x).params])
    jacobian = torch.stack([theta.grad(o, create_graph=True).detach()[0] for o in flat])
    v = torch.randn(1, jacobian.shape[1], generator=generator(), dtype=torch.float64)
    pushed = torch.cat([t.flatten() for t in outputs.push(v)])
    torch.testing.assert_close(pushed, jacobian @ v[0])
    u = tuple(
        torch.randn(p.shape, generator=generator(1)).double() for p in made.policy.dist(x).params
    )
    pulled = outputs.pull(u)
    torch.testing.assert_close(pulled[0], torch.cat([t.flatten() for t in u]) @ jacobian)


@pytest.mark.parametrize("name", ["gaussian_2d", "kl_weight", "categorical_2"])
def test_sampled_cross_term_is_unbiased(name: str) -> None:
    """First-order draws against the derivative of the closed form, for φ of reward and of KL."""
    made = problem(name)
    theta, phi = Theta.of(made.policy), phi_of(made)
    size = sum(t[0].numel() for t in theta.tensors)
    direction = torch.randn(made.policy.members, size, generator=generator(1)).double()
    exact, gradient = cross_term(made, theta, phi, direction, 2, generator())
    twin = sampled(made)
    drawn, estimate = cross_term(twin, theta, phi_of(twin), direction, 2000, generator())
    exact_vector, drawn_vector = (torch.cat([c.flatten() for c in v]) for v in (exact, drawn))
    assert relative_error(drawn_vector, exact_vector) < 0.03
    assert (estimate - gradient).norm() < 0.02


def test_the_cross_term_is_unbiased_with_two_draws_too() -> None:
    """The mean taken off costs one draw of K: dividing by K would halve this one."""
    made = problem("categorical_2")
    theta, phi = Theta.of(made.policy), phi_of(made)
    size = sum(t[0].numel() for t in theta.tensors)
    direction = torch.randn(1, size, generator=generator(1)).double()
    exact, _ = cross_term(made, theta, phi, direction, 2, generator())
    twin, draws = sampled(made), generator()
    found = [cross_term(twin, theta, phi_of(twin), direction, 2, draws)[0][0] for _ in range(200)]
    assert relative_error(torch.stack(found).mean(0), exact[0]) < 0.1


def test_same_draws_same_result_and_few_draws_are_noisy() -> None:
    made = sampled(problem("gaussian_1d"))
    solver = FisherImplicit(TIGHT, damping=0.0, samples=4)
    assert torch.equal(hypergradient(solver, made, 1), hypergradient(solver, made, 1))
    assert not torch.equal(hypergradient(solver, made, 1), hypergradient(solver, made, 2))


def test_hypergradient_respects_the_gauge() -> None:
    """(U, λ) → c(U, λ) changes neither θ* nor, at any damping, d F/d log U."""
    results = []
    for scale in (1.0, 50.0):
        made = problem("gaussian_2d", solve=False)
        reward = loss_of(made).reward
        assert isinstance(reward, Mahalanobis)
        reward.set_u(scale * reward.u.detach())
        loss = PolicyGradient(reward, regulariser=Entropy(scale)).double()
        made = replace(made, loss=loss)
        solve_inner(made, tolerance=1e-10)
        results.append(hypergradient(FisherImplicit(TIGHT, damping=0.3), made))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-9)


def test_damping_and_rows_change_the_answer_a_little() -> None:
    made = problem("gaussian_10d")
    exact = hypergradient(solvers()["fisher_implicit"], made)
    assert 1e-4 < relative_error(hypergradient(FisherImplicit(TIGHT), made), exact) < 0.2
    assert relative_error(hypergradient(FisherImplicit(rows=None, damping=0.0), made), exact) < 0.02


def test_the_warm_start_passes_from_solve_to_solve() -> None:
    made = problem("mlp")
    solver = FisherImplicit(partial(conjugate_gradient, tolerance=1e-6, max_iterations=500))
    first = solver.hypergradient(made, Warm(), generator())
    second = solver.hypergradient(made, first.warm, generator())
    assert first.report["linear_iterations"] > 3
    assert second.report["linear_iterations"] <= 1


def test_reports_say_when_they_did_not_converge() -> None:
    made = problem("mlp")
    short = FisherImplicit(
        partial(conjugate_gradient, tolerance=1e-8, max_iterations=2), damping=0.0
    )
    report = short.hypergradient(made, Warm(), generator()).report
    assert report["linear_converged"] == 0.0
    assert report["linear_residual"] > 1e-8
    assert report["linear_iterations"] == 2.0
    assert report["inner_gradient_norm"] < 1e-9
    report = Unrolled(steps=3).hypergradient(made, Warm(), generator()).report
    assert report["linear_converged"] == 0.0
    with torch.no_grad():
        next(made.policy.parameters()).add_(0.5)
    report = FisherImplicit().hypergradient(made, Warm(), generator()).report
    assert report["inner_gradient_norm"] > 1e-2


def test_exact_implicit_says_when_theta_is_no_minimum() -> None:
    made = problem("gaussian_1d")
    with torch.no_grad():
        # For σ² far below λ/(2U) the loss in log σ is concave: −log σ bends with the bound's sigmoid.
        made.policy.set_std(torch.tensor([1e-3]).double())  # type: ignore[union-attr]
    report = ExactImplicit().hypergradient(made, Warm(), generator()).report
    assert report["linear_converged"] == 0.0


def test_unrolled_is_the_truncated_neumann_series() -> None:
    """At a stationary θ, k steps of size s give the k terms s·Σ(I − sH)^i (Lorraine 2020, section 3)."""
    from mbrl_bilevel.outer.linear_solvers import neumann_series

    made = problem("gaussian_2d")
    for steps in (1, 5):
        series = Neumann(partial(neumann_series, step=0.1, tolerance=0.0, max_iterations=steps))
        torch.testing.assert_close(
            hypergradient(Unrolled(steps=steps, step_size=0.1), made),
            hypergradient(series, made),
            rtol=1e-7,
            atol=1e-9,
        )


def test_exact_solver_with_an_estimator_whose_second_derivative_is_right() -> None:
    made = problem("gaussian_1d")
    truth = finite_differences(made)
    loss = loss_of(sampled(made))

    def noisy(samples: int) -> Problem:
        return replace(made, loss=PolicyGradient(loss.reward, DiCE(samples), loss.regulariser))

    exact = hypergradient(ExactImplicit(samples=4000), noisy(4000))
    assert relative_error(exact, truth) < 0.06
    assert relative_error(hypergradient(Unrolled(steps=30), noisy(300)), truth) < 0.2


def test_function_space_with_a_sampled_reward() -> None:
    made = problem("gaussian_2d_full")
    truth = finite_differences(made)
    assert relative_error(hypergradient(FunctionSpace(samples=200), sampled(made)), truth) < 0.05


def test_a_custom_objective_needs_no_change_to_a_solver() -> None:
    made = problem("kl_weight")

    def worst_dimension(policy: GaussianPolicy, batch: Batch) -> Tensor:
        return batch.mean((policy.dist(batch.x).mean[..., 1] - batch.y[..., 1]).pow(4))

    custom = replace(made, objective=worst_dimension)  # type: ignore[arg-type]
    truth = finite_differences(custom)
    for name in ("exact_implicit", "fisher_implicit", "unrolled"):
        assert relative_error(hypergradient(solvers()[name], custom), truth) < 1e-5


def test_no_memory_is_kept_over_many_solves() -> None:
    made = problem("gaussian_2d", solve=False)
    solver, warm, g = FisherImplicit(), Warm(), generator()

    def tensors() -> int:
        gc.collect()
        return sum(type(o) is Tensor for o in gc.get_objects())

    for _ in range(3):
        warm = solver.hypergradient(made, warm, g).warm
    before = tensors()
    for _ in range(100):
        warm = solver.hypergradient(made, warm, g).warm
    assert tensors() <= before + 2
    assert warm.solution is not None
    assert not warm.solution.requires_grad


def _with(made: Problem, **changes: object) -> Problem:
    loss = loss_of(made)
    parts = {
        "reward": loss.reward,
        "estimator": loss.estimator,
        "regulariser": loss.regulariser,
        **changes,
    }
    return replace(made, loss=PolicyGradient(**parts))  # type: ignore[arg-type]


def _mixture(made: Problem) -> Problem:
    policy = MixturePolicy(2, 1, generator=generator(), components=2, members=1, hidden=()).double()
    return replace(_with(made, estimator=LeaveOneOut(8)), policy=policy)


def _free(made: Problem) -> Problem:
    loss_of(made).requires_grad_(False)
    return made


def _kl_only(made: Problem) -> Problem:
    return _with(made, regulariser=KL(made.policy, 0.0))


ALL = [FisherImplicit(), ExactImplicit(), Neumann(), Unrolled(), FunctionSpace()]
REFUSED: list[tuple[object, Callable[[Problem], Problem], str]] = [
    *((s, lambda p: _with(p, estimator=GroupNormalised(8)), "unbiased") for s in ALL),
    *((s, lambda p: replace(p, loss=NLL()), "PolicyGradient") for s in ALL),
    *((s, _free, "nothing to infer") for s in ALL),
    *((s, lambda p: _with(p, estimator=LeaveOneOut(8)), "second derivative") for s in ALL[1:4]),
    (FisherImplicit(), _mixture, 'fisher="sampled"'),
    (FisherImplicit(), _kl_only, "Λ"),
    (FisherImplicit(), lambda p: _with(p, regulariser=Entropy([1.0])), "temperature"),
    (ExactImplicit(max_parameters=3), lambda p: p, "FisherImplicit"),
    (FunctionSpace(), lambda p: replace(p, objective=OneStepMSE()), "one-step likelihood"),
    (FunctionSpace(), _mixture, "model"),
    (
        FunctionSpace(),
        lambda p: _with(p, regulariser=Sum(Entropy(0.5), KL(p.policy, 0.5, learnable=True))),
        "KL",
    ),
]


@pytest.mark.parametrize(("solver", "change", "reason"), REFUSED)
def test_refuses(solver: FisherImplicit, change: Callable[[Problem], Problem], reason: str) -> None:
    with pytest.raises(UnsupportedCombinationError, match=reason) as caught:
        solver.check(change(problem("gaussian_1d", solve=False)))
    assert "\n" not in str(caught.value)


def test_first_order_solvers_accept_score_functions_and_mixtures() -> None:
    made = _with(problem("gaussian_1d", solve=False), estimator=LeaveOneOut(8))
    FisherImplicit().check(made)
    FunctionSpace().check(made)
    mixture = _mixture(made)
    solver = FisherImplicit(fisher="sampled")
    solver.check(mixture)
    gradient = hypergradient(solver, mixture)
    assert bool(gradient.isfinite().all())
    assert bool(gradient.any())


@pytest.mark.parametrize(
    "make",
    [
        lambda: FisherImplicit(damping=-1.0),
        lambda: FisherImplicit(rows=0),
        lambda: FisherImplicit(samples=1),
        lambda: FisherImplicit(fisher="empirical"),  # type: ignore[arg-type]
        lambda: Unrolled(steps=0),
        lambda: FunctionSpace(samples=3),
    ],
)
def test_bad_settings(make: Callable[[], object]) -> None:
    with pytest.raises(InvalidInputError):
        make()


def test_a_parameter_without_members_is_refused() -> None:
    policy = GaussianPolicy(2, 1, generator=generator(), members=3, hidden=())
    policy.extra = nn.Parameter(torch.zeros(2))
    with pytest.raises(InvalidInputError, match="extra"):
        Theta.of(policy)
