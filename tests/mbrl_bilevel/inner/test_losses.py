"""The losses: values by hand, what they refuse, and a policy gradient that also serves mixtures."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.estimators import (
    Analytic,
    DiCE,
    Estimator,
    GroupNormalised,
    LeaveOneOut,
    Pathwise,
)
from mbrl_bilevel.inner.losses import MSE, NLL, PolicyGradient
from mbrl_bilevel.inner.positive import PositiveFunction
from mbrl_bilevel.inner.regularisers import KL, Entropy, Sum
from mbrl_bilevel.inner.reward_transforms import MinShift
from mbrl_bilevel.inner.rewards import RBF, Mahalanobis, NeuralReward, RewardMatrix
from mbrl_bilevel.policies.distributions import Categorical, DiagonalGaussian, Distribution
from mbrl_bilevel.policies.mixture import GaussianMixture
from mbrl_bilevel.policies.policies import CategoricalPolicy, GaussianPolicy

E, B, D, X = 2, 5, 2, 3


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def policy() -> GaussianPolicy:
    generator = torch.Generator().manual_seed(0)
    made = GaussianPolicy(X, D, generator=generator, members=E, hidden=(4,), scale="network")
    return made.double()


def batch(weight: Tensor | None = None) -> Batch:
    return Batch(draw(E, B, X), draw(E, B, D, seed=1), weight)


class Given:
    """A policy that predicts what it was given."""

    def __init__(self, dist: Distribution) -> None:
        self._dist = dist

    def dist(self, x: Tensor) -> Distribution:
        return self._dist


def test_values_by_hand() -> None:
    given = Given(DiagonalGaussian(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2)))
    data = Batch(torch.zeros(1, 1, 1), torch.tensor([[[1.0, 3.0]]]))
    generator = torch.Generator()
    nll, _ = NLL()(given, data, generator)
    assert nll.item() == pytest.approx((math.log(2 * math.pi) + 5.0) / 2)
    mse, _ = MSE()(given, data, generator)
    assert mse.item() == pytest.approx(5.0)
    entropy = math.log(2 * math.pi * math.e)
    loss, metrics = PolicyGradient(Mahalanobis(2, initial=0.5))(given, data, generator)
    # Per dimension: ½ ((10 + 2)·0.5 − H)
    assert loss.item() == pytest.approx((6.0 - entropy) / 2)
    assert metrics["objective"].item() == pytest.approx(-loss.item())
    assert metrics["bonus"].item() == pytest.approx(entropy)


def test_rows_of_weight_zero_do_not_count() -> None:
    weight = torch.ones(E, B, dtype=torch.float64)
    weight[:, -2:] = 0.0
    short = Batch(draw(E, B, X)[:, :-2], draw(E, B, D, seed=1)[:, :-2])
    for loss in (NLL(), MSE(), PolicyGradient(Mahalanobis(D).double())):
        padded, _ = loss(policy(), batch(weight), torch.Generator())
        plain, _ = loss(policy(), short, torch.Generator())
        assert padded.shape == (E,)
        torch.testing.assert_close(padded, plain)


def test_objective_is_the_negative_loss_before_the_mean_over_dimensions() -> None:
    loss = PolicyGradient(RBF(D, "full").double(), regulariser=Sum(Entropy(0.3), KL(policy(), 0.2)))
    data = batch()
    rows = loss.objective(policy().dist(data.x), data.y, data.x)
    assert rows.shape == (E, B)
    value, _ = loss(policy(), data, torch.Generator())
    torch.testing.assert_close(value, -rows.mean(-1) / D)


@pytest.mark.parametrize(
    ("reward", "count"),
    [
        (Mahalanobis(D), D),
        (Mahalanobis(D, "full"), D * (D + 1) // 2),
        (Mahalanobis(D, function=PositiveFunction(X, D)), D * (X + 1)),
        (lambda y_hat, y, x: -(y_hat - y).square().sum(-1), 0),
        (NeuralReward(D, X, generator=torch.Generator(), hidden=()), 2 * D + X + 1),
    ],
)
def test_phi_is_what_parameters_holds(reward: Mahalanobis, count: int) -> None:
    loss = PolicyGradient(reward, Pathwise(2), Sum(Entropy(), KL(policy())))
    assert sum(p.numel() for p in loss.parameters() if p.requires_grad) == count
    value, _ = loss.double()(policy(), batch(), torch.Generator())
    assert value.shape == (E,)
    assert value.dtype == torch.float64


def test_a_plain_function_is_the_same_reward() -> None:
    module = PolicyGradient(Mahalanobis(D, initial=1.0).double(), Pathwise(4))
    function = PolicyGradient(lambda y_hat, y, x: -(y_hat - y).square().sum(-1), Pathwise(4))
    values = [
        loss(policy(), batch(), torch.Generator().manual_seed(3))[0] for loss in (module, function)
    ]
    torch.testing.assert_close(values[0], values[1])


@pytest.mark.parametrize(
    ("estimator", "unbiased", "second"),
    [
        (Analytic(), True, True),
        (Pathwise(4), True, True),
        (DiCE(4), True, True),
        (LeaveOneOut(4), True, False),
        (LeaveOneOut(4, clip=(-5.0, 5.0)), False, False),
        (LeaveOneOut(4, transforms=(MinShift(),)), False, False),
        (DiCE(4, transforms=(MinShift(),)), False, True),
        (GroupNormalised(4), False, False),
    ],
)
def test_the_loss_tells_the_solvers_what_it_is(
    estimator: Estimator, unbiased: bool, second: bool
) -> None:
    loss = PolicyGradient(Mahalanobis(1), estimator)
    assert loss.unbiased is unbiased
    assert loss.second_derivative is second


def test_losses_go_through_torch_func() -> None:
    """Forward mode, reverse mode and finite differences in θ agree, for the analytic loss."""
    model, data = policy(), batch()
    loss = PolicyGradient(Mahalanobis(D, "full").double(), regulariser=Sum(Entropy(), KL(policy())))
    theta = {name: p.detach() for name, p in model.named_parameters()}
    tangent = {name: draw(*p.shape, seed=5) for name, p in theta.items()}

    class Call(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = model

        def forward(self) -> Tensor:
            return loss(self.policy, data, torch.Generator())[0].sum()

    def value(theta: dict[str, Tensor]) -> Tensor:
        named = {f"policy.{n}": p for n, p in theta.items()}
        result: Tensor = torch.func.functional_call(Call(), named, ())
        return result

    _, forward = torch.func.jvp(value, (theta,), (tangent,))
    gradient = torch.func.grad(value)(theta)
    torch.testing.assert_close(forward, sum((gradient[n] * tangent[n]).sum() for n in theta))
    step = 1e-6
    ahead, behind = ({n: p + s * step * tangent[n] for n, p in theta.items()} for s in (1, -1))
    torch.testing.assert_close(
        forward, (value(ahead) - value(behind)) / (2 * step), rtol=1e-6, atol=1e-8
    )


def test_a_mixture_gets_its_exact_entropy_gradient_by_sampling() -> None:
    """Against quadrature of ∫ p (r − λ log p + λ_K log p_ref) on a grid, in one dimension."""
    rows, temperature, towards = 20_000, 0.4, 0.2
    start = (
        torch.tensor([0.3, -0.2], dtype=torch.float64),
        torch.tensor([[-0.5], [0.6]], dtype=torch.float64),
        torch.tensor([[-0.7], [-0.3]], dtype=torch.float64),
    )
    reference = GaussianMixture(
        *(p[None, None] for p in (torch.zeros(2), torch.tensor([[-1.0], [1.5]]), torch.zeros(2, 1)))
    )
    reference = GaussianMixture(*(p.double() for p in reference.params))
    regulariser = Sum(Entropy(temperature), KL(Given(reference), towards))
    reward = RBF(1, initial=2.0).double()
    loss = PolicyGradient(reward, Analytic(), regulariser, bonus_samples=4)

    exact_leaves = tuple(p[None, None].clone().requires_grad_() for p in start)
    dist = GaussianMixture(*exact_leaves)
    grid = torch.linspace(-12.0, 12.0, 20_001, dtype=torch.float64).reshape(-1, 1, 1, 1)
    log_p = dist.log_prob(grid)
    y = torch.full((1, 1, 1), 0.8, dtype=torch.float64)
    inside = reward(grid, y, y) - temperature * log_p + towards * (reference.log_prob(grid) - log_p)
    integral = (log_p.exp() * inside).sum() * 24.0 / 20_000
    exact = torch.cat([g.flatten() for g in torch.autograd.grad(integral, exact_leaves)])

    leaves = tuple(p.expand(1, rows, *p.shape).clone().requires_grad_() for p in start)
    data = Batch(y.expand(1, rows, 1), y.expand(1, rows, 1))
    value, _ = loss(Given(GaussianMixture(*leaves)), data, torch.Generator().manual_seed(1))
    per_row = torch.cat(
        [-rows * g.reshape(rows, -1) for g in torch.autograd.grad(value.sum(), leaves)], -1
    )
    z = (per_row.mean(0) - exact) / (per_row.std(0) / math.sqrt(rows))
    assert exact.abs().max() > 0.05
    assert z.abs().max() < 4.9
    # The closed-form bound instead of the sampled bonus would give another gradient.
    bound = reward.expected(dist, y, y) + regulariser.bonus(dist, y)
    wrong = torch.cat([g.flatten() for g in torch.autograd.grad(bound.sum(), exact_leaves)])
    assert ((wrong - exact) / (per_row.std(0) / math.sqrt(rows))).abs().max() > 10.0


def test_no_closed_form_is_refused_with_a_remedy() -> None:
    mixture = GaussianMixture(draw(E, B, 3), draw(E, B, 3, D), draw(E, B, 3, D))
    data = batch()
    with pytest.raises(UnsupportedCombinationError, match="bound only"):
        PolicyGradient(RBF(D)).objective(mixture, data.y, data.x)
    with pytest.raises(UnsupportedCombinationError, match="sampled"):
        PolicyGradient(NeuralReward(D, X, generator=torch.Generator()).double()).objective(
            policy().dist(data.x), data.y, data.x
        )
    with pytest.raises(UnsupportedCombinationError, match="sampled"):
        PolicyGradient(RewardMatrix.identity(2))(policy(), data, torch.Generator())
    with pytest.raises(InvalidInputError, match="reward"):
        PolicyGradient(3.0)  # type: ignore[arg-type]


def test_mse_needs_a_mean() -> None:
    classes = CategoricalPolicy(X, 2, generator=torch.Generator(), members=E).double()
    labels = Batch(draw(E, B, X), torch.zeros(E, B, 1))
    with pytest.raises(UnsupportedCombinationError, match="Gaussian"):
        MSE()(classes, labels, torch.Generator())
    mixture = Given(GaussianMixture(draw(E, B, 3), draw(E, B, 3, D), draw(E, B, 3, D)))
    with pytest.raises(UnsupportedCombinationError, match="GaussianMixture"):
        MSE()(mixture, batch(), torch.Generator())
    assert isinstance(classes.dist(labels.x), Categorical)
