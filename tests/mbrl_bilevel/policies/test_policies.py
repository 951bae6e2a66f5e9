"""Policies: bounded scales, independent members, scales set exactly, and what they can express."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.policies.distributions import DiagonalGaussian, FullGaussian
from mbrl_bilevel.policies.mixture import GaussianMixture
from mbrl_bilevel.policies.policies import (
    CategoricalPolicy,
    FullGaussianPolicy,
    GaussianPolicy,
    MixturePolicy,
    Policy,
    with_members,
)
from mbrl_bilevel.policies.scales import Scale

E, B, X, D = 3, 5, 4, 3
SCALED: dict[str, type[GaussianPolicy | FullGaussianPolicy | MixturePolicy]] = {
    "diagonal": GaussianPolicy,
    "full": FullGaussianPolicy,
    "mixture": MixturePolicy,
}
#: Every kind of policy with every kind of scale.
VARIANTS: list[tuple[str, Scale]] = [
    *((kind, scale) for kind in SCALED for scale in ("constant", "network")),
    ("categorical", "network"),
]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(kind: str, scale: Scale = "constant", seed: int = 0, **settings: Any) -> Policy:
    settings = {"members": E, "hidden": (6,), "generator": generator(seed), **settings}
    if kind == "categorical":
        return CategoricalPolicy(X, D, **settings)
    return SCALED[kind](X, D, scale=scale, **settings)


class LogProb(nn.Module):
    """What ``functional_call`` can call: it knows ``forward`` only."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.policy.dist(x).log_prob(y)


def inputs(seed: int = 9) -> Tensor:
    return torch.randn(E, B, X, generator=generator(seed))


def log_diagonal(policy: Policy, x: Tensor) -> Tensor:
    dist = policy.dist(x)
    if isinstance(dist, FullGaussian):
        return dist.scale_tril.diagonal(dim1=-2, dim2=-1).log()
    assert isinstance(dist, DiagonalGaussian | GaussianMixture)
    return dist.log_std


@pytest.mark.parametrize(("kind", "scale"), VARIANTS)
@pytest.mark.parametrize("hidden", [(), (6,)])
def test_shapes(kind: str, scale: Scale, hidden: tuple[int, ...]) -> None:
    policy = make(kind, scale, hidden=hidden)
    dist = policy.dist(inputs())
    width = 1 if kind == "categorical" else D
    draws = dist.sample(7, generator(1))
    assert draws.shape == (7, E, B, width)
    assert dist.log_prob(draws).shape == (7, E, B)
    assert dist.log_prob(draws[0]).shape == dist.entropy().shape == dist.kl(dist).shape == (E, B)
    assert all(p.shape[:2] == (E, B) for p in dist.params)
    # fit() keeps the best state of each member by indexing the first dimension.
    assert all(p.shape[0] == E for p in policy.parameters())


@pytest.mark.parametrize("kind", SCALED)
@settings(max_examples=40, deadline=None)
@given(
    scale=st.sampled_from(["constant", "network"]),
    size=st.floats(0.0, 30.0),
    sign=st.sampled_from([-1.0, 1.0]),
    bounds=st.sampled_from([(-10.0, 3.0), (-0.7, 0.1), (-4.1, 2.7)]),
)
def test_scales_stay_within_their_bounds(
    kind: str, scale: Scale, size: float, sign: float, bounds: tuple[float, float]
) -> None:
    """Inputs and parameters up to 1e30 of either sign."""
    policy = make(kind, scale, log_std_bounds=bounds)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(1)))
        if scale == "constant":
            assert not isinstance(policy, CategoricalPolicy)
            policy.raw_scale *= sign * 10.0**size
        value = log_diagonal(policy, sign * 10.0**size * inputs())
    # The logarithm of an exponential may be off by a few units in the last place.
    slack = 1e-5 if kind == "full" else 0.0
    assert value.min() >= torch.tensor(bounds[0]) - slack
    assert value.max() <= torch.tensor(bounds[1]) + slack


@pytest.mark.parametrize("raw", [-math.inf, -1e30, 1e30, math.inf])
def test_entries_below_the_diagonal_stay_finite(raw: float) -> None:
    policy = make("full")
    assert isinstance(policy, FullGaussianPolicy)
    with torch.no_grad():
        policy.raw_scale.fill_(raw)
    lower = policy.dist(inputs()).scale_tril
    ratio = (lower / lower.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)).tril(-1)
    assert lower.isfinite().all()
    torch.testing.assert_close(ratio.abs().max().item(), 1e3)


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("scale", ["constant", "network"])
@pytest.mark.parametrize("hidden", [(), (6,)])
def test_scales_start_at_one_everywhere(kind: str, scale: Scale, hidden: tuple[int, ...]) -> None:
    dist = make(kind, scale, hidden=hidden, log_std_bounds=(-7.0, 2.0)).dist(inputs())
    if isinstance(dist, FullGaussian):
        torch.testing.assert_close(dist.scale_tril, torch.eye(D).expand(E, B, D, D))
    else:
        assert isinstance(dist, DiagonalGaussian | GaussianMixture)
        torch.testing.assert_close(dist.log_std, torch.zeros_like(dist.log_std))


