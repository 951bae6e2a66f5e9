"""What the method is equal to, to round-off: known losses in other words, and its exact optima.

The statements are those of docs/ and of From Data to Rewards (arXiv 2510.07624); none is a result.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.losses import MSE, NLL, PolicyGradient
from mbrl_bilevel.inner.positive import PositiveFunction
from mbrl_bilevel.inner.regularisers import KL, Entropy, Regulariser, Sum
from mbrl_bilevel.inner.reward_transforms import Exponential
from mbrl_bilevel.inner.rewards import RBF, Mahalanobis, RewardMatrix
from mbrl_bilevel.policies.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    FullGaussian,
)
from mbrl_bilevel.policies.policies import GaussianPolicy

E, B, D, X = 2, 6, 3, 2


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch() -> Batch:
    return Batch(draw(E, B, X), draw(E, B, D, seed=1))


def policy() -> GaussianPolicy:
    made = GaussianPolicy(
        X, D, generator=torch.Generator().manual_seed(0), members=E, hidden=(8,), scale="constant"
    ).double()
    made.set_std(torch.tensor([0.3, 0.8, 1.7], dtype=torch.float64))
    return made


def mean_gradients(value: Tensor, model: GaussianPolicy) -> list[Tensor]:
    """∇ of the loss in the parameters of the mean."""
    return list(torch.autograd.grad(value.sum(), list(model.network.parameters())))


def assert_equal(left: list[Tensor], right: list[Tensor]) -> None:
    assert max(float(t.abs().max()) for t in left) > 1e-2
    for one, two in zip(left, right, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-14)


def reward_gradients(reward: Mahalanobis, regulariser: Regulariser) -> list[Tensor]:
    model = policy()
    loss = PolicyGradient(reward, regulariser=regulariser)
    return mean_gradients(loss(model, batch(), torch.Generator())[0], model)


def test_quadratic_reward_and_entropy_are_weighted_mse_in_the_mean() -> None:
    reward, model, data = Mahalanobis(D).double(), policy(), batch()
    reward.set_u(torch.tensor([0.2, 1.0, 3.0], dtype=torch.float64))
    weighted = (model.dist(data.x).mean - data.y).square() * reward.u.detach()
    expected = mean_gradients(weighted.sum(-1).mean(-1) / D, model)
    for regulariser in (Entropy(1.0), Entropy(0.01), Entropy([0.1, 1.0, 10.0])):
        assert_equal(reward_gradients(reward, regulariser), expected)


def test_at_u_identity_it_is_mse_also_under_a_temperature_of_x() -> None:
    """λ(x) moves the variance alone: the mean sees the unit-variance loss, as in Faithful."""
    reward, model = Mahalanobis(D, "scaled_identity").double(), policy()
    reward.set_u(torch.ones(D, dtype=torch.float64))
    function = PositiveFunction(X).double()
    torch.nn.init.ones_(function.network.layers[-1].weight)
    expected = mean_gradients(MSE()(model, batch(), torch.Generator())[0], model)
    assert_equal(reward_gradients(reward, Entropy(function)), expected)
    assert_equal(reward_gradients(reward, Entropy(0.3)), expected)


def test_at_half_the_precision_the_mean_gradient_is_that_of_nll() -> None:
    """U = 1/(2σ²) and any λ: the gradient in the mean's parameters is NLL's at this fixed σ."""
    reward, model, data = Mahalanobis(D).double(), policy(), batch()
    reward.set_u(0.5 / model.dist(data.x).std[0, 0].detach().square())
    expected = mean_gradients(NLL()(model, data, torch.Generator())[0], model)
    assert_equal(reward_gradients(reward, Entropy(1.0)), expected)


def test_at_the_inner_optimum_of_the_data_the_scale_gradients_vanish_together() -> None:
    """With u = λ/(2Σ) both NLL and −G are stationary in log σ at σ² = Σ, the residual's moment."""
    model, data, temperature = policy(), batch(), 0.6
    # One member, so that one Σ serves: both members would each want their own.
    one = Batch(data.x[:1], data.y[:1])
    model = GaussianPolicy(X, D, generator=torch.Generator(), members=1, hidden=(8,)).double()
    moment = (one.y - model.dist(one.x).mean).square().mean((0, 1)).detach()
    model.set_std(moment.sqrt())
    reward = Mahalanobis(D).double()
    reward.set_u(temperature / (2.0 * moment))
    for loss in (NLL(), PolicyGradient(reward, regulariser=Entropy(temperature))):
        value = loss(model, one, torch.Generator())[0].sum()
        (gradient,) = torch.autograd.grad(value, [model.raw_scale], retain_graph=True)
        assert gradient.abs().max() < 1e-12


