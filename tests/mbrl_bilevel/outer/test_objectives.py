"""Objectives against independent computation, and that any callable is one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch, Segment
from mbrl_bilevel.outer.objectives import (
    BalancedError,
    KStepMSE,
    Mixed,
    Objective,
    OneStepMSE,
    OneStepNLL,
    ProfileNLL,
)
from mbrl_bilevel.policies.distributions import FullGaussian
from mbrl_bilevel.policies.policies import CategoricalPolicy, FullGaussianPolicy, GaussianPolicy

E, B, D, X = 2, 7, 2, 3


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(weighted: bool = True) -> Batch:
    weight = torch.ones(E, B, dtype=torch.float64)
    weight[0, 4:] = 0.0
    return Batch(draw(E, B, X), draw(E, B, D, seed=1), weight if weighted else None)


def gaussian(members: int = E) -> GaussianPolicy:
    generator = torch.Generator().manual_seed(0)
    return GaussianPolicy(
        X, D, generator=generator, members=members, hidden=(5,), scale="network"
    ).double()


def full() -> FullGaussianPolicy:
    generator = torch.Generator().manual_seed(0)
    return FullGaussianPolicy(
        X, D, generator=generator, members=E, hidden=(5,), scale="network"
    ).double()


@pytest.mark.parametrize("make", [gaussian, full])
def test_one_step_nll_is_scipys(make: type) -> None:
    policy, data = make(), batch()
    mean, covariance = policy.dist(data.x).moments()
    expected = []
    for member, rows in ((0, 4), (1, B)):
        values = [
            stats.multivariate_normal(
                mean[member, b].detach().numpy(), covariance[member, b].detach().numpy()
            ).logpdf(data.y[member, b].numpy())
            for b in range(rows)
        ]
        expected.append(-np.mean(values) / D)
    np.testing.assert_allclose(OneStepNLL()(policy, data).detach().numpy(), expected, rtol=1e-9)


def test_mse() -> None:
    policy, data = gaussian(), batch()
    squared = (policy.dist(data.x).mean - data.y).square().detach().numpy()
    np.testing.assert_allclose(
        OneStepMSE()(policy, data).detach().numpy(), [squared[0, :4].mean(), squared[1].mean()]
    )


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_profile_nll_is_the_likelihood_at_the_best_constant_covariance(kind: str) -> None:
    data = batch(weighted=False)
    policy = gaussian() if kind == "diagonal" else full()
    mean = policy.dist(data.x).mean.detach()
    expected = []
    for member in range(E):
        residual = data.y[member] - mean[member]
        moment = residual.mT @ residual / B
        if kind == "diagonal":
            moment = torch.diag(moment.diagonal())
        best = FullGaussian(
            mean[member : member + 1], torch.linalg.cholesky(moment).expand(1, B, D, D)
        )
        expected.append(-best.log_prob(data.y[member : member + 1]).mean().item() / D)
    np.testing.assert_allclose(ProfileNLL()(policy, data).detach().numpy(), expected, rtol=1e-9)


def test_k_step_mse_follows_the_models_own_path() -> None:
    """A scalar linear system by hand: x' = x + mean prediction, y the true state's change."""
    generator = torch.Generator().manual_seed(0)
    policy = GaussianPolicy(1, 1, generator=generator, members=1, hidden=()).double()
    parameters = dict(policy.named_parameters())
    with torch.no_grad():
        parameters["network.layers.0.weight"].fill_(0.5)
        parameters["network.layers.0.bias"].fill_(0.1)
    start = torch.tensor([[[1.0], [2.0]]], dtype=torch.float64)
    path = torch.tensor([[1.0, 2.0], [0.7, 0.9], [0.3, 0.6]], dtype=torch.float64)
    x, y = path[:2, None, :, None], path.diff(dim=0)[:, None, :, None]
    there = torch.tensor([[[1.0, 1.0]], [[1.0, 0.0]]], dtype=torch.float64)  # the second one ends
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    data = Batch(start, y[0], segment=Segment(x, y, there, one, zero))
    mse = KStepMSE()(policy, data)
    squares = []
    for row, state in enumerate((1.0, 2.0)):
        for t in range(2):
            state += 0.5 * state + 0.1
            squares.append((path[t + 1, row].item() - state) ** 2)
    steps = [(squares[0] + squares[2]) / 2.0, squares[1]]
    assert mse.item() == pytest.approx(sum(steps) / 2.0)
    (slope,) = torch.autograd.grad(mse.sum(), parameters["network.layers.0.weight"])
    with torch.no_grad():
        values = []
        for change in (1e-5, -2e-5):
            parameters["network.layers.0.weight"] += change
            values.append(KStepMSE()(policy, data).item())
    assert slope.item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-6)


def test_mixed_weighs_a_memory_in() -> None:
    policy, new, old = gaussian(), batch(), Batch(draw(E, 4, X, seed=5), draw(E, 4, D, seed=6))
    value = Mixed(OneStepNLL(), old, share=0.3)(policy, new)
    expected = 0.7 * OneStepNLL()(policy, new) + 0.3 * OneStepNLL()(policy, old)
    torch.testing.assert_close(value, expected)
    with pytest.raises(InvalidInputError, match="share"):
        Mixed(OneStepNLL(), old, share=1.5)


def test_balanced_error_gives_each_class_the_same_say() -> None:
    generator = torch.Generator().manual_seed(0)
    policy = CategoricalPolicy(X, 3, generator=generator, members=2, hidden=()).double()
    x = draw(2, 6, X)
    y = torch.tensor([0, 0, 0, 0, 1, 2]).double().reshape(1, 6, 1).repeat(2, 1, 1)
    weight = torch.ones(2, 6, dtype=torch.float64)
    weight[1, 5] = 0.0  # class 2 is absent from member 1
    value = BalancedError()(policy, Batch(x, y, weight))
    p = policy.dist(x).probs.detach()
    first = (p[0, :4, 0].mean() + p[0, 4, 1] + p[0, 5, 2]) / 3
    second = (p[1, :4, 0].mean() + p[1, 4, 1]) / 2
    torch.testing.assert_close(value.detach(), 1.0 - torch.stack([first, second]))
    assert value.requires_grad


@pytest.mark.parametrize("objective", [OneStepMSE(), ProfileNLL()])
def test_gaussian_objectives_refuse_classes(objective: Objective) -> None:
    policy = CategoricalPolicy(X, 3, generator=torch.Generator(), members=E).double()
    with pytest.raises(UnsupportedCombinationError, match="OneStepNLL"):
        objective(policy, batch())


def test_other_refusals() -> None:
    with pytest.raises(UnsupportedCombinationError, match="classes"):
        BalancedError()(gaussian(), batch())
    with pytest.raises(InvalidInputError, match="no segments"):
        KStepMSE()(gaussian(), batch())