@pytest.mark.parametrize(("kind", "scale"), VARIANTS)
def test_members_know_nothing_of_each_other(kind: str, scale: Scale) -> None:
    policy, x = make(kind, scale), inputs()
    before = policy.dist(x).params
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter[0] += torch.randn(parameter[0].shape, generator=generator(2))
    after = policy.dist(x).params
    for old, new in zip(before, after, strict=True):
        assert torch.equal(new[1:], old[1:])
        assert not torch.allclose(new[0], old[0])


@pytest.mark.parametrize(("kind", "scale"), VARIANTS)
def test_rows_know_nothing_of_each_other(kind: str, scale: Scale) -> None:
    policy, x = make(kind, scale), inputs()
    alone = policy.dist(x[:, 2:3]).params
    for whole, row in zip(policy.dist(x).params, alone, strict=True):
        torch.testing.assert_close(whole[:, 2:3], row)


@pytest.mark.parametrize(("kind", "scale"), VARIANTS)
def test_same_seed_same_policy(kind: str, scale: Scale) -> None:
    one, same, other = (make(kind, scale, seed).dist(inputs()).params for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize(("kind", "scale"), VARIANTS)
def test_without_hidden_layers_it_is_affine(kind: str, scale: Scale) -> None:
    policy = make(kind, scale, hidden=())

    def located(x: Tensor) -> Tensor:
        dist = policy.dist(x)
        return dist.params[0] if kind == "categorical" else dist.params[-2]

    x, y, zero = inputs(1), inputs(2), torch.zeros(E, B, X)
    torch.testing.assert_close(located(x + y), located(x) + located(y) - located(zero))
    assert (located(zero) != 0.0).any()  # there is a bias


@pytest.mark.parametrize(("kind", "scale"), VARIANTS)
def test_double_precision(kind: str, scale: Scale) -> None:
    policy = make(kind, scale).double()
    dist = policy.dist(inputs().double())
    draws = dist.sample(2, generator(0))
    numbers = [*dist.params, draws, dist.log_prob(draws), dist.entropy(), dist.kl(dist)]
    assert {n.dtype for n in numbers} == {torch.float64}
    for single, double in zip(make(kind, scale).dist(inputs()).params, dist.params, strict=True):
        torch.testing.assert_close(single.double(), double, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "scale"), VARIANTS)