# The inner optimum in function space: one input x, several y.


def spd(seed: int) -> Tensor:
    root = draw(D, D, seed=seed)
    return root @ root.mT + 0.3 * torch.eye(D, dtype=torch.float64)


def full_reward(seed: int = 3) -> Mahalanobis:
    reward = Mahalanobis(D, "full").double()
    reward.set_matrix(spd(seed))
    return reward


class Fixed:
    """A reference that predicts one distribution everywhere."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        self.parts = mean, torch.linalg.cholesky(covariance)

    def dist(self, x: Tensor) -> FullGaussian:
        rows = x.shape[1]
        mean, lower = self.parts
        return FullGaussian(mean.expand(1, rows, D), lower.expand(1, rows, D, D))


def mean_objective(
    loss: PolicyGradient, build: Callable[[Tensor], Distribution], flat: Tensor, y: Tensor
) -> Tensor:
    """G over the rows of ``y`` [N, D], all at the same x, of the policy ``build(flat)``."""
    rows = y.unsqueeze(0)
    x = torch.zeros(1, len(y), 1, dtype=torch.float64)
    return loss.objective(build(flat), rows, x).mean()


def full_from(rows: int) -> Callable[[Tensor], FullGaussian]:
    def build(flat: Tensor) -> FullGaussian:
        lower = flat[D:].reshape(D, D).tril()
        return FullGaussian(flat[:D].expand(1, rows, D), lower.expand(1, rows, D, D))

    return build


def maximise(function: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    flat = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [flat],
        max_iter=500,
        tolerance_grad=1e-11,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -function(flat)
        loss.backward()
        return loss

    optimiser.step(closure)
    return flat.detach()


@pytest.mark.parametrize("with_reference", [False, True])
def test_inner_optimum_of_a_quadratic_reward(with_reference: bool) -> None:
    """N(E[y|x], (λ/2)U⁻¹), whatever the data's shape (here two modes); with a reference N(m₀, S₀)
    the precision is P = (λ_K S₀⁻¹ + 2U)/Λ and the mean P⁻¹(λ_K S₀⁻¹ m₀ + 2U E[y|x])/Λ."""
    y = draw(7, D, seed=2)
    y[::2] += 8.0
    reward, entropy, kl = full_reward(), 0.7, 0.4 if with_reference else 0.0
    m0, s0 = draw(D, seed=4), spd(5)
    regulariser: Regulariser = Entropy(entropy)
    if with_reference:
        regulariser = Sum(regulariser, KL(Fixed(m0, s0), kl))
    u, total = reward.matrix.detach(), entropy + kl
    precision = (kl * s0.inverse() + 2.0 * u) / total
    covariance = precision.inverse()
    mean = covariance @ (kl * s0.inverse() @ m0 + 2.0 * u @ y.mean(0)) / total
    if not with_reference:
        torch.testing.assert_close(covariance, entropy / 2.0 * u.inverse())
        torch.testing.assert_close(mean, y.mean(0))

    loss = PolicyGradient(reward, regulariser=regulariser)

    def objective(flat: Tensor) -> Tensor:
        return mean_objective(loss, full_from(len(y)), flat, y)

    optimum = torch.cat([mean, torch.linalg.cholesky(covariance).flatten()])
    stationary = torch.func.grad(objective)(optimum)
    assert stationary.abs().max() < 1e-10
    start = torch.cat([torch.zeros(D), torch.eye(D).flatten()]).double()
    assert torch.func.grad(objective)(start).abs().max() > 1.0
    found = maximise(objective, start)
    torch.testing.assert_close(found[:D], mean, rtol=1e-6, atol=1e-6)
    lower = found[D:].reshape(D, D).tril()
    torch.testing.assert_close(lower @ lower.mT, covariance, rtol=1e-5, atol=1e-6)


def test_kl_alone_can_only_sharpen_the_reference() -> None:
    """P − S₀⁻¹ = 2U/λ_K is positive definite: the variance falls below the reference's."""
    y, reward, kl = draw(5, D, seed=2), full_reward(), 0.5
    m0, s0 = draw(D, seed=4), spd(5)
    loss = PolicyGradient(reward, regulariser=KL(Fixed(m0, s0), kl))
    precision = s0.inverse() + 2.0 * reward.matrix.detach() / kl
    mean = precision.inverse() @ (s0.inverse() @ m0 + 2.0 / kl * reward.matrix.detach() @ y.mean(0))
    optimum = torch.cat([mean, torch.linalg.cholesky(precision.inverse()).flatten()])
    gradient = torch.func.grad(lambda f: mean_objective(loss, full_from(5), f, y))(optimum)
    assert gradient.abs().max() < 1e-10
    assert torch.linalg.eigvalsh(precision - s0.inverse()).min() > 0.0


