"""Gaussians and categoricals against torch.distributions, Monte Carlo and the Hessian of the KL."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.distributions as td
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mbrl_bilevel.base.errors import UnsupportedCombinationError
from mbrl_bilevel.policies.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    FullGaussian,
    RealValued,
    Reparameterised,
    monte_carlo_kl,
)

E, B, D = 2, 3, 4
KINDS = ("diagonal", "full", "categorical")
Dist = DiagonalGaussian | FullGaussian | Categorical


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(kind: str, seed: int, dtype: torch.dtype = torch.float64) -> Dist:
    draw = generator(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    if kind == "diagonal":
        return DiagonalGaussian(normal(E, B, D), 0.7 * normal(E, B, D))
    if kind == "full":
        diagonal = torch.diag_embed((0.5 * normal(E, B, D)).exp())
        return FullGaussian(normal(E, B, D), diagonal + normal(E, B, D, D).tril(-1))
    return Categorical(normal(E, B, D))


def reference(dist: Dist) -> td.Distribution:
    if isinstance(dist, DiagonalGaussian):
        return td.Independent(td.Normal(dist.mean, dist.std), 1)
    if isinstance(dist, FullGaussian):
        return td.MultivariateNormal(dist.mean, scale_tril=dist.scale_tril)
    return td.Categorical(logits=dist.logits)


def targets(dist: Dist, *lead: int) -> Tensor:
    if isinstance(dist, Categorical):
        return torch.randint(D, (*lead, E, B, 1), generator=generator(9)).double()
    return 2.0 * torch.randn(*lead, E, B, D, generator=generator(9), dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lead", [(), (5,), (2, 5)])
def test_log_prob_is_that_of_an_independent_library(kind: str, lead: tuple[int, ...]) -> None:
    dist = make(kind, 0)
    y = targets(dist, *lead)
    expected = reference(dist).log_prob(y.squeeze(-1) if kind == "categorical" else y)
    assert expected.shape == (*lead, E, B)
    torch.testing.assert_close(dist.log_prob(y), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_no_samples_and_no_rows_are_no_special_case(kind: str) -> None:
    dist = make(kind, 0)
    assert dist.log_prob(targets(dist, 0)).shape == (0, E, B)
    empty = dist.from_params(tuple(p[:, :0] for p in dist.params))
    assert empty.log_prob(targets(dist, 5)[:, :, :0]).shape == (5, E, 0)
    assert empty.entropy().shape == empty.kl(empty).shape == (E, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_and_kl_are_those_of_an_independent_library(kind: str) -> None:
    one, two = make(kind, 0), make(kind, 1)
    torch.testing.assert_close(one.entropy(), reference(one).entropy())
    expected = td.kl_divergence(reference(one), reference(two))
    assert (expected > 1e-2).all()
    torch.testing.assert_close(one.kl(two), expected)


@pytest.mark.parametrize(("one", "two"), [("diagonal", "full"), ("full", "diagonal")])
def test_kl_between_the_two_gaussians(one: str, two: str) -> None:
    p, q = make(one, 0), make(two, 1)
    full = [td.MultivariateNormal(*_moments(dist)) for dist in (p, q)]
    torch.testing.assert_close(p.kl(q), td.kl_divergence(*full))


def _moments(dist: Dist) -> tuple[Tensor, Tensor]:
    assert isinstance(dist, RealValued)
    return dist.moments()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10_000), st.floats(0.0, 1.0))
def test_kl_is_zero_at_itself_and_never_negative(kind: str, seed: int, apart: float) -> None:
    """Also in float32 and for two that nearly coincide, where 1 + x − 1 − x would go below zero."""
    dist, far = make(kind, seed, torch.float32), make(kind, seed + 1, torch.float32)
    near = dist.from_params(
        tuple(torch.lerp(a, b, apart**4) for a, b in zip(dist.params, far.params, strict=True))
    )
    slack = 1e-6 if kind == "categorical" else 1e-12  # Σ p·log(p/q) has no exact sum of squares
    torch.testing.assert_close(dist.kl(dist), torch.zeros(E, B), atol=1e-9, rtol=0.0)
    assert (dist.kl(near) >= -slack).all()
    assert (dist.kl(far) > 1e-4).all()


@pytest.mark.parametrize("kind", KINDS)
def test_entropy_and_kl_agree_with_monte_carlo(kind: str) -> None:
    one, two = make(kind, 0), make(kind, 1)
    n = 40_000
    log_prob = one.log_prob(one.sample(n, generator(2)))
    error = log_prob.std(0) / n**0.5
    assert ((one.entropy() + log_prob.mean(0)).abs() < 5.0 * error).all()
    estimate = monte_carlo_kl(one, two, n, generator(3))
    torch.testing.assert_close(estimate, one.kl(two), rtol=0.1, atol=0.03)
    assert not estimate.requires_grad


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_draws_have_the_stated_moments(kind: str) -> None:
    dist = make(kind, 0)
    mean, covariance = _moments(dist)
    torch.testing.assert_close(covariance, reference_covariance(dist))
    n = 40_000
    draws = dist.sample(n, generator(1))
    variance = covariance.diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(dist.std.square(), variance)  # type: ignore[union-attr]
    assert ((draws.mean(0) - mean).abs() < 5.0 * (variance / n).sqrt()).all()
    apart = draws - mean
    empirical = torch.einsum("kebi,kebj->ebij", apart, apart) / n
    # The variance of a product of two normals is S_ii S_jj + S_ij².
    product = variance.unsqueeze(-1) * variance.unsqueeze(-2) + covariance.square()
    assert ((empirical - covariance).abs() < 5.0 * (product / n).sqrt()).all()


def reference_covariance(dist: Dist) -> Tensor:
    if isinstance(dist, FullGaussian):
        covariance: Tensor = reference(dist).covariance_matrix
        return covariance
    return torch.diag_embed(reference(dist).variance)


def test_classes_are_drawn_with_their_probabilities() -> None:
    dist = make("categorical", 0)
    assert isinstance(dist, Categorical)
    n = 40_000
    draws = dist.sample(n, generator(1))
    assert draws.shape == (n, E, B, 1)
    assert draws.dtype == torch.float64
    share = torch.stack([(draws == c).double().mean(0).squeeze(-1) for c in range(D)], -1)
    assert ((share - dist.probs).abs() < 5.0 * (dist.probs * (1 - dist.probs) / n).sqrt()).all()


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_rsample_carries_the_gradient_and_sample_does_not(kind: str) -> None:
    dist = make(kind, 0)
    for p in dist.params:
        p.requires_grad_()
    assert isinstance(dist, Reparameterised)
    assert not dist.sample(3, generator(1)).requires_grad
    draws = dist.rsample(20_000, generator(1))
    torch.testing.assert_close(draws.detach(), dist.sample(20_000, generator(1)))
    # E|y|² = |μ|² + tr Σ, so its gradient in the scale is known.
    gradients = torch.autograd.grad(draws.square().sum(-1).mean(0).sum(), dist.params)
    mean, scale = (p.detach() for p in dist.params)
    expected = 2.0 * (scale if kind == "full" else torch.exp(2.0 * scale))
    torch.testing.assert_close(gradients[0], 2.0 * mean, rtol=0.05, atol=0.1)
    torch.testing.assert_close(gradients[1], expected, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_fisher_product_is_the_hessian_of_the_kl(kind: str) -> None:
    """F = ∇²_θ' KL(p_θ ‖ p_θ') at θ' = θ, and of KL(p_θ' ‖ p_θ) as well."""
    dist = make(kind, 0)
    tangents = random_tangents(dist)

    def divergence(order: Callable[[Distribution], Tensor]) -> tuple[Tensor, ...]:
        def value(params: tuple[Tensor, ...]) -> Tensor:
            return order(dist.from_params(params)).sum()

        gradient = torch.func.grad(value)
        product: tuple[Tensor, ...] = torch.func.jvp(gradient, (dist.params,), (tangents,))[1]
        return product

    product = dist.fisher_product(tangents)
    for expected in (divergence(lambda q: dist.kl(q)), divergence(lambda q: q.kl(dist))):
        assert max(t.abs().max() for t in expected) > 0.1
        torch.testing.assert_close(product, expected)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 10_000))
def test_fisher_product_is_symmetric_and_positive_semidefinite(kind: str, seed: int) -> None:
    dist = make(kind, seed)
    v, w = random_tangents(dist, seed + 1), random_tangents(dist, seed + 2)
    fv, fw = dist.fisher_product(v), dist.fisher_product(w)

    def inner(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
        total = [(x * y).sum(tuple(range(2, x.ndim))) for x, y in zip(a, b, strict=True)]
        return torch.stack(total).sum(0)

    torch.testing.assert_close(inner(v, fw), inner(w, fv))
    assert (inner(v, fv) > 0.0).all()


def random_tangents(dist: Dist, seed: int = 4) -> tuple[Tensor, ...]:
    draw = generator(seed)
    return tuple(torch.randn(p.shape, generator=draw, dtype=p.dtype) for p in dist.params)


@pytest.mark.parametrize("kind", KINDS)
def test_fisher_product_is_the_mean_outer_product_of_the_score(kind: str) -> None:
    """The definition itself, by Monte Carlo: E[s (sᵀ v)]."""
    dist = make(kind, 0)
    tangents = random_tangents(dist)
    draws = dist.sample(60_000, generator(5))

    def log_prob(params: tuple[Tensor, ...]) -> Tensor:
        return dist.from_params(params).log_prob(draws)

    _, along = torch.func.jvp(log_prob, (dist.params,), (tangents,))
    _, pull_back = torch.func.vjp(log_prob, dist.params)
    (estimate,) = pull_back(along / len(draws))
    for ours, monte_carlo in zip(dist.fisher_product(tangents), estimate, strict=True):
        torch.testing.assert_close(ours, monte_carlo, rtol=0.1, atol=0.15 * ours.abs().max().item())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_finite_differences(kind: str) -> None:
    dist, other = make(kind, 0), make(kind, 1)
    y = targets(dist, 2)
    params = tuple(p.clone().requires_grad_() for p in dist.params)

    def numbers(*p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rebuilt = dist.from_params(p)
        return rebuilt.log_prob(y), rebuilt.entropy(), rebuilt.kl(other)

    assert torch.autograd.gradcheck(numbers, params)
    assert torch.autograd.gradgradcheck(numbers, params)


@pytest.mark.parametrize("kind", KINDS)
def test_vmap_over_tangents_and_parameters(kind: str) -> None:
    dist = make(kind, 0)
    many = [random_tangents(dist, seed) for seed in range(3)]
    stacked = tuple(torch.stack(parts) for parts in zip(*many, strict=True))
    batched = torch.func.vmap(dist.fisher_product)(stacked)
    for i, tangents in enumerate(many):
        torch.testing.assert_close(tuple(t[i] for t in batched), dist.fisher_product(tangents))


@pytest.mark.parametrize("kind", KINDS)
def test_same_seed_same_draws(kind: str) -> None:
    dist = make(kind, 0)
    draws = [dist.sample(4, generator(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_of_the_parameters_is_kept(kind: str, dtype: torch.dtype) -> None:
    dist = make(kind, 0, dtype)
    draws = dist.sample(2, generator(0))
    numbers = [draws, dist.log_prob(draws), dist.entropy(), dist.kl(make(kind, 1, dtype))]
    numbers += dist.fisher_product(dist.params)
    assert {n.dtype for n in numbers} == {dtype}


def test_what_stands_above_the_diagonal_is_not_read() -> None:
    dist = make("full", 0)
    assert isinstance(dist, FullGaussian)
    junk = FullGaussian(dist.mean, dist.scale_tril + torch.full((D, D), 7.0).triu(1))
    y, v = targets(dist, 2), random_tangents(dist)
    for one, two in [
        (dist.log_prob(y), junk.log_prob(y)),
        (dist.rsample(2, generator(0)), junk.rsample(2, generator(0))),
        (dist.kl(make("full", 1)), junk.kl(make("full", 1))),
        (make("full", 1).kl(dist), make("full", 1).kl(junk)),
        (dist.std, junk.std),
        (dist.moments()[1], junk.moments()[1]),
        (dist.fisher_product(v)[1], junk.fisher_product(v)[1]),
    ]:
        assert torch.equal(one, two)
    assert (junk.fisher_product(v)[1].triu(1) == 0).all()


def test_the_slots_are_told_apart() -> None:
    for kind in KINDS:
        dist = make(kind, 0)
        assert isinstance(dist, Distribution)
        assert isinstance(dist, RealValued) == isinstance(dist, Reparameterised)
        assert isinstance(dist, RealValued) == (kind != "categorical")
        assert (dist.entropy_is, dist.kl_is) == ("exact", "exact")
        assert all(p.shape[:2] == (E, B) for p in dist.params)


@pytest.mark.parametrize(("one", "two"), [("diagonal", "categorical"), ("categorical", "full")])
def test_kl_without_a_formula_is_refused(one: str, two: str) -> None:
    with pytest.raises(UnsupportedCombinationError, match="monte_carlo_kl"):
        make(one, 0).kl(make(two, 0))
