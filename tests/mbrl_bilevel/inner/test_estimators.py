"""Estimators against the exact gradient, Hessian and cross term, on seeded problems in float64.

Every row of a large batch is one replicate: the same parameters, its own draws. A mean gradient g
over N rows is tested by Hotelling's N (g − g₀)ᵀ S⁻¹ (g − g₀) ~ χ²; a right estimator fails one
test in ``FALSE_ALARM``⁻¹ seeds, and the seeds are fixed.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.inner.estimators import (
    REINFORCE,
    Analytic,
    DiCE,
    Estimator,
    GroupNormalised,
    LeaveOneOut,
    MovingAverage,
    Pathwise,
)
from mbrl_bilevel.inner.reward_transforms import Exponential, MinShift
from mbrl_bilevel.inner.rewards import RBF, Mahalanobis, Reward, RewardMatrix
from mbrl_bilevel.policies.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    FullGaussian,
)
from mbrl_bilevel.policies.mixture import GaussianMixture

FALSE_ALARM = 1e-4
ROWS = 40_000

UNBIASED: dict[str, Estimator] = {
    "reinforce": REINFORCE(2),
    "reinforce, number": REINFORCE(2, baseline=-2.5),
    "reinforce, function": REINFORCE(2, baseline=lambda x: -1.0 - x[..., 0].square()),
    "leave-one-out": LeaveOneOut(3),
    "pathwise": Pathwise(2),
    "dice": DiCE(3),
}
BIASED: dict[str, Estimator] = {
    "group-normalised": GroupNormalised(8),
    "min-shift": REINFORCE(8, transforms=(MinShift(),)),
    "exponential": LeaveOneOut(8, transforms=(Exponential(),)),
    "exponential pathwise": Pathwise(8, transforms=(Exponential(),)),
    "exponential dice": DiCE(8, transforms=(Exponential(),)),
    "clipped": LeaveOneOut(8, clip=(-3.0, 5.0)),
}
Params = tuple[Tensor, ...]


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gaussian() -> tuple[type[DiagonalGaussian], Params, Reward, Tensor]:
    return (
        DiagonalGaussian,
        (double(0.3, -0.5), double(-0.4, 0.2)),
        Mahalanobis(2, initial=0.7),
        double(1.0, -1.0),
    )


def full() -> tuple[type[FullGaussian], Params, Reward, Tensor]:
    lower = double(0.8, 0.0, 0.5, 0.6).reshape(2, 2)
    reward = Mahalanobis(2, "full").double()
    reward.set_matrix(double(1.0, 0.4, 0.4, 0.5).reshape(2, 2))
    return FullGaussian, (double(0.3, -0.5), lower), reward, double(1.0, -1.0)


def mixture() -> tuple[type[GaussianMixture], Params, Reward, Tensor]:
    means = double(-1.0, 0.3, 1.2, -0.4).reshape(2, 2)
    scales = double(-0.5, 0.1, 0.2, -0.6).reshape(2, 2)
    return GaussianMixture, (double(0.2, -0.3), means, scales), RBF(2), double(0.4, 0.1)


def classes() -> tuple[type[Categorical], Params, Reward, Tensor]:
    matrix = torch.tensor([[1.0, -2.0, 0.5], [0.3, 2.0, -1.0], [-0.7, 0.4, 1.5]])
    return Categorical, (double(0.5, -0.2, 0.1),), RewardMatrix(matrix).double(), double(1.0)


PROBLEMS: dict[str, Callable[[], tuple[type[Distribution], Params, Reward, Tensor]]] = {
    "gaussian": gaussian,
    "full": full,
    "mixture": mixture,
    "classes": classes,
}


def per_row(params: Params, rows: int) -> Params:
    """Leaves [1, rows, ...], the same parameters in every row."""
    return tuple(p.expand(1, rows, *p.shape).clone().requires_grad_() for p in params)


def row_gradients(estimator: Estimator, problem: str, rows: int, seed: int) -> Tensor:
    """One gradient of E[r] per row, [rows, P]."""
    kind, params, reward, target = PROBLEMS[problem]()
    leaves = per_row(params, rows)
    y = target.expand(1, rows, -1)
    generator = torch.Generator().manual_seed(seed)
    x = torch.full((1, rows, 1), 0.5, dtype=torch.float64)
    surrogate = estimator.surrogate(kind.from_params(leaves), reward, y, x, generator)
    assert surrogate.shape == (1, rows)
    gradients = torch.autograd.grad(surrogate.sum(), leaves)
    return torch.cat([g.reshape(rows, -1) for g in gradients], -1)


def p_value(samples: Tensor, exact: Tensor) -> float:
    """Hotelling's test that the rows of ``samples`` have the mean ``exact``.

    Directions without spread (the upper triangle of L, the constant shift of logits) are left to
    the tolerance: there the two must agree to round-off.
    """
    gap = samples.mean(0) - exact
    values, vectors = torch.linalg.eigh(torch.atleast_2d(samples.T.cov()))
    live = values > 1e-12 * values.max()
    along = vectors.T @ gap
    assert along[~live].abs().max() < 1e-9 if (~live).any() else True
    statistic = len(samples) * (along[live].square() / values[live]).sum()
    return float(stats.chi2.sf(statistic.item(), int(live.sum())))


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("name", UNBIASED)
def test_unbiased_estimators_have_the_exact_mean_gradient(name: str, problem: str) -> None:
    if name == "pathwise" and problem in ("mixture", "classes"):
        pytest.skip("no reparameterised draws")
    exact = row_gradients(Analytic(), problem, 1, 0)[0]
    assert exact.abs().max() > 0.1  # the problem is not degenerate
    assert UNBIASED[name].unbiased is True
    assert p_value(row_gradients(UNBIASED[name], problem, ROWS, 1), exact) > FALSE_ALARM


@pytest.mark.parametrize("name", BIASED)
def test_biased_estimators_say_so_and_are(name: str) -> None:
    exact = row_gradients(Analytic(), "gaussian", 1, 0)[0]
    assert BIASED[name].unbiased is False
    assert p_value(row_gradients(BIASED[name], "gaussian", ROWS, 1), exact) < 1e-12


def test_batch_minimum_is_biased_too() -> None:
    """min over the whole batch depends on each sample less, so the bias is small but there."""
    estimator = REINFORCE(2, transforms=(MinShift("batch"),))
    gradients = torch.cat([row_gradients(estimator, "gaussian", 4, s) for s in range(4000)])
    exact = row_gradients(Analytic(), "gaussian", 1, 0)[0]
    assert not estimator.unbiased
    # Rows of one batch share the minimum, so the batches are the replicates.
    assert p_value(gradients.reshape(4000, 4, -1).mean(1), exact) < 1e-6


@pytest.mark.parametrize("problem", ["gaussian", "classes", "mixture"])
def test_leave_one_out_has_less_variance_where_the_mean_reward_is_large(problem: str) -> None:
    kind, params, reward, target = PROBLEMS[problem]()
    dist = kind.from_params(tuple(p[None, None] for p in params))
    draws = dist.sample(ROWS, torch.Generator().manual_seed(0))
    values = _offset(reward, -3.0)(draws, target[None, None], torch.zeros(1, 1, 1))
    assert values.mean().abs() > values.std()
    plain, loo = (
        _offset_gradients(e, problem, -3.0).var(0).sum() for e in (REINFORCE(8), LeaveOneOut(8))
    )
    assert loo < 0.6 * plain


def _offset(reward: Reward, by: float) -> Reward:
    return lambda y_hat, y, x: reward(y_hat, y, x) + by


def _offset_gradients(estimator: Estimator, problem: str, by: float) -> Tensor:
    kind, params, reward, target = PROBLEMS[problem]()
    leaves = per_row(params, ROWS)
    generator = torch.Generator().manual_seed(3)
    surrogate = estimator.surrogate(
        kind.from_params(leaves),
        _offset(reward, by),
        target.expand(1, ROWS, -1),
        torch.zeros(1, ROWS, 1),
        generator,
    )
    gradients = torch.autograd.grad(surrogate.sum(), leaves)
    return torch.cat([g.reshape(ROWS, -1) for g in gradients], -1)


@pytest.mark.parametrize(
    "estimator",
    [LeaveOneOut(4), DiCE(4), Pathwise(4), GroupNormalised(4)],
    ids=lambda e: type(e).__name__,
)
def test_a_constant_added_to_the_reward_changes_no_gradient(estimator: Estimator) -> None:
    for by in (5.0, -300.0):
        torch.testing.assert_close(
            _offset_gradients(estimator, "gaussian", by),
            _offset_gradients(estimator, "gaussian", 0.0),
            rtol=1e-9,
            atol=1e-9,
        )


def test_a_constant_added_to_the_reward_changes_reinforce_only_in_variance() -> None:
    exact = row_gradients(Analytic(), "gaussian", 1, 0)[0]
    shifted = _offset_gradients(REINFORCE(2), "gaussian", 20.0)
    assert p_value(shifted, exact) > FALSE_ALARM
    assert (shifted.var(0) > 4.0 * _offset_gradients(REINFORCE(2), "gaussian", 0.0).var(0)).all()


def test_leave_one_out_cancels_the_minimum_shift() -> None:
    shifted = LeaveOneOut(4, transforms=(MinShift("batch"),))
    torch.testing.assert_close(
        row_gradients(shifted, "gaussian", 64, 0), row_gradients(LeaveOneOut(4), "gaussian", 64, 0)
    )


# The problem of the tables in the documentation: one dimension, U = 2, λ = 1, data at y = μ.
# The right inner optimum is σ² = λ/(2U) = .25, where the gradient of G in log σ is zero.


def quadratic_reward() -> Mahalanobis:
    """U = 2 to all digits of float64."""
    reward = Mahalanobis(1).double()
    reward.set_u(double(2.0))
    return reward


def log_std_gradients(estimator: Estimator, variance: float, rows: int, seed: int = 0) -> Tensor:
    """∂(E[r] + H)/∂ log σ per row, at λ = 1 and U = 2."""
    mean = torch.zeros(1, rows, 1, dtype=torch.float64)
    log_std = torch.full_like(mean, 0.5 * math.log(variance)).requires_grad_()
    surrogate = estimator.surrogate(
        DiagonalGaussian(mean, log_std),
        quadratic_reward(),
        torch.zeros_like(mean),
        torch.zeros_like(mean),
        torch.Generator().manual_seed(seed),
    )
    (gradient,) = torch.autograd.grad(surrogate.sum(), log_std)
    return gradient.flatten() + 1.0


def test_the_right_estimators_are_stationary_at_the_right_variance() -> None:
    for estimator in (REINFORCE(8), LeaveOneOut(8), Pathwise(8), DiCE(8)):
        gradient = log_std_gradients(estimator, 0.25, ROWS)
        assert p_value(gradient.unsqueeze(-1), double(0.0)) > FALSE_ALARM
    assert log_std_gradients(Analytic(), 0.25, 1).abs().item() < 1e-12


def test_group_normalised_shrinks_the_variance_without_end() -> None:
    """Its gradient in log σ is the same at every σ: 1 − √2 for many samples, so σ² goes to zero."""
    for variance in (4.0, 0.25, 1e-5):
        gradient = log_std_gradients(GroupNormalised(512), variance, 4000)
        assert gradient.mean().item() == pytest.approx(1.0 - math.sqrt(2.0), abs=0.02)
    # What stops it in the end is only the ε = 1e-8 beside the standard deviation.
    assert log_std_gradients(GroupNormalised(512), 1e-8, 4000).mean() > -0.1
    # Few samples weaken it, down to the other sign: then σ² grows without end instead.
    assert log_std_gradients(GroupNormalised(8), 1e-6, ROWS).mean() < -0.05
    assert log_std_gradients(GroupNormalised(4), 1e6, ROWS).mean() > 0.1


def test_shifted_exponential_and_clipped_rewards_widen_the_policy() -> None:
    """The size of the push away from the right σ² = .25, each against its own formula."""
    shifted = log_std_gradients(REINFORCE(8, transforms=(MinShift(),)), 0.25, ROWS)
    # 1 + ½ E[(z² − max z²)(1 − z²)] over eight normal draws, by its own Monte Carlo.
    z2 = torch.randn(8, 400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    z2 = z2.square()
    expected = 1.0 + 0.5 * ((z2.amax(0) - z2) * (z2 - 1.0)).mean().item()
    assert shifted.mean().item() == pytest.approx(expected, abs=0.015)
    assert expected > 0.4

    exponential = log_std_gradients(LeaveOneOut(8, transforms=(Exponential(),)), 0.25, ROWS)
    # E[exp(−Uσ²z²)] = (1 + 2Uσ²)^(−½), so the gradient is 1 − 2Uσ²(1 + 2Uσ²)^(−3/2).
    assert exponential.mean().item() == pytest.approx(1.0 - 2.0**-1.5, abs=0.01)

    edge = 1.5  # the clip drops |z| > 1.5
    low = -0.5 * edge**2 - math.log(0.5) - 0.5 * math.log(2.0 * math.pi)
    clipped = log_std_gradients(REINFORCE(8, clip=(low, 9.0)), 0.25, ROWS)
    kept = stats.norm.expect(lambda z: -0.5 * z**2 * (z**2 - 1.0), lb=-edge, ub=edge)
    assert clipped.mean().item() == pytest.approx(1.0 + kept, abs=0.01)
    assert kept > -0.1  # nearly all of the −1 that balances the entropy is gone


def second_derivative(estimator: Estimator, rows: int) -> Tensor:
    """∂²(surrogate + H)/∂(log σ)² per row at the right optimum; H is linear in log σ."""
    mean = torch.zeros(1, rows, 1, dtype=torch.float64)
    log_std = torch.full_like(mean, math.log(0.5)).requires_grad_()
    surrogate = estimator.surrogate(
        DiagonalGaussian(mean, log_std),
        quadratic_reward(),
        torch.zeros_like(mean),
        torch.zeros_like(mean),
        torch.Generator().manual_seed(2),
    )
    (gradient,) = torch.autograd.grad(surrogate.sum(), log_std, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), log_std)
    return second.flatten()


def test_second_derivatives_are_right_where_the_flag_says_so() -> None:
    """−∂²G/∂(log σ)² is Λ·Fisher = +2 at λ = 1."""
    assert second_derivative(Analytic(), 1).item() == pytest.approx(-2.0, rel=1e-12)
    for estimator in (Pathwise(8), DiCE(8)):
        assert estimator.second_derivative is True
        samples = second_derivative(estimator, ROWS).unsqueeze(-1)
        assert p_value(samples, double(-2.0)) > FALSE_ALARM


@pytest.mark.parametrize(
    "estimator", [REINFORCE(8), LeaveOneOut(8), GroupNormalised(8)], ids=lambda e: type(e).__name__
)
def test_a_score_function_surrogate_differentiated_twice_is_wrong(estimator: Estimator) -> None:
    assert estimator.second_derivative is False
    assert p_value(second_derivative(estimator, ROWS).unsqueeze(-1), double(-2.0)) < 1e-12


def test_the_reinforce_trap_has_even_the_wrong_sign() -> None:
    """−3 where +2 is right: E[r ∂² log p] = E[−½z²·(−2z²)] = 3."""
    curvature = -second_derivative(REINFORCE(8), ROWS).mean().item()
    assert curvature == pytest.approx(-3.0, abs=0.1)


def test_pathwise_hessian_against_finite_differences() -> None:
    """Of the surrogate itself at common draws: value and derivatives belong together."""
    reward = RBF(2, "full").double()
    y, x = double(0.2, 0.4).reshape(1, 1, 2), torch.zeros(1, 1, 1)

    def value(flat: Tensor, estimator: Estimator) -> Tensor:
        dist = DiagonalGaussian(flat[:2].reshape(1, 1, 2), flat[2:].reshape(1, 1, 2))
        return estimator.surrogate(dist, reward, y, x, torch.Generator().manual_seed(0)).sum()

    at, step = double(0.1, -0.3, -0.5, 0.2), 1e-4
    for estimator in (Pathwise(16), Analytic()):
        hessian = torch.autograd.functional.hessian(lambda f, e=estimator: value(f, e), at)
        eye = step * torch.eye(4, dtype=torch.float64)
        numeric = torch.stack(
            [
                torch.stack(
                    [
                        sum(
                            s * t * value(at + s * a + t * b, estimator)
                            for s in (1, -1)
                            for t in (1, -1)
                        )
                        / (4 * step**2)
                        for b in eye
                    ]
                )
                for a in eye
            ]
        )
        torch.testing.assert_close(hessian, numeric, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [*UNBIASED])
def test_the_cross_term_is_right_from_first_derivatives(name: str) -> None:
    """∂²/∂θ∂φ of each surrogate is E[∇_θ log p · ∇_φ rᵀ], as the implicit solvers use it."""
    estimator, rows = UNBIASED[name], 2000

    def cross(estimator: Estimator, seed: int) -> Tensor:
        kind, params, _, target = gaussian()
        reward = Mahalanobis(2, initial=0.7).double()
        leaves = per_row(params, rows)
        generator = torch.Generator().manual_seed(seed)
        x = torch.full((1, rows, 1), 0.5, dtype=torch.float64)
        surrogate = estimator.surrogate(
            kind.from_params(leaves), reward, target.expand(1, rows, -1), x, generator
        )
        gradients = torch.autograd.grad(surrogate.sum(), leaves, create_graph=True)
        means = torch.cat([g.mean((0, 1)) for g in gradients])
        columns = [torch.autograd.grad(m, reward.log_u, retain_graph=True)[0] for m in means]
        return torch.cat(columns)

    samples = torch.stack([cross(estimator, seed) for seed in range(60)])
    # Sixty batch means are nearly normal; their own spread has to be estimated, hence Student's t.
    gap = samples.mean(0) - cross(Analytic(), 0)
    t = gap * math.sqrt(len(samples)) / samples.std(0).clamp_min(1e-300)
    live = samples.std(0) > 1e-12
    assert gap[~live].abs().max().item() < 1e-9 if (~live).any() else True
    p = stats.t.sf(t[live].abs().max().item(), len(samples) - 1) * 2 * int(live.sum())
    assert p > FALSE_ALARM


def test_moving_average_is_explicit_unbiased_and_can_be_stopped() -> None:
    baseline = MovingAverage(decay=0.5)
    estimator = REINFORCE(2, baseline=baseline)
    row_gradients(estimator, "gaussian", 1000, 0)
    first = baseline.value.clone()
    assert baseline.count == 1
    assert first < -1.0  # the first rewards are taken whole
    exact = row_gradients(Analytic(), "gaussian", 1, 0)[0]
    used = row_gradients(estimator, "gaussian", ROWS, 1)
    assert baseline.count == 2
    assert p_value(used, exact) > FALSE_ALARM
    fixed = row_gradients(REINFORCE(2, baseline=first.item()), "gaussian", ROWS, 1)
    torch.testing.assert_close(used, fixed)  # the average in use is the one before the update
    baseline.eval()
    stopped = baseline.value.clone()
    row_gradients(estimator, "gaussian", 10, 2)
    torch.testing.assert_close(baseline.value, stopped)


def test_transforms_by_hand() -> None:
    reward = torch.tensor([[[1.0, 5.0]], [[3.0, -2.0]]])  # [K, E, B] = [2, 1, 2]
    samples = torch.tensor([[[0.0, 7.0]], [[2.0, 0.0]]])
    torch.testing.assert_close(MinShift()(reward), samples)
    torch.testing.assert_close(MinShift("batch")(reward), reward + 2.0)
    members = torch.cat((reward, reward + 10.0), dim=1)
    torch.testing.assert_close(MinShift("batch")(members), torch.cat((reward + 2.0,) * 2, dim=1))
    torch.testing.assert_close(Exponential(2.0)(reward), (reward / 2.0).exp())


def test_the_value_of_dice_and_pathwise_is_the_mean_reward() -> None:
    kind, params, reward, target = gaussian()
    dist = kind.from_params(tuple(p[None, None] for p in params))
    y, x = target[None, None], torch.zeros(1, 1, 1)
    draws = dist.sample(5, torch.Generator().manual_seed(0))
    for estimator in (DiCE(5), Pathwise(5)):
        value = estimator.surrogate(dist, reward, y, x, torch.Generator().manual_seed(0))
        torch.testing.assert_close(value, reward(draws, y, x).mean(0))


def test_same_generator_same_surrogate() -> None:
    for estimator in UNBIASED.values():
        torch.testing.assert_close(
            row_gradients(estimator, "gaussian", 5, 7),
            row_gradients(estimator, "gaussian", 5, 7),
            rtol=0.0,
            atol=0.0,
        )


@pytest.mark.parametrize("kind", [LeaveOneOut, GroupNormalised, DiCE])
def test_too_few_samples_are_refused(kind: type[LeaveOneOut]) -> None:
    with pytest.raises(InvalidInputError, match="samples must be at least 2"):
        kind(1)
    with pytest.raises(InvalidInputError, match="samples must be at least 1"):
        REINFORCE(0)


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="clip"):
        REINFORCE(2, clip=(1.0, -1.0))
    with pytest.raises(InvalidInputError, match="decay"):
        MovingAverage(1.0)
    with pytest.raises(InvalidInputError, match="over"):
        MinShift("rows")  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="scale"):
        Exponential(0.0)


@pytest.mark.parametrize("problem", ["mixture", "classes"])
def test_pathwise_refuses_policies_without_reparameterised_draws(problem: str) -> None:
    with pytest.raises(UnsupportedCombinationError, match="LeaveOneOut"):
        row_gradients(Pathwise(2), problem, 3, 0)


def test_analytic_refuses_rewards_without_a_closed_form() -> None:
    dist = DiagonalGaussian(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))
    zeros = torch.zeros(1, 2, 1)
    with pytest.raises(UnsupportedCombinationError, match="LeaveOneOut"):
        Analytic().surrogate(dist, lambda a, b, c: a.sum(-1), zeros, zeros, torch.Generator())


@pytest.mark.parametrize("estimator", [REINFORCE(3), LeaveOneOut(3), Pathwise(3), DiCE(3)])
def test_a_reward_of_the_wrong_shape_is_refused_not_broadcast(estimator: Estimator) -> None:
    dist = DiagonalGaussian(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))
    zeros = torch.zeros(1, 2, 1)
    with pytest.raises(InvalidInputError, match=r"\(3, 1, 2\); got \(3, 1, 2, 1\)"):
        estimator.surrogate(dist, lambda a, b, c: -(a - b).abs(), zeros, zeros, torch.Generator())
