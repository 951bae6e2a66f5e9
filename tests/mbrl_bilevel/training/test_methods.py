"""The named methods: each can be found and trains, and they differ in their slots alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Step
from mbrl_bilevel.data.splits import Chain, FitData, cross_fit
from mbrl_bilevel.inner.losses import NLL, PolicyGradient
from mbrl_bilevel.outer.held_out_spread import SharedSpread
from mbrl_bilevel.outer.objectives import OpenLoopReturn
from mbrl_bilevel.policies.policies import GaussianPolicy
from mbrl_bilevel.training.method import WarmUp
from mbrl_bilevel.training.methods import METHODS, get_method
from mbrl_bilevel.training.settings import Schedule


def test_the_methods_are_these() -> None:
    assert tuple(METHODS) == (
        *(
            "bilevel",
            "bilevel-constant",
            "nll",
            "nll-mixture",
            "bilevel-mixture",
            "mse",
        ),
        *("mse-network", "beta-nll", "beta-nll-1", "faithful", "k-step", "bilevel-k-step"),
        *("bilevel-return", "bilevel-look-ahead", "paper", "paper-exponential"),
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_found_by_its_name(name: str) -> None:
    assert get_method(name) is METHODS[name]
    assert METHODS[name].summary


@pytest.mark.parametrize(
    ("wrong", "near"), [("bilevle", "bilevel"), ("MSE", None), ("nl", "nll"), ("mes", "mse")]
)
def test_an_unknown_name_is_answered_with_the_nearest(wrong: str, near: str | None) -> None:
    with pytest.raises(InvalidInputError) as error:
        get_method(wrong)
    message = str(error.value)
    assert repr(wrong) in message
    assert all(name in message for name in METHODS)
    if near is not None:
        assert f"did you mean {near!r}" in message


def test_an_old_name_in_a_file_stands_for_what_took_its_place() -> None:
    assert get_method("bilevel-temperature") is METHODS["bilevel"]


def test_the_policy_that_a_row_makes_is_the_one_its_reward_looks_at() -> None:
    """What the row says is what runs: no reward that another one takes the place of."""
    policy, loss = METHODS["bilevel"].sketch()
    assert isinstance(policy, GaussianPolicy)
    assert isinstance(loss, PolicyGradient)
    assert isinstance(loss.reward, SharedSpread)
    policy.set_std(torch.tensor([0.5, 2.0]))
    spread = policy.dist(torch.zeros(1, 1, 1)).log_std
    expected = 0.5 / torch.tensor([[[0.5, 2.0]]])  # u = ½σ^(−2a) at a = ½
    torch.testing.assert_close(loss.reward.weight(spread), expected)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(name: str) -> None:
    method, g = METHODS[name], torch.Generator().manual_seed(0)
    x = torch.randn(600, 2, generator=g)
    y = torch.stack([x[:, 0] - x[:, 1], 0.5 * x[:, 0]], 1) + 0.3 * torch.randn(600, 2, generator=g)
    folds = cross_fit(torch.arange(600).numpy() // 10, 2, np.random.default_rng(0))
    # Rows that follow each other but move no state: looking ahead is then squared error again.
    chain = Chain(
        torch.arange(1, 601) % 600,
        torch.zeros(2, 0),
        torch.zeros(0),
        method.horizon,
        outcome=lambda x, y: Step(x, y[..., 0], torch.zeros_like(y[..., 0])),
    )
    data = FitData(x, y, folds, chain)
    policy = method.make_policy(2, 2, generator=g, members=2, hidden=(16,))
    schedule = Schedule(steps=400, learning_rate=1e-2, batch_size=64)
    result = method.fit(policy, data, generator=g, schedule=schedule)
    dist = policy.dist(x.expand(2, -1, -1))
    nll = -dist.log_prob(y.expand(2, -1, -1)).mean() / 2
    if name == "paper":
        # Its Σ is the targets' own: the spread of the data set, min-shift on top (docs/method.md).
        assert 1.0 < nll < 2.0
        assert dist.marginals()[1].mean() > 0.8
    elif name == "paper-exponential":
        assert 0.2 < nll < 0.5  # at λ = .1 its bounded reward has an optimum in two dimensions
    else:
        # The truth has log(.3 √(2πe)) = 0.215 nats a dimension, the marginal 1.0.
        assert nll < 0.35
    assert all(math.isfinite(value) for value in result.criterion)


def test_returns_end_with_a_value_where_a_method_is_about_returns() -> None:
    def value(obs: torch.Tensor) -> torch.Tensor:
        return obs[..., 0]

    assert METHODS["bilevel"].valuing(value, 0.9) is METHODS["bilevel"]
    assert METHODS["nll"].valuing(value, 0.9) is METHODS["nll"]
    outer = METHODS["bilevel-look-ahead"].valuing(value, 0.9).outer
    assert outer is not None
    assert outer.objective == OpenLoopReturn(0.9, value)


def test_a_warm_up_takes_its_part_of_the_steps() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 1, generator=g)
    folds = cross_fit(np.arange(200) // 10, 2, np.random.default_rng(0))
    data = FitData(x, x + 0.1 * torch.randn(200, 1, generator=g), folds)
    method = replace(METHODS["bilevel-constant"], warm_up=WarmUp(NLL(), 0.4))
    policy = method.make_policy(1, 1, generator=g, members=2, hidden=(8,))
    schedule = Schedule(steps=50, evaluate_every=10)
    result = method.fit(policy, data, generator=g, schedule=schedule)
    assert result.steps == 30
    with pytest.raises(InvalidInputError, match="part must lie between 0 and 1"):
        WarmUp(NLL(), 1.0)


@pytest.mark.parametrize("name", METHODS)
def test_each_model_gets_a_loss_of_its_own(name: str) -> None:
    """A shared reward would carry what it learned from one model to the next."""
    (_, first), (_, second) = METHODS[name].sketch(), METHODS[name].sketch()
    own = {id(p) for p in _tensors(first)}
    assert not own & {id(p) for p in _tensors(second)}


def _tensors(loss: object) -> list[torch.Tensor]:
    modules = [v for v in vars(loss).values() if isinstance(v, torch.nn.Module)]
    return [p for module in modules for p in module.parameters()]
