"""Mixtures of Gaussians: densities against torch.distributions, bounds against Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch
import torch.distributions as td
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mbrl_bilevel.base.errors import UnsupportedCombinationError
from mbrl_bilevel.policies.distributions import (
    DiagonalGaussian,
    Distribution,
    RealValued,
    Reparameterised,
    monte_carlo_kl,
)
from mbrl_bilevel.policies.mixture import GaussianMixture

E, B, M, D = 2, 3, 4, 2


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(seed: int, components: int = M, apart: float = 1.5) -> GaussianMixture:
    draw = generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(E, B, *shape, generator=draw, dtype=torch.float64)

    mean, log_std = apart * normal(components, D), 0.5 * normal(components, D)
    return GaussianMixture(normal(components), mean, log_std)


def reference(dist: GaussianMixture) -> td.Distribution:
    return td.MixtureSameFamily(
        td.Categorical(logits=dist.log_weights),
        td.Independent(td.Normal(dist.mean, dist.log_std.exp()), 1),
    )


@pytest.mark.parametrize("lead", [(), (5,), (2, 5)])
def test_log_prob_is_that_of_an_independent_library(lead: tuple[int, ...]) -> None:
    dist = make(0)
    y = 2.0 * torch.randn(*lead, E, B, D, generator=generator(1), dtype=torch.float64)
    torch.testing.assert_close(dist.log_prob(y), reference(dist).log_prob(y))


def test_weights_need_not_be_normalised() -> None:
    dist, y = make(0), torch.ones(E, B, D, dtype=torch.float64)
    shifted = GaussianMixture(dist.log_weights + 3.0, dist.mean, dist.log_std)
    torch.testing.assert_close(shifted.log_prob(y), dist.log_prob(y))
    torch.testing.assert_close(shifted.entropy(), dist.entropy())
    torch.testing.assert_close(shifted.kl(make(1)), dist.kl(make(1)))
    torch.testing.assert_close(shifted.weights.sum(-1), torch.ones(E, B, dtype=torch.float64))


def test_draws_have_the_stated_moments() -> None:
    dist = make(0)
    mean, covariance = dist.moments()
    torch.testing.assert_close(mean, reference(dist).mean)
    torch.testing.assert_close(
        covariance.diagonal(dim1=-2, dim2=-1).contiguous(), reference(dist).variance
    )
    n = 60_000
    draws = dist.sample(n, generator(1))
    assert draws.shape == (n, E, B, D)
    products = (draws - mean).unsqueeze(-1) * (draws - mean).unsqueeze(-2)
    assert ((draws.mean(0) - mean).abs() < 5.0 * draws.std(0) / n**0.5).all()
    assert ((products.mean(0) - covariance).abs() < 5.0 * products.std(0) / n**0.5).all()


def test_draws_follow_the_density_not_only_its_moments() -> None:
    """The probability of a box, by counting and by the components' distribution functions."""
    dist = make(0)
    n = 60_000
    share = (dist.sample(n, generator(1)) < 0.3).all(-1).double().mean(0)
    below = td.Normal(dist.mean, dist.log_std.exp()).cdf(torch.tensor(0.3)).prod(-1)
    exact = (dist.weights * below).sum(-1)
    assert ((share - exact).abs() < 5.0 * (exact * (1.0 - exact) / n).sqrt()).all()


@pytest.mark.parametrize("apart", [0.0, 0.5, 1.5, 4.0, 30.0])
def test_entropy_bounds_hold_the_entropy_between_them(apart: float) -> None:
    dist = make(0, apart=apart)
    lower, upper = dist.entropy_bounds()
    n = 40_000
    log_prob = dist.log_prob(dist.sample(n, generator(1)))
    entropy, slack = -log_prob.mean(0), 4.0 * log_prob.std(0) / n**0.5
    assert (lower <= entropy + slack).all()
    assert (upper >= entropy - slack).all()
    assert (upper - lower <= math.log(M) + 1e-9).all()
    assert torch.equal(dist.entropy(), lower)


def test_entropy_bounds_are_exact_for_coinciding_and_for_distant_components() -> None:
    dist = make(0)
    same = GaussianMixture(
        dist.log_weights, torch.ones_like(dist.mean), torch.full_like(dist.log_std, 0.3)
    )
    gaussian = DiagonalGaussian(same.mean[..., 0, :], same.log_std[..., 0, :])
    for bound in same.entropy_bounds():
        torch.testing.assert_close(bound, gaussian.entropy())
    places = 1e3 * torch.arange(M, dtype=torch.float64).unsqueeze(-1).expand(E, B, M, D)
    distant = GaussianMixture(dist.log_weights, places, dist.log_std)
    choice = td.Categorical(logits=dist.log_weights).entropy()
    exact = choice + (dist.weights * distant.components.entropy()).sum(-1)
    for bound in distant.entropy_bounds():
        torch.testing.assert_close(bound, exact)


def test_the_lower_bound_holds_the_bhattacharyya_distance() -> None:
    """Two components of weight ½ in one dimension, ∫ √(p q) by the trapezoidal rule."""
    mean = torch.tensor([-0.4, 0.9], dtype=torch.float64).reshape(1, 1, 2, 1)
    log_std = torch.tensor([0.5, -0.3], dtype=torch.float64).reshape(1, 1, 2, 1)
    dist = GaussianMixture(torch.zeros(1, 1, 2, dtype=torch.float64), mean, log_std)
    grid = torch.linspace(-30.0, 30.0, 20_001, dtype=torch.float64)
    log_prob = dist.components.log_prob(grid.reshape(-1, 1, 1, 1, 1))
    overlap = torch.trapezoid((0.5 * log_prob.sum(-1)).exp().flatten(), grid)
    expected = dist.components.entropy().mean() - torch.log(0.5 + 0.5 * overlap)
    torch.testing.assert_close(dist.entropy().squeeze(), expected)