def test_the_gradient_of_the_likelihood_agrees_with_finite_differences(
    kind: str, scale: Scale
) -> None:
    policy, x = make(kind, scale).double(), inputs().double()
    y = policy.dist(x).sample(1, generator(3))[0]
    log_prob = LogProb(policy)
    names, start = zip(*log_prob.named_parameters(), strict=True)
    direction = tuple(torch.randn(p.shape, generator=generator(4)).double() for p in start)

    def value(*parameters: Tensor) -> Tensor:
        state = dict(zip(names, parameters, strict=True))
        total: Tensor = torch.func.functional_call(log_prob, state, (x, y)).sum()
        return total

    with torch.no_grad():  # scales start at zero, a point too special for a test
        for p, d in zip(start, direction, strict=True):
            p += 0.3 * d.flip(-1)
    tangent = torch.func.jvp(value, tuple(p.detach() for p in start), direction)[1]
    step = 1e-6
    with torch.no_grad():
        ahead, behind = (
            value(*(p + sign * step * d for p, d in zip(start, direction, strict=True)))
            for sign in (1.0, -1.0)
        )
    torch.testing.assert_close(tangent, (ahead - behind) / (2.0 * step), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("per_member", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_set_std_sets_it(per_member: bool, dtype: torch.dtype) -> None:
    policy = make("diagonal").to(dtype)
    assert isinstance(policy, GaussianPolicy)
    shape = (E, D) if per_member else (D,)
    std = torch.rand(shape, generator=generator(1), dtype=dtype) * 2.0 + 1e-4
    policy.set_std(std)
    found = policy.dist(inputs().to(dtype)).std
    torch.testing.assert_close(
        found,
        std.expand(E, D).unsqueeze(1).expand(E, B, D),
        rtol=2e-5 if dtype == torch.float32 else 1e-12,
        atol=0.0,
    )


def covariance(*lead: int, dtype: torch.dtype = torch.float64) -> Tensor:
    root = torch.randn(*lead, D, D, generator=generator(1), dtype=dtype)
    return root @ root.mT + 0.01 * torch.eye(D, dtype=dtype)


@pytest.mark.parametrize("lead", [(), (E,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_set_covariance_sets_it(lead: tuple[int, ...], dtype: torch.dtype) -> None:
    policy = make("full").to(dtype)
    assert isinstance(policy, FullGaussianPolicy)
    wanted = covariance(*lead, dtype=dtype)
    policy.set_covariance(wanted)
    dist = policy.dist(inputs().to(dtype))
    exact = wanted.expand(E, D, D).unsqueeze(1).expand(E, B, D, D)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(dist.moments()[1], exact, rtol=tolerance, atol=tolerance)
    assert (dist.scale_tril.triu(1) == 0.0).all()


def test_the_likelihood_is_stationary_at_the_second_moment_of_the_residual() -> None:
    """The scale that maximises the likelihood, known in closed form, for either Gaussian."""
    x, y = inputs().double(), inputs(3)[..., :D].double()
    for kind in ("diagonal", "full"):
        policy = make(kind).double()
        residual = (y - policy.dist(x).params[0]).detach()
        moment = residual.mT @ residual / B
        if isinstance(policy, GaussianPolicy):
            policy.set_std(moment.diagonal(dim1=-2, dim2=-1).sqrt())
        else:
            assert isinstance(policy, FullGaussianPolicy)
            policy.set_covariance(moment)
        raw = policy.raw_scale
        (gradient,) = torch.autograd.grad(policy.dist(x).log_prob(y).sum(), raw)
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0.0, atol=1e-8)
        with torch.no_grad():
            raw += 0.1
        (gradient,) = torch.autograd.grad(policy.dist(x).log_prob(y).sum(), raw)
        assert gradient.abs().min() > 1e-3


def test_one_dimension_has_no_off_diagonal() -> None:
    policy = FullGaussianPolicy(X, 1, generator=generator(0), members=E, hidden=())
    policy.set_covariance(torch.tensor([[4.0]]))
    torch.testing.assert_close(policy.dist(inputs()).scale_tril, torch.full((E, B, 1, 1), 2.0))


@pytest.mark.parametrize("scale", ["constant", "network"])
def test_components_do_not_start_alike(scale: Scale) -> None:
    dist = make("mixture", scale, components=6).dist(inputs())
    assert isinstance(dist, GaussianMixture)
    apart = (dist.mean.unsqueeze(-2) - dist.mean.unsqueeze(-3)).norm(dim=-1)
    assert (apart + 1e3 * torch.eye(6)).min() > 0.1
    # Without hidden layers and at x = 0 the means are the bias: in each dimension the same six
    # quantiles of a standard normal, in another order for each member.
    at_zero = make("mixture", scale, components=6, hidden=()).dist(torch.zeros(E, B, X))
    assert isinstance(at_zero, GaussianMixture)
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(6) + 0.5) / 6)
    torch.testing.assert_close(at_zero.mean.sort(2)[0], quantiles[:, None].expand(E, B, 6, D))
    assert not torch.equal(at_zero.mean[0], at_zero.mean[1])


@pytest.mark.parametrize("kind", ["diagonal", "full"])
def test_a_linear_policy_with_a_scale_of_x_learns_by_likelihood(kind: str) -> None:
    """y = x + noise e^{x/2}. From a scale that starts at random it stops far from the optimum."""
    draw = generator(0)
    policy = make(kind, "network", hidden=(), members=1)
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.02)

    def batch(rows: int) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.randn(1, rows, X, generator=draw)
        log_std = 0.5 * x[..., :D] - 1.0
        return x, x[..., :D] + log_std.exp() * torch.randn(1, rows, D, generator=draw), log_std

    for _ in range(400):
        x, y, _ = batch(256)
        optimiser.zero_grad()
        torch.autograd.backward(-policy.dist(x).log_prob(y).mean())
        optimiser.step()
    x, y, log_std = batch(4000)
    gap = (DiagonalGaussian(x[..., :D], log_std).log_prob(y) - policy.dist(x).log_prob(y)).mean()
    assert gap.item() / D < 0.1


def test_a_mixture_learns_two_modes() -> None:
    """y = ±2 with noise .1: the best Gaussian has −log p ≈ 2.1, the two modes −0.2."""
    draw = generator(0)
    policy = MixturePolicy(1, 1, generator=draw, members=1, components=2, hidden=())
    optimiser = torch.optim.Adam(policy.parameters(), lr=0.05)
    for _ in range(300):
        x = torch.rand(1, 128, 1, generator=draw)
        sign = torch.randint(2, x.shape, generator=draw) * 4.0 - 2.0
        y = sign + 0.1 * torch.randn(x.shape, generator=draw)
        loss = -policy.dist(x).log_prob(y).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    exact = math.log(2.0) + 0.5 * math.log(2.0 * math.pi * math.e) + math.log(0.1)
    assert loss.item() == pytest.approx(exact, abs=0.2)


def test_states_come_back() -> None:
    for kind, scale in VARIANTS:
        policy, other = make(kind, scale, seed=1), make(kind, scale, seed=2)
        other.load_state_dict(policy.state_dict())
        pairs = zip(policy.dist(inputs()).params, other.dist(inputs()).params, strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("diagonal", {"log_std_bounds": (0.0, 1.0)}, "low < 0 < high"),
        ("full", {"log_std_bounds": (-math.inf, 1.0)}, "low < 0 < high"),
        ("mixture", {"components": 0}, "components must be at least 1; got 0"),
        ("diagonal", {"scale": "learned"}, 'one of "constant", "network"'),
        ("full", {"members": 0}, "must be positive"),
        ("categorical", {"hidden": (0,)}, "must be positive"),
    ],
)
def test_bad_settings_are_refused(kind: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        make(kind, **settings)


@pytest.mark.parametrize("policy", SCALED.values())
def test_no_outputs_are_refused(policy: type[GaussianPolicy]) -> None:
    with pytest.raises(InvalidInputError, match="outputs must be at least 1; got 0"):
        policy(X, 0, generator=generator(0))


def test_fewer_than_two_classes_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="classes must be at least 2; got 1"):
        CategoricalPolicy(X, 1, generator=generator(0))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.ones(D + 1), r"std must be \(3,\) or \(3, 3\); got \(4,\)"),
        (torch.zeros(D), "every scale must lie between"),
        (-torch.ones(D), "every scale must lie between"),
        (torch.full((D,), 1e3), "widen log_std_bounds"),
        (torch.full((D,), math.nan), "every scale must lie between"),
    ],
)
def test_a_std_that_cannot_be_set_is_refused(value: Tensor, message: str) -> None:
    policy = make("diagonal")
    assert isinstance(policy, GaussianPolicy)
    before = policy.raw_scale.clone()
    with pytest.raises(InvalidInputError, match=message):
        policy.set_std(value)
    assert torch.equal(policy.raw_scale, before)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.eye(D + 1), r"covariance must be \(3, 3\)"),
        (torch.eye(D) + torch.ones(D, D).triu(1), "symmetric"),
        (torch.full((D, D), math.nan), "symmetric"),
        (torch.diag(torch.tensor([1.0, 1.0, -1.0])), "positive definite"),
        (torch.ones(D, D), "positive definite"),
        (torch.ones(D, D) + 1e-7 * torch.eye(D), "small multiple of the identity"),
        (torch.eye(D) * 1e4, "widen log_std_bounds"),
    ],
)
def test_a_covariance_that_cannot_be_set_is_refused(value: Tensor, message: str) -> None:
    policy = make("full")
    assert isinstance(policy, FullGaussianPolicy)
    before = policy.raw_scale.clone()
    with pytest.raises(InvalidInputError, match=message):
        policy.set_covariance(value)
    assert torch.equal(policy.raw_scale, before)


