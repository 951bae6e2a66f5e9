"""σ(x) on held-out residuals: recovered where it is known, constant where it is; what it makes of a reward."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.optim import Adam

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.data.splits import FitData, cross_fit
from mbrl_bilevel.inner.losses import MSE, PolicyGradient
from mbrl_bilevel.outer.closed_form import held_out_second_moment
from mbrl_bilevel.outer.held_out_spread import HeldOutSpread, SharedSpread
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.look_ahead import LookAhead
from mbrl_bilevel.outer.objectives import OneStepNLL
from mbrl_bilevel.outer.problem import Problem
from mbrl_bilevel.policies.policies import GaussianPolicy, with_members
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule


def noisy(slope: float, rows: int = 2000) -> FitData:
    """y = sin(2x) + σ(x)·noise with log σ(x) = −1.5 + slope·x, x uniform in [−1, 1]."""
    generator = torch.Generator().manual_seed(0)
    x = 2.0 * torch.rand(rows, 2, generator=generator) - 1.0
    std = torch.exp(-1.5 + slope * x[:, :1])
    y = torch.sin(2.0 * x[:, :1]) + std * torch.randn(rows, 1, generator=generator)
    return FitData(x, y, cross_fit(np.arange(rows) // 10, 3, np.random.default_rng(0)))


def fitted(name: str, data: FitData) -> tuple[GaussianPolicy, dict[str, float]]:
    generator = torch.Generator().manual_seed(1)
    policy = METHODS[name].make_policy(2, 1, generator=generator, members=3, hidden=(32, 32))
    schedule = Schedule(steps=400, learning_rate=1e-2)
    result = METHODS[name].fit(policy, data, generator=generator, schedule=schedule)
    return policy, dict(result.outer)


@pytest.mark.parametrize("name", ["bilevel", "mse-network"])
def test_it_recovers_noise_that_depends_on_x(name: str) -> None:
    policy, report = fitted(name, noisy(1.0))
    x = torch.stack([torch.linspace(-0.9, 0.9, 7), torch.zeros(7)], dim=1).expand(3, -1, -1)
    assert (policy.dist(x).log_std - (-1.5 + x[..., :1])).abs().mean() < 0.25  # from −2.4 to −0.6
    # A constant loses ½ log E σ² − E log σ = ½ log(sinh(2)/2).
    assert report["spread_gain"] == pytest.approx(0.5 * math.log(math.sinh(2.0) / 2.0), abs=0.1)


@pytest.mark.parametrize("name", ["bilevel", "mse-network"])
def test_even_noise_stays_almost_constant(name: str) -> None:
    policy, report = fitted(name, noisy(0.0))
    x = torch.rand(3, 200, 2, generator=torch.Generator().manual_seed(5)) * 2.0 - 1.0
    assert policy.dist(x).log_std.std() < 0.1
    assert report["spread_gain"] < 0.02


def test_the_mean_is_bitwise_that_of_mse() -> None:
    data = noisy(1.0, 600)
    x = data.x[:50].expand(3, -1, -1)
    separate, constant = fitted("mse-network", data)[0], fitted("mse", data)[0]
    assert torch.equal(separate.dist(x).mean, constant.dist(x).mean)
    assert not torch.equal(separate.dist(x).log_std, constant.dist(x).log_std)
    assert not any(p.requires_grad for p in separate.scale_network.parameters())


@pytest.mark.parametrize("members", [1, 3])
def test_shrunk_to_nothing_it_is_the_held_out_constant(members: int) -> None:
    data = noisy(1.0, 600)
    held_out = data.sample(data.folds.outer[:members])
    generator = torch.Generator().manual_seed(0)
    policy = GaussianPolicy(
        2, 1, generator=generator, members=members, hidden=(8,), scale="separate"
    )
    problem = Problem(policy, MSE(), held_out, held_out)
    before = policy.dist(held_out.x).mean
    report = HeldOutSpread(shrinkage=(0.0, 1e-9), ensemble=False).finish(problem)
    assert report["spread_factor"] in (0.0, 1e-9)
    assert torch.equal(policy.dist(held_out.x).mean, before)
    std = held_out_second_moment(policy, held_out).sqrt()
    torch.testing.assert_close(policy.dist(held_out.x).std, std.expand(held_out.y.shape))


def test_far_from_the_data_it_stays_within_what_it_saw() -> None:
    policy, _ = fitted("mse-network", noisy(1.0))
    far = policy.dist(1e3 * torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(2)))
    assert far.log_std.min() > -3.2
    assert far.log_std.max() < 0.2


def test_disagreement_is_not_counted_twice() -> None:
    """The mixture's variance, own plus disagreement, is σ² of the held-out residuals; one member that
    is taken out has all of it."""
    data = noisy(0.0, 300)
    generator = torch.Generator().manual_seed(3)
    policy = GaussianPolicy(2, 1, generator=generator, members=3, hidden=(8,), scale="separate")
    with torch.no_grad():
        policy.network.last.weight.mul_(3.0)  # members that differ
    held_out = data.sample(data.folds.outer)
    HeldOutSpread(shrinkage=(0.0, 1e-9)).finish(Problem(policy, MSE(), held_out, held_out))
    x = held_out.x[held_out.weight > 0].expand(3, -1, -1)
    dist = policy.dist(x)
    disagreement = dist.mean.var(0, correction=0).mean()
    assert disagreement > 0.01
    moment = held_out_second_moment(policy, held_out).squeeze()
    torch.testing.assert_close(dist.std.square().mean() + disagreement, moment, rtol=1e-4, atol=0.0)
    alone = with_members(policy, [1]).dist(x[:1]).std
    torch.testing.assert_close(alone, moment.sqrt().expand_as(alone))


def test_the_members_agree_on_the_spread() -> None:
    data = noisy(1.0, 600)
    x = data.x[:200].expand(3, -1, -1)
    differ = {}
    for average in (0, 150):
        generator = torch.Generator().manual_seed(1)
        policy = GaussianPolicy(
            2, 1, generator=generator, members=3, hidden=(32, 32), scale="separate"
        )
        sample = data.sample(data.folds.outer)
        HeldOutSpread(average=average, ensemble=True).finish(Problem(policy, MSE(), sample, sample))
        differ[average] = policy.dist(x).log_std.std(0).mean()
    assert differ[150] < 0.5 * differ[0]


def test_a_shared_spread_weighs_by_the_share() -> None:
    policy, _ = fitted("mse-network", noisy(1.0))
    x = torch.rand(3, 40, 2, generator=torch.Generator().manual_seed(2)) * 2.0 - 1.0
    dist, y = policy.dist(x), torch.zeros(3, 40, 1)
    near = dist.log_std.clamp(*_reach(policy))
    for share in (0.0, 0.5, 1.0):
        reward = SharedSpread(policy, share)
        torch.testing.assert_close(reward.weight(dist.log_std), 0.5 * torch.exp(-2 * share * near))
        # The closed form is the average over draws.
        g = torch.Generator().manual_seed(0)
        draws = dist.mean + dist.std * torch.randn(20_000, 3, 40, 1, generator=g)
        torch.testing.assert_close(
            reward(draws, y, x).mean(0), reward.expected(dist, y, x), rtol=0.05, atol=0.01
        )
        assert not list(reward.parameters())


def _reach(policy: GaussianPolicy) -> tuple[torch.Tensor, torch.Tensor]:
    constant = policy.bounded_log_std(policy.raw_scale).detach()
    return constant - 1.5, constant + 1.5


def test_the_share_is_a_gauge_with_the_gradient_of_beta_nll() -> None:
    """∇ of the mean: (μ − y)·σ^(−2a), that of the Gaussian likelihood times σ^(2β) at β = 1 − a."""
    policy, _ = fitted("bilevel", noisy(1.0))
    data = noisy(1.0, 600).sample(noisy(1.0, 600).folds.outer)
    dist = policy.dist(data.x)
    mean = dist.mean.detach().requires_grad_()
    for share in (0.0, 0.5, 1.0):
        weight = SharedSpread(policy, share).weight(dist.log_std)
        ours = torch.autograd.grad((weight * (mean - data.y).square()).sum(), mean)[0]
        variance = dist.std.detach().square().clamp(*(torch.exp(2 * v) for v in _reach(policy)))
        nll = 0.5 * (mean - data.y).square() / variance * variance ** (1.0 - share)
        torch.testing.assert_close(ours, torch.autograd.grad(nll.sum(), mean)[0])


def test_what_it_refuses() -> None:
    with pytest.raises(InvalidInputError, match="steps"):
        HeldOutSpread(steps=0)
    with pytest.raises(InvalidInputError, match="shrinkage"):
        HeldOutSpread(shrinkage=(0.5,))
    data = noisy(0.0, 300)
    sample = data.sample(data.folds.outer)
    policy = GaussianPolicy(2, 1, generator=torch.Generator(), members=3, hidden=(4,))
    with pytest.raises(UnsupportedCombinationError, match='scale="separate"'):
        HeldOutSpread().check(Problem(policy, MSE(), sample, sample))
    with pytest.raises(InvalidInputError, match="share"):
        SharedSpread(policy, 1.5)
    mixture = METHODS["nll-mixture"].make_policy(
        2, 1, generator=torch.Generator(), members=3, hidden=()
    )
    with pytest.raises(UnsupportedCombinationError, match="GaussianPolicy"):
        SharedSpread(policy).expected(mixture.dist(sample.x), sample.y, sample.x)


def test_an_inferred_share_weighs_rows_against_each_other_alone() -> None:
    """u has the mean ½ whatever a is, and its slope in a is that of finite differences."""
    policy = GaussianPolicy(
        2, 1, generator=torch.Generator().manual_seed(0), members=2, hidden=(8,), scale="separate"
    ).double()
    reward = SharedSpread(policy, 0.3, infer_share=True).double()
    log_std = torch.randn(2, 50, 1, generator=torch.Generator().manual_seed(1)).double() * 0.3
    given = SharedSpread(policy, 0.3).weight(log_std)
    found = reward.weight(log_std)
    torch.testing.assert_close(found, 0.5 * given / given.mean())
    assert reward.share_logit is not None
    (slope,) = torch.autograd.grad(found[0, 7, 0], reward.share_logit)
    eps, ends = 1e-5, []
    for step in (eps, -eps):
        with torch.no_grad():
            reward.share_logit += step
            ends.append(float(reward.weight(log_std)[0, 7, 0]))
            reward.share_logit -= step
    assert float(slope) == pytest.approx((ends[0] - ends[1]) / (2.0 * eps), rel=1e-5)
    with pytest.raises(InvalidInputError, match="within them where it is inferred"):
        SharedSpread(policy, 1.0, infer_share=True)


@pytest.mark.parametrize(("slope", "moves"), [(1.5, True), (0.0, False)])
def test_the_share_is_inferred_where_noise_differs(slope: float, moves: bool) -> None:
    """Where some rows are much noisier, to weigh them less leads to likelier held-out rows; where all are alike there
    is nothing to tell."""
    data = noisy(slope)
    method = replace(
        METHODS["bilevel"],
        make_loss=lambda policy, data: PolicyGradient(SharedSpread(policy, infer_share=True)),
        outer=Outer(
            LookAhead(),
            OneStepNLL(),
            partial(Adam, lr=0.1),
            every=20,
            warmup=100,
            alongside=HeldOutSpread(),
            alongside_every=4,
            with_stop=True,
        ),
    )
    policy = method.make_policy(
        2, 1, generator=torch.Generator().manual_seed(0), members=3, hidden=(8,)
    )
    result = method.fit(
        policy,
        data,
        generator=torch.Generator().manual_seed(1),
        schedule=Schedule(steps=600, batch_size=64, learning_rate=3e-3),
    )
    share = result.outer["share"]
    assert (share > 0.7) is moves
    assert moves or 0.35 < share < 0.65