def test_one_component_is_a_gaussian() -> None:
    one, two = make(0, components=1), make(1, components=1)
    p, q = (DiagonalGaussian(d.mean.squeeze(2), d.log_std.squeeze(2)) for d in (one, two))
    y = torch.ones(E, B, D, dtype=torch.float64)
    torch.testing.assert_close(one.log_prob(y), p.log_prob(y))
    torch.testing.assert_close(one.kl(two), p.kl(q))
    for bound in one.entropy_bounds():
        torch.testing.assert_close(bound, p.entropy())


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 5), st.integers(1, 5), st.floats(0.1, 3.0))
def test_kl_is_an_upper_bound_and_zero_at_itself(seed: int, m: int, n: int, apart: float) -> None:
    p, q = make(seed, m, apart), make(seed + 1, n, apart)
    draws = p.sample(4000, generator(seed))
    ratio = p.log_prob(draws) - q.log_prob(draws)
    assert (p.kl(q) >= ratio.mean(0) - 5.0 * ratio.std(0) / 4000**0.5).all()
    torch.testing.assert_close(p.kl(p), torch.zeros(E, B, dtype=torch.float64))


def test_kl_knows_components_in_another_order() -> None:
    """Taken in pairs alone, the bound for a mere renaming of distant components would be large."""
    p = make(0, apart=8.0)
    q = GaussianMixture(p.log_weights.roll(1, -1), p.mean.roll(1, -2), p.log_std.roll(1, -2))
    estimate = monte_carlo_kl(p, q, 100, generator(0))
    torch.testing.assert_close(estimate, torch.zeros(E, B, dtype=torch.float64))
    assert (p.kl(q) < 0.05).all()


def test_gradients_agree_with_finite_differences() -> None:
    dist, other = make(0), make(1, components=3)
    y = torch.ones(2, E, B, D, dtype=torch.float64)

    def numbers(*params: Tensor) -> tuple[Tensor, ...]:
        p = GaussianMixture.from_params(params)
        return p.log_prob(y), *p.entropy_bounds(), p.kl(other)

    assert torch.autograd.gradcheck(numbers, tuple(p.requires_grad_() for p in dist.params))


def test_it_says_what_it_cannot_do() -> None:
    dist = make(0)
    assert isinstance(dist, Distribution)
    assert isinstance(dist, RealValued)
    assert not isinstance(dist, Reparameterised)
    assert (dist.entropy_is, dist.kl_is) == ("lower bound", "upper bound")
    with pytest.raises(UnsupportedCombinationError, match="no closed form; use"):
        dist.fisher_product(dist.params)
    with pytest.raises(UnsupportedCombinationError, match="monte_carlo_kl"):
        dist.kl(DiagonalGaussian(dist.mean[..., 0, :], dist.log_std[..., 0, :]))


def test_same_seed_same_draws_and_precision_is_kept() -> None:
    dist = make(0)
    assert torch.equal(dist.sample(5, generator(1)), dist.sample(5, generator(1)))
    assert not torch.equal(dist.sample(5, generator(1)), dist.sample(5, generator(2)))
    single = GaussianMixture.from_params(tuple(p.float() for p in dist.params))
    draws = single.sample(5, generator(1))
    for numbers in (draws, single.log_prob(draws), single.entropy(), single.kl(single)):
        assert numbers.dtype == torch.float32


def test_marginals_are_those_of_the_moments() -> None:
    dist = make(0)
    mean, std = dist.marginals()
    torch.testing.assert_close(mean, reference(dist).mean)
    torch.testing.assert_close(std.square(), reference(dist).variance)


def test_in_other_units_only_the_density_of_a_unit_changes() -> None:
    dist, scale = make(0), torch.tensor([0.3, 7.0], dtype=torch.float64)
    shift = torch.tensor([1.0, -2.0], dtype=torch.float64)
    y = torch.randn(5, E, B, D, generator=generator(1), dtype=torch.float64)
    found = dist.affine(scale, shift).log_prob(y * scale + shift)
    torch.testing.assert_close(found, dist.log_prob(y) - scale.log().sum())


def test_normal_noise_makes_draws_of_the_mixture() -> None:
    dist, n = make(0), 60_000
    noise = torch.randn(n, 1, 1, D + 1, generator=generator(3), dtype=torch.float64)
    draws = torch.stack([dist.drawn(z) for z in noise[:200]])
    assert draws.shape == (200, E, B, D)
    wide = GaussianMixture(*(p[:1, :1].expand(1, n, *p.shape[2:]) for p in dist.params))
    many = wide.drawn(noise.reshape(1, n, D + 1))[0]
    mean, std = dist.marginals()
    standard_error = std[0, 0] / n**0.5
    assert ((many.mean(0) - mean[0, 0]).abs() < 5.0 * standard_error).all()
    torch.testing.assert_close(many.std(0), std[0, 0], rtol=0.03, atol=0.0)
    # Each component as often as its weight says: an extreme last entry takes an end one.
    ends = torch.zeros(2, 1, 1, D + 1, dtype=torch.float64)
    ends[0, ..., -1], ends[1, ..., -1] = -40.0, 40.0
    torch.testing.assert_close(dist.drawn(ends[0]), dist.mean[..., 0, :])
    torch.testing.assert_close(dist.drawn(ends[1]), dist.mean[..., -1, :])
