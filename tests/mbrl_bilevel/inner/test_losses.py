"""The losses: values by hand, what they refuse, and a policy gradient that also serves mixtures."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.estimators import (
    Analytic,
    Automatic,
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


def test_a_reward_without_closed_form_is_sampled_by_itself() -> None:
    """Pathwise where it is smooth, DiCE where it has steps; a closed form is used and nothing said."""
    seeded = torch.Generator().manual_seed(0)

    def steps(y_hat: Tensor, y: Tensor, x: Tensor) -> Tensor:
        return ((y_hat - y).abs().amax(-1) < 1.0).to(y_hat.dtype)

    for reward, kind in ((NeuralReward(D).double(), Pathwise), (steps, DiCE)):
        loss = PolicyGradient(reward)
        name = getattr(reward, "__name__", type(reward).__name__)
        with pytest.warns(UserWarning, match=rf"reward {name} has no closed.*{kind.__name__}\(8\)"):
            loss(policy(), batch(), seeded)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            value, _ = loss(policy(), batch(), seeded)
        assert value.isfinite().all()
        assert isinstance(loss.estimator.chosen, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = PolicyGradient(Mahalanobis(D).double())
        named = PolicyGradient(Mahalanobis(D).double(), Analytic())
        values = [loss(policy(), batch(), seeded)[0] for loss in (exact, named)]
    torch.testing.assert_close(*values, rtol=0, atol=0)


def test_the_sampled_gradient_is_that_of_the_closed_form() -> None:
    """The same quadratic reward with its formula and without, over many draws."""
    plain = PolicyGradient(
        lambda y_hat, y, x: -(y_hat - y).square().sum(-1), Automatic(samples=20_000)
    )
    exact, data = PolicyGradient(Mahalanobis(D, initial=1.0).double()), batch()
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for loss in (plain, exact):
            mine = policy()
            value = loss(mine, data, torch.Generator().manual_seed(0))[0].sum()
            gradients = torch.autograd.grad(
                value, [p for p in mine.parameters() if p.requires_grad]
            )
            found.append(torch.cat([g.flatten() for g in gradients]))
    assert (found[0] - found[1]).norm() < 0.05 * found[1].norm()


def test_an_rbf_under_too_much_entropy_says_that_there_is_nothing_to_find() -> None:
    """Above λ = (2/D)(1 + 2/D)^(−D/2−1) the closed-form G(σ) grows without a maximum; below it has one."""
    log_std = torch.linspace(-4.0, 4.0, 4001, dtype=torch.float64)

    def has_maximum(dim: int, temperature: float) -> bool:
        # E[r] of an RBF with A = I at the target is (1 + σ²)^(−D/2), the entropy D·log σ.
        value = (1.0 + torch.exp(2.0 * log_std)) ** (-dim / 2.0) + temperature * dim * log_std
        return bool((value.diff() < 0.0).any())

    for dim in (1, 2, 5):
        least = RBF(dim).most_temperature
        assert has_maximum(dim, 0.98 * least)
        assert not has_maximum(dim, 1.02 * least)
        with pytest.warns(UserWarning, match=r"no optimum to find; pass regulariser=Entropy"):
            PolicyGradient(RBF(dim))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            PolicyGradient(RBF(dim), regulariser=Entropy(0.5 * least))