def test_the_objective_is_a_reverse_kl_to_the_inner_optimum() -> None:
    """G = −Λ·KL(p_θ ‖ p*) + a number that does not depend on θ."""
    y, reward, temperature = draw(5, D, seed=2), full_reward(), 0.7
    loss = PolicyGradient(reward, regulariser=Entropy(temperature))
    best = Fixed(y.mean(0), temperature / 2.0 * reward.matrix.detach().inverse())
    rests = []
    for seed in range(4):
        flat = torch.cat([draw(D, seed=seed), torch.linalg.cholesky(spd(seed + 20)).flatten()])
        dist = full_from(1)(flat)
        kl = dist.kl(best.dist(torch.zeros(1, 1, 1))).squeeze()
        rests.append(mean_objective(loss, full_from(5), flat, y) + temperature * kl)
    torch.testing.assert_close(torch.stack(rests), rests[0].expand(4), rtol=1e-12, atol=1e-10)


@pytest.mark.parametrize("with_reference", [False, True])
def test_curvature_at_the_optimum_is_the_weight_times_fisher(with_reference: bool) -> None:
    """−∇²G = Λ·Fisher at a well-specified optimum, Λ from ``regulariser.weight``."""
    y, reward = draw(5, D, seed=2), full_reward()
    regulariser: Regulariser = Entropy(0.7)
    u = reward.matrix.detach()
    precision, mean = 2.0 * u / 0.7, y.mean(0)
    if with_reference:
        m0, s0 = draw(D, seed=4), spd(5)
        regulariser = Sum(regulariser, KL(Fixed(m0, s0), 0.4))
        precision = (0.4 * s0.inverse() + 2.0 * u) / 1.1
        mean = precision.inverse() @ (0.4 * s0.inverse() @ m0 + 2.0 * u @ y.mean(0)) / 1.1
    optimum = torch.cat([mean, torch.linalg.cholesky(precision.inverse()).flatten()])
    loss = PolicyGradient(reward, regulariser=regulariser)
    hessian = torch.func.hessian(lambda f: mean_objective(loss, full_from(5), f, y))(optimum)
    dist = full_from(1)(optimum)
    weight = regulariser.weight(torch.zeros(1, 1, 1, dtype=torch.float64))
    for seed in range(3):
        v = draw(D + D * D, seed=seed)
        v = torch.cat([v[:D], v[D:].reshape(D, D).tril().flatten()])
        tangents = (v[:D].reshape(1, 1, D), v[D:].reshape(1, 1, D, D))
        fisher = torch.cat([t.flatten() for t in dist.fisher_product(tangents)])
        torch.testing.assert_close(-hessian @ v, weight * fisher, rtol=1e-9, atol=1e-9)


# Classes.


def classes_from(rows: int) -> Callable[[Tensor], Categorical]:
    return lambda flat: Categorical(flat.expand(1, rows, len(flat)))


def table_objective(table: Tensor, temperature: float, q: Tensor) -> Callable[[Tensor], Tensor]:
    """G of logits at one x where class y has probability ``q`` [C]."""
    loss = PolicyGradient(RewardMatrix(table), regulariser=Entropy(temperature))
    classes = len(q)
    y = torch.arange(classes, dtype=torch.float64).reshape(1, -1, 1)

    def objective(logits: Tensor) -> Tensor:
        rows = loss.objective(classes_from(classes)(logits), y, y)
        return (rows.squeeze(0) * q).sum()

    return objective


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 5.0))
def test_inner_optimum_of_a_reward_matrix(seed: int, temperature: float) -> None:
    """p* = softmax(Σ_y q(y) R[ŷ, y]/λ), and −∇²G = λ·Fisher there."""
    table, q = draw(4, 4, seed=seed), draw(4, seed=seed + 1).softmax(-1)
    objective = table_objective(table, temperature, q)
    best = (table @ q) / temperature
    assert torch.func.grad(objective)(best).abs().max() < 1e-12
    probs = best.softmax(-1)
    fisher = probs.diag() - probs.outer(probs)
    torch.testing.assert_close(
        torch.func.hessian(objective)(best), -temperature * fisher, rtol=1e-9, atol=1e-12
    )
    assert torch.func.grad(objective)(best + draw(4, seed=seed + 2)).abs().max() > 1e-6


