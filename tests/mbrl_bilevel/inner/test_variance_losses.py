"""β-NLL and Faithful: gradients against their formulas, their limits, and what training makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.data.splits import FitData, cross_fit
from mbrl_bilevel.inner.losses import MSE, NLL, BetaNLL, Faithful, Loss
from mbrl_bilevel.policies.distributions import DiagonalGaussian
from mbrl_bilevel.policies.policies import CategoricalPolicy, GaussianPolicy
from mbrl_bilevel.policies.scales import Scale
from mbrl_bilevel.training.fit import fit
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule

E, B, D, X = 2, 7, 3, 2


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Given:
    """A policy whose mean and log σ are leaves."""

    def __init__(self) -> None:
        self.mean = draw(E, B, D, seed=0).requires_grad_()
        self.log_std = (0.7 * draw(E, B, D, seed=1)).requires_grad_()

    def dist(self, x: Tensor) -> DiagonalGaussian:
        return DiagonalGaussian(self.mean, self.log_std)


def gradients(loss: Loss, weight: Tensor | None = None) -> tuple[Tensor, Tensor]:
    given, batch = Given(), Batch(draw(E, B, X, seed=2), draw(E, B, D, seed=3), weight)
    value, _ = loss(given, batch, torch.Generator())  # type: ignore[arg-type]
    assert value.shape == (E,)
    found = torch.autograd.grad(value.sum(), (given.mean, given.log_std), materialize_grads=True)
    return found[0], found[1]


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_beta_nll_has_the_gradient_of_its_paper(beta: float) -> None:
    """Seitzer 2022, eq. 6 and 7: the likelihood's gradient times σ^{2β}."""
    given, y = Given(), draw(E, B, D, seed=3)
    std, error = given.log_std.detach().exp(), (given.mean - y).detach()
    mean, log_std = gradients(BetaNLL(beta))
    torch.testing.assert_close(mean, error * std ** (2.0 * beta - 2.0) / (B * D))
    torch.testing.assert_close(
        log_std, std ** (2.0 * beta) * (1.0 - (error / std).square()) / (B * D)
    )


def test_beta_zero_is_maximum_likelihood_to_the_last_bit() -> None:
    weight = torch.rand(E, B, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for one, two in zip(gradients(BetaNLL(0.0), weight), gradients(NLL(), weight), strict=True):
        assert torch.equal(one, two)
    policies = [trained(loss, "network", steps=30) for loss in (BetaNLL(0.0), NLL())]
    for one, two in zip(policies[0].parameters(), policies[1].parameters(), strict=True):
        assert torch.equal(one, two)


def test_at_beta_one_the_mean_sees_squared_error() -> None:
    # Half of it: the likelihood has ½ (y − μ)².
    torch.testing.assert_close(2.0 * gradients(BetaNLL(1.0))[0], gradients(MSE())[0])


def test_faithful_gives_each_its_own_gradient() -> None:
    mean, log_std = gradients(Faithful())
    assert torch.equal(mean, gradients(MSE())[0])
    assert torch.equal(log_std, gradients(NLL())[1])


def noisy(rows: int = 1500) -> FitData:
    """y = sin(2x) + σ(x)·noise, log σ(x) = −1.5 + x; the second dimension without noise to speak of."""
    generator = torch.Generator().manual_seed(0)
    x = 2.0 * torch.rand(rows, 2, generator=generator) - 1.0
    clean = torch.sin(2.0 * x)
    std = torch.cat([torch.exp(-1.5 + x[:, :1]), torch.full((rows, 1), 0.05)], 1)
    y = clean + std * torch.randn(rows, 2, generator=generator)
    folds = cross_fit(np.arange(rows) // 10, 2, np.random.default_rng(0)).without_outer()
    return FitData(x, y, folds)


def trained(loss: Loss, scale: Scale, steps: int) -> GaussianPolicy:
    generator = torch.Generator().manual_seed(0)
    policy = GaussianPolicy(2, 2, generator=generator, members=2, hidden=(16, 16), scale=scale)
    schedule = Schedule(steps=steps, learning_rate=1e-2, evaluate_every=steps)
    fit(policy, loss, noisy(300), generator=generator, schedule=schedule)
    return policy


def test_faithful_trains_the_mean_as_squared_error_does() -> None:
    """Step by step the same network for the same seed, while its variance learns beside it."""
    faithful, plain = trained(Faithful(), "detached", 40), trained(MSE(), "constant", 40)
    for name, value in plain.network.named_parameters():
        assert torch.equal(faithful.network.get_parameter(name), value), name
    assert faithful.temper_weight.abs().max() > 0.01


@pytest.mark.parametrize("name", ["nll", "beta-nll", "beta-nll-1", "faithful"])
def test_the_methods_learn_a_variance_that_depends_on_x(name: str) -> None:
    method, data = METHODS[name], noisy()
    generator = torch.Generator().manual_seed(1)
    policy = method.make_policy(2, 2, generator=generator, members=2, hidden=(32, 32))
    method.fit(policy, data, generator=generator, schedule=Schedule(steps=500, learning_rate=1e-2))
    x = torch.stack([torch.linspace(-0.9, 0.9, 7), torch.zeros(7)], dim=1).expand(2, -1, -1)
    dist = policy.dist(x)
    assert (
        dist.log_std[..., 0] - (-1.5 + x[..., 0])
    ).abs().mean() < 0.2  # it runs from −2.4 to −0.6
    assert (dist.mean[..., 0] - torch.sin(2.0 * x[..., 0])).square().mean().sqrt() < 0.2


def test_what_they_refuse() -> None:
    with pytest.raises(InvalidInputError, match=r"beta must lie between 0 and 1; got 1\.5"):
        BetaNLL(1.5)
    generator = torch.Generator().manual_seed(0)
    classes = CategoricalPolicy(X, 3, generator=generator, members=E)
    batch = Batch(torch.zeros(E, B, X), torch.zeros(E, B, 1))
    for loss in (BetaNLL(), Faithful()):
        with pytest.raises(UnsupportedCombinationError, match="needs a variance per dimension"):
            loss(classes, batch, generator)
    moving = GaussianPolicy(X, 1, generator=generator, members=E, hidden=(4,), scale="network")
    with pytest.raises(UnsupportedCombinationError, match='scale="detached"'):
        Faithful()(moving, batch, generator)


def test_a_detached_scale_is_learned_not_set() -> None:
    policy = trained(Faithful(), "detached", 2)
    with pytest.raises(InvalidInputError, match='set_std needs scale="constant"'):
        policy.set_std(torch.ones(2))