def test_a_network_scale_is_learned_not_set() -> None:
    diagonal, full = make("diagonal", "network"), make("full", "network")
    assert isinstance(diagonal, GaussianPolicy)
    assert isinstance(full, FullGaussianPolicy)
    with pytest.raises(InvalidInputError, match='set_std needs scale="constant"'):
        diagonal.set_std(torch.ones(D))
    with pytest.raises(InvalidInputError, match='set_covariance needs scale="constant"'):
        full.set_covariance(torch.eye(D))


@pytest.mark.parametrize("kind", ["diagonal", "full", "mixture", "categorical"])
def test_a_choice_of_members_predicts_as_they_did(kind: str) -> None:
    policy = make(kind, members=4)
    chosen = with_members(policy, [2, 0])
    assert (chosen.members, policy.members) == (2, 4)
    x = torch.randn(4, 5, policy.inputs, generator=torch.Generator().manual_seed(1))
    for one, whole in zip(chosen.dist(x[[2, 0]]).params, policy.dist(x).params, strict=True):
        torch.testing.assert_close(one, whole[[2, 0]])
    before = policy.network.last.weight.clone()
    with torch.no_grad():
        chosen.network.last.weight.zero_()
    assert torch.equal(policy.network.last.weight, before)
    for wrong in ([], [4], [-1]):
        with pytest.raises(InvalidInputError, match="members must name some of 0 to 3"):
            with_members(policy, wrong)