@pytest.mark.parametrize(("beta", "temperature"), [(1.0, 1.0), (3.0, 0.5), (0.2, 1.0)])
def test_constant_reward_on_hard_labels_has_the_optimum_of_label_smoothing(
    beta: float, temperature: float
) -> None:
    """R = βI, one label y per x, C classes: with κ = β/λ the inner optimum is label smoothing's at
    ε = C/(e^κ + C − 1), i.e. (1 − ε)·onehot(y) + ε/C, and so is the curvature there (up to λ).

    Only the optimum: policy gradient descends the reverse KL, cross-entropy the forward one, so the
    gradients on the way differ.
    """
    classes = 4
    q = torch.eye(classes, dtype=torch.float64)[1]
    epsilon = classes / (math.exp(beta / temperature) + classes - 1)
    smoothed = (1.0 - epsilon) * q + epsilon / classes
    objective = table_objective(beta * torch.eye(classes).double(), temperature, q)

    def cross_entropy(logits: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits[None], smoothed[None])

    best = smoothed.log()
    torch.testing.assert_close(best.softmax(-1), (beta * q / temperature).softmax(-1))
    by_torch = torch.nn.functional.cross_entropy(
        best[None], torch.tensor([1]), label_smoothing=epsilon
    )
    torch.testing.assert_close(cross_entropy(best), by_torch)
    for function in (objective, cross_entropy):
        assert torch.func.grad(function)(best).abs().max() < 1e-12
    torch.testing.assert_close(
        -torch.func.hessian(objective)(best), temperature * torch.func.hessian(cross_entropy)(best)
    )
    away = best + draw(classes)
    ours, theirs = -torch.func.grad(objective)(away), torch.func.grad(cross_entropy)(away)
    cosine = (ours @ theirs) / (ours.norm() * theirs.norm())
    assert cosine < 0.999


def test_on_soft_labels_constant_reward_is_not_label_smoothing() -> None:
    """softmax(κ q) is no affine function of q, so no ε gives it where labels are noisy."""
    q = torch.tensor([0.6, 0.3, 0.1, 0.0], dtype=torch.float64)
    p = (2.0 * q).softmax(-1)
    slopes = p.diff() / q.diff()
    assert slopes.max() - slopes.min() > 0.05


# Gauge and transforms.


@settings(max_examples=30, deadline=None)
@given(log_c=st.floats(-4.0, 4.0), form=st.sampled_from(["diagonal", "full"]))
def test_gauge(log_c: float, form: str) -> None:
    """(U, λ) → c·(U, λ) multiplies G by c, so θ* stays where it is."""
    c = math.exp(log_c)
    dist = DiagonalGaussian(draw(E, B, D), 0.3 * draw(E, B, D, seed=1))
    y, x = draw(E, B, D, seed=2), draw(E, B, X)
    matrix = spd(3) if form == "full" else spd(3).diagonal().diag()
    values = []
    for scale in (1.0, c):
        reward = Mahalanobis(D, form).double()  # type: ignore[arg-type]
        reward.set_matrix(scale * matrix)
        loss = PolicyGradient(reward, regulariser=Entropy(0.4 * scale))
        values.append(loss.objective(dist, y, x))
    torch.testing.assert_close(values[1], c * values[0], rtol=1e-10, atol=1e-12)


def test_the_exponential_transform_of_a_quadratic_reward_is_an_rbf() -> None:
    """exp(−dᵀUd) = RBF with A = 2U: the published transform is another reward, not a rescaling."""
    quadratic, rbf = full_reward(), RBF(D, "full").double()
    rbf.set_matrix(2.0 * quadratic.matrix.detach())
    y_hat, y, x = draw(4, E, B, D), draw(E, B, D, seed=1), draw(E, B, X)
    torch.testing.assert_close(
        Exponential()(quadratic(y_hat, y, x)), rbf(y_hat, y, x), rtol=1e-12, atol=0.0
    )


def test_a_reward_that_is_wide_beside_the_residuals_is_quadratic() -> None:
    """h²(RBF_h − 1) → the Mahalanobis reward with U = ½I as the bandwidth h grows."""
    y_hat, y, x = draw(4, E, B, D), draw(E, B, D, seed=1), draw(E, B, X)
    quadratic = Mahalanobis(D, "scaled_identity", 0.5).double()(y_hat, y, x)
    errors = []
    for width in (1e2, 1e3):
        rbf = RBF(D, "scaled_identity").double()
        rbf.set_u(torch.full((D,), width**-2, dtype=torch.float64))
        errors.append((width**2 * (rbf(y_hat, y, x) - 1.0) - quadratic).abs().max().item())
    assert errors[1] < 0.02 * errors[0] < 1e-2
