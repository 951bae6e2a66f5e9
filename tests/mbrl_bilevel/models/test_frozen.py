"""A frozen model says what the model said, to round-off, and nothing that happens later reaches it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.data.splits import regression_rows
from mbrl_bilevel.imagination.branches import branch_step, draw_members
from mbrl_bilevel.imagination.particles import imagined_returns
from mbrl_bilevel.imagination.settings import Branching, Imagination
from mbrl_bilevel.models.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.training.methods import get_method
from mbrl_bilevel.training.settings import Schedule


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def steps() -> Transitions:
    """40 episodes of 5 steps; the second observation never moves, and high ones end the episode."""
    random = np.random.default_rng(0)
    obs = random.standard_normal((200, 2)).astype(np.float32)
    obs[:, 1] = 3.0
    action = random.standard_normal((200, 1)).astype(np.float32)
    after = obs.copy()
    after[:, 0] += 0.3 * action[:, 0] + 0.1 * random.standard_normal(200).astype(np.float32)
    ended, never = after[:, 0] > 1.5, np.zeros(200, dtype=np.bool_)
    episode, t = np.repeat(np.arange(40), 5), np.tile(np.arange(5), 40)
    return Transitions(obs, action, after[:, 0], after, ended, never, episode, t)


@pytest.fixture(scope="module", params=["bilevel", "nll", "nll-mixture", "mse"])
def model(request: pytest.FixtureRequest) -> DynamicsModel:
    schedule = Schedule(steps=220, batch_size=32)
    return fit_dynamics(
        steps(),
        get_method(request.param),
        generator=seeded(),
        members=2,
        hidden=(8,),
        schedule=schedule,
    )[0]


@pytest.fixture
def rows() -> tuple[Tensor, Tensor]:
    obs = torch.randn(2, 7, 2, generator=seeded(1))
    obs[..., 1] = 3.0
    return obs, torch.randn(2, 7, 1, generator=seeded(2))


@pytest.mark.parametrize("drawn", [False, True])
def test_it_steps_as_the_model_does(
    model: DynamicsModel, rows: tuple[Tensor, Tensor], drawn: bool
) -> None:
    noise = torch.randn(2, 7, model.noise_width, generator=seeded(3)) if drawn else None
    exact, fast = model.step(*rows, noise), model.frozen().step(*rows, noise)
    for name, value in vars(exact).items():
        torch.testing.assert_close(getattr(fast, name), value.detach(), rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(
        model.frozen().dist(*rows).params, model.dist(*rows).params, strict=True
    ):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-5)
    row = rows[0][0], rows[1][0]
    for name, value in vars(model.predict(*row)).items():
        ours = getattr(model.frozen().predict(*row), name)
        torch.testing.assert_close(ours, value.detach(), rtol=1e-5, atol=1e-5)


def test_plans_and_branches_go_the_same_way_in_it(
    model: DynamicsModel, rows: tuple[Tensor, Tensor]
) -> None:
    frozen = model.frozen()
    plans = torch.randn(1, 20, 4, 1, generator=seeded(4))
    scores = [
        imagined_returns(one, rows[0][0, :1], plans, Imagination(4), seeded(5))
        for one in (model, frozen)
    ]
    assert torch.equal(*scores)  # The first froze it by itself.
    member = draw_members(model, 7, seeded(6))
    first, second = (
        branch_step(one, rows[0][0], rows[1][0], member, Branching(penalty=0.5), seeded(7))
        for one in (model, frozen)
    )
    for name, value in vars(first).items():
        torch.testing.assert_close(getattr(second, name), value, rtol=1e-5, atol=1e-5)


def test_it_is_made_once_and_stays_as_it_was(
    model: DynamicsModel, rows: tuple[Tensor, Tensor]
) -> None:
    own = model.only([0, 1])
    frozen, before = own.frozen(), own.step(*rows).next_obs.detach()
    assert frozen.frozen() is frozen
    assert frozen.frozen("cpu") is frozen
    rough = frozen.frozen(None, "bfloat16")
    assert rough.frozen(None, "bfloat16") is rough
    assert 0.0 < (rough.step(*rows).next_obs - before).abs().max() < 0.05
    with torch.no_grad():
        for parameter in own.policy.parameters():
            parameter.add_(1.0)
    assert (own.step(*rows).next_obs - before).abs().max() > 0.1
    for one in (frozen, rough.frozen()):
        torch.testing.assert_close(one.step(*rows).next_obs, before, rtol=1e-5, atol=1e-5)


def test_the_rows_that_a_model_learns_from() -> None:
    """x = (obs, action); y = (Δobs, reward), the jump of ending taken off, or the next observation."""
    data = steps()
    x, y = regression_rows(data, jump=2.0)
    ended = int(np.flatnonzero(data.terminated)[0])
    assert x[ended].tolist() == [*data.obs[ended], *data.action[ended]]
    change = data.next_obs[ended] - data.obs[ended]
    assert y[ended].tolist() == pytest.approx([*change, data.reward[ended] - 2.0])
    direct = regression_rows(data, reward=False, direct=True)[1]
    np.testing.assert_array_equal(direct.numpy(), data.next_obs)
