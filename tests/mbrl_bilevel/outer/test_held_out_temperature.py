"""λ(x) from held-out residuals: recovered where noise depends on x, constant where it does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.data.rows import FitData, cross_fit
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.inner.rewards import Mahalanobis
from mbrl_bilevel.outer.closed_form import ClosedForm, held_out_second_moment
from mbrl_bilevel.outer.held_out_temperature import HeldOutTemperature
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.objectives import ProfileNLL
from mbrl_bilevel.outer.problem import Problem
from mbrl_bilevel.policies.policies import GaussianPolicy
from mbrl_bilevel.policies.scales import Scale
from mbrl_bilevel.training.fit import Schedule, fit

ROWS = 3000


def noisy(slope: float, seed: int = 0) -> FitData:
    """y = sin(2x) + σ(x)·noise with log σ(x) = −1.5 + slope·x, x uniform in [−1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    x = 2.0 * torch.rand(ROWS, 2, generator=generator) - 1.0
    std = torch.exp(-1.5 + slope * x[:, :1])
    y = torch.sin(2.0 * x[:, :1]) + std * torch.randn(ROWS, 1, generator=generator)
    folds = cross_fit(np.arange(ROWS) // 10, 3, np.random.default_rng(seed))
    return FitData(x, y, folds)


def fitted(data: FitData, scale: Scale = "tempered", seed: int = 1) -> tuple[GaussianPolicy, dict]:
    generator = torch.Generator().manual_seed(seed)
    policy = GaussianPolicy(2, 1, generator=generator, members=3, hidden=(32, 32), scale=scale)
    result = fit(
        policy,
        PolicyGradient(Mahalanobis(1)),
        data,
        generator=generator,
        outer=Outer(HeldOutTemperature() if scale == "tempered" else ClosedForm()),
        criterion=ProfileNLL(),
        schedule=Schedule(steps=600, learning_rate=1e-2),
    )
    return policy, dict(result.outer)


def test_it_recovers_noise_that_depends_on_x() -> None:
    policy, report = fitted(noisy(slope=1.0))
    x = torch.stack([torch.linspace(-0.9, 0.9, 7), torch.zeros(7)], dim=1).expand(3, -1, -1)
    truth = -1.5 + x[..., :1]
    assert (policy.dist(x).log_std - truth).abs().max() < 0.35  # it runs from −2.4 to −0.6
    assert report["temperature_gain"] > 0.05
    # With log σ = −1.5 + x and x uniform in ±1, a constant loses ½ log E σ² − E log σ = ½ log(sinh(2)/2).
    assert report["temperature_gain"] == pytest.approx(0.5 * np.log(np.sinh(2.0) / 2.0), abs=0.1)


def test_even_noise_stays_almost_constant() -> None:
    policy, report = fitted(noisy(slope=0.0))
    x = torch.rand(3, 200, 2, generator=torch.Generator().manual_seed(5)) * 2.0 - 1.0
    assert policy.dist(x).log_std.std() < 0.08
    assert report["temperature_gain"] < 0.01


def test_the_mean_is_that_of_a_constant_reward() -> None:
    """λ(x) comes after, on detached features: the mean is bitwise the same with and without it."""
    data = noisy(slope=1.0)
    x = data.x[:50].expand(3, -1, -1)
    tempered, constant = fitted(data)[0], fitted(data, "constant")[0]
    assert torch.equal(tempered.dist(x).mean, constant.dist(x).mean)
    assert not torch.equal(tempered.dist(x).log_std, constant.dist(x).log_std)


def test_at_factor_zero_it_is_the_closed_form() -> None:
    data = noisy(slope=0.0)
    generator = torch.Generator().manual_seed(0)
    policy = GaussianPolicy(2, 1, generator=generator, members=3, hidden=(8,), scale="tempered")
    loss = PolicyGradient(Mahalanobis(1))
    train, held_out = data.sample(data.folds.train), data.sample(data.folds.outer)
    # One tiny step cannot beat the constant by ten steps' reading: none is taken.
    HeldOutTemperature(steps=1).finish(Problem(policy, loss, train, held_out))
    moment = held_out_second_moment(policy, held_out)
    torch.testing.assert_close(
        policy.dist(held_out.x).std, moment.sqrt().expand(3, held_out.x.shape[1], 1)
    )
    torch.testing.assert_close(loss.reward.u, 0.5 / moment[0])  # type: ignore[union-attr]


def test_a_single_member_judges_on_rows_it_did_not_fit() -> None:
    data = noisy(slope=1.0)
    one = FitData(data.x, data.y, cross_fit(np.arange(ROWS) // 10, 1, np.random.default_rng(0)))
    generator = torch.Generator().manual_seed(0)
    policy = GaussianPolicy(2, 1, generator=generator, members=1, hidden=(32,), scale="tempered")
    report = fit(
        policy,
        PolicyGradient(Mahalanobis(1)),
        one,
        generator=generator,
        outer=Outer(HeldOutTemperature()),
        schedule=Schedule(steps=300),
    ).outer
    assert report["temperature_gain"] > 0.03


def test_off_the_data_it_stays_within_what_was_seen() -> None:
    """A log-linear map alone would say σ = e^{slope·|x|}: imagined rollouts would run away."""
    policy, _ = fitted(noisy(slope=1.0))
    inside = torch.rand(3, 2000, 2, generator=torch.Generator().manual_seed(3)) * 2.0 - 1.0
    seen = policy.dist(inside).log_std
    far = policy.dist(50.0 * inside).log_std
    assert (far <= seen.amax(1, keepdim=True) + 1e-5).all()
    assert (far >= seen.amin(1, keepdim=True) - 1e-5).all()
    assert seen.std() > 0.2


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"rows": 1},
        {"learning_rate": 0.0},
        {"shrinkage": (0.5,)},
        {"shrinkage": (0.0,)},
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        HeldOutTemperature(**wrong)  # type: ignore[arg-type]


def test_a_policy_without_a_temperature_is_refused() -> None:
    data = noisy(slope=0.0)
    generator = torch.Generator().manual_seed(0)
    policy = GaussianPolicy(2, 1, generator=generator, members=3, hidden=(8,))
    train, held_out = data.sample(data.folds.train), data.sample(data.folds.outer)
    problem = Problem(policy, PolicyGradient(Mahalanobis(1)), train, held_out)
    with pytest.raises(UnsupportedCombinationError, match="tempered"):
        HeldOutTemperature().check(problem)
