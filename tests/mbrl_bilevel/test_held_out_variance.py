"""σ(x) fitted after the mean: recovered where it is known, constant where it is, the mean untouched."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mbrl_bilevel.bilevel import Problem
from mbrl_bilevel.closed_form import held_out_second_moment
from mbrl_bilevel.data import FitData, cross_fit
from mbrl_bilevel.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.fit import Schedule
from mbrl_bilevel.held_out_variance import HeldOutVarianceNetwork
from mbrl_bilevel.losses import MSE
from mbrl_bilevel.methods import METHODS
from mbrl_bilevel.policies import GaussianPolicy


def noisy(slope: float, rows: int = 2000) -> FitData:
    """y = sin(2x) + σ(x)·noise with log σ(x) = −1.5 + slope·x, x uniform in [−1, 1]."""
    generator = torch.Generator().manual_seed(0)
    x = 2.0 * torch.rand(rows, 2, generator=generator) - 1.0
    std = torch.exp(-1.5 + slope * x[:, :1])
    y = torch.sin(2.0 * x[:, :1]) + std * torch.randn(rows, 1, generator=generator)
    return FitData(x, y, cross_fit(np.arange(rows) // 10, 3, np.random.default_rng(0)))


def fitted(name: str, data: FitData) -> tuple[GaussianPolicy, dict[str, float]]:
    generator = torch.Generator().manual_seed(1)
    policy = GaussianPolicy(
        2, 1, generator=generator, members=3, hidden=(32, 32), scale=METHODS[name].scale
    )
    schedule = Schedule(steps=400, learning_rate=1e-2)
    result = METHODS[name].fit(policy, data, generator=generator, schedule=schedule)
    return policy, dict(result.outer)


def test_it_recovers_noise_that_depends_on_x() -> None:
    policy, report = fitted("mse-network", noisy(1.0))
    x = torch.stack([torch.linspace(-0.9, 0.9, 7), torch.zeros(7)], dim=1).expand(3, -1, -1)
    assert (policy.dist(x).log_std - (-1.5 + x[..., :1])).abs().mean() < 0.25  # from −2.4 to −0.6
    # A constant loses ½ log E σ² − E log σ = ½ log(sinh(2)/2).
    assert report["variance_gain"] == pytest.approx(0.5 * math.log(math.sinh(2.0) / 2.0), abs=0.1)


def test_even_noise_stays_almost_constant() -> None:
    policy, report = fitted("mse-network", noisy(0.0))
    x = torch.rand(3, 200, 2, generator=torch.Generator().manual_seed(5)) * 2.0 - 1.0
    assert policy.dist(x).log_std.std() < 0.1
    assert report["variance_gain"] < 0.02


def test_the_mean_is_bitwise_that_of_mse() -> None:
    data = noisy(1.0, 600)
    x = data.x[:50].expand(3, -1, -1)
    separate, constant = fitted("mse-network", data)[0], fitted("mse", data)[0]
    assert torch.equal(separate.dist(x).mean, constant.dist(x).mean)
    assert not torch.equal(separate.dist(x).log_std, constant.dist(x).log_std)
    assert not any(p.requires_grad for p in separate.scale_network.parameters())


@pytest.mark.parametrize("members", [1, 3])
def test_without_a_step_it_is_the_held_out_constant(members: int) -> None:
    data = noisy(1.0, 600)
    held_out = data.sample(data.folds.outer[:members])
    generator = torch.Generator().manual_seed(0)
    policy = GaussianPolicy(
        2, 1, generator=generator, members=members, hidden=(8,), scale="separate"
    )
    problem = Problem(policy, MSE(), held_out, held_out)
    report = HeldOutVarianceNetwork(steps=1, judge_every=2).finish(problem)
    assert report == {"variance_steps": 0.0, "variance_gain": 0.0}
    std = held_out_second_moment(policy, held_out).sqrt()
    torch.testing.assert_close(policy.dist(held_out.x).std, std.expand(held_out.y.shape))


def test_far_from_the_data_it_stays_within_what_it_saw() -> None:
    policy, _ = fitted("mse-network", noisy(1.0))
    far = policy.dist(1e3 * torch.randn(3, 50, 2, generator=torch.Generator().manual_seed(2)))
    assert far.log_std.min() > -3.2
    assert far.log_std.max() < 0.2


def test_what_it_refuses() -> None:
    with pytest.raises(InvalidInputError, match="steps"):
        HeldOutVarianceNetwork(steps=0)
    data = noisy(0.0, 300)
    sample = data.sample(data.folds.outer)
    policy = GaussianPolicy(2, 1, generator=torch.Generator(), members=3, hidden=(4,))
    with pytest.raises(UnsupportedCombinationError, match='scale="separate"'):
        HeldOutVarianceNetwork().check(Problem(policy, MSE(), sample, sample))
