"""What an actor that looks ahead climbs, against plain loops: horizons, their shares, endings, and what it costs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from agents.learners.ahead import Ahead, ImaginedStep, climbed

GAMMA, ALPHA = 0.9, torch.tensor(0.3)


class Model:
    """Members that move by m·a for m = 1, 2; a step pays s·a, and may end, softly or by a rule."""

    members = 2

    def __init__(self, cliff: float | None = None) -> None:
        self.cliff, self.rows = cliff, 0

    def __call__(self, obs: Tensor, action: Tensor) -> ImaginedStep:
        self.rows += len(obs)
        member = 1.0 + (torch.arange(len(obs)) >= len(obs) // 2).to(obs)
        moved = obs + 0.1 * member[:, None] * action
        chance = 0.2 * torch.sigmoid(obs[:, 0])
        if self.cliff is not None:
            chance = (moved[:, 0] > self.cliff).to(obs)
        return ImaginedStep(moved, (obs * action).sum(1), chance)


def ask(obs: Tensor, actions: Tensor) -> Tensor:
    return obs.square().sum(1) + (obs * actions).sum(1)


def act(obs: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tanh(obs - 0.5), 0.1 * obs.sum(1)


def by_loop(
    obs: Tensor, action: Tensor, member: int, horizon: int, cliff: float | None = None
) -> float:
    """G of one row, whose last horizon is the one before it falls."""
    total, going = 0.0, 1.0
    for h in range(horizon + 1):
        asked = total + going * float(ask(obs, action))
        chance = 0.2 / (1.0 + np.exp(-float(obs[0, 0])))
        if cliff is not None:
            chance = float(obs[0, 0] + 0.1 * (member + 1) * action[0, 0] > cliff)
        if h == horizon or chance == 1.0:
            return asked
        total += going * float((obs * action).sum())
        going *= GAMMA * (1.0 - chance)
        obs = obs + 0.1 * (member + 1) * action
        action, log_prob = act(obs)
        total -= going * float(ALPHA * log_prob)
    raise AssertionError


def rows(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(count, 2, generator=g), torch.rand(count, 2, generator=g) - 0.5


@pytest.mark.parametrize("cliff", [None, 0.6])
@pytest.mark.parametrize(
    ("lam", "horizons"),
    [(0.7, [2, 2, 2, 2, 2, 1, 1, 0, 0, 0]), (1.0, [2] * 10), (0.04, [0] * 10)],
)
def test_each_row_has_a_horizon(lam: float, horizons: list[int], cliff: float | None) -> None:
    obs, actions = rows(21)  # no multiple of two
    found = climbed(Ahead(Model(cliff), 2, lam), obs, actions, ask, act, GAMMA, ALPHA)
    assert found.shape == (20,)
    wanted = [
        by_loop(obs[i : i + 1], actions[i : i + 1], i // 10, horizons[i % 10], cliff)
        for i in range(20)
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    if cliff is not None and lam > 0.5:
        assert int(((obs + 0.1 * actions)[:10, 0] > cliff).sum()) in range(1, 9)  # some end at once


def test_their_mean_is_the_lambda_return() -> None:
    obs, actions = (v.expand(8000, -1) for v in rows(1))
    lam, steps = 0.7, 4
    found = (
        climbed(Ahead(Model(), steps, lam), obs, actions, ask, act, GAMMA, ALPHA).double().mean()
    )
    weights = [(1.0 - lam) * lam**h for h in range(steps)] + [lam**steps]
    wanted = sum(
        w * by_loop(obs[:1], actions[:1], member, h) / 2
        for h, w in enumerate(weights)
        for member in range(2)
    )
    assert float(found) == pytest.approx(wanted, rel=1e-3)


def test_it_costs_one_horizon_a_row() -> None:
    obs, actions = rows(200)
    model, asked = Model(), []

    def counting(obs: Tensor, actions: Tensor) -> Tensor:
        asked.append(len(obs))
        return ask(obs, actions)

    climbed(Ahead(model, 4, 0.7), obs, actions, counting, act, GAMMA, ALPHA)
    assert asked == [60, 42, 30, 20, 48]
    assert model.rows == 140 + 98 + 68 + 48


@pytest.mark.parametrize("cliff", [None, 0.6])
def test_slopes_are_those_of_finite_differences(cliff: float | None) -> None:
    obs, actions = (v.double() for v in rows(20))
    actions.requires_grad_()
    ahead = Ahead(Model(cliff), 2, 0.7)

    def total(taken: Tensor) -> Tensor:
        return climbed(ahead, obs, taken, ask, act, GAMMA, ALPHA.double()).sum()

    assert torch.autograd.gradcheck(total, (actions,), eps=1e-6, atol=1e-6)


def test_past_an_end_nothing_is_climbed() -> None:
    """What a last step pays is no reason to take it."""
    obs = torch.tensor([[0.9, 0.3], [-3.0, 0.3]]).repeat(2, 1)
    actions = torch.full((4, 2), 0.8, requires_grad=True)
    found = climbed(Ahead(Model(0.9), 2), obs, actions, ask, act, GAMMA, ALPHA)
    q = ask(obs, actions)
    slopes = [torch.autograd.grad(v[0], actions, retain_graph=True)[0][0] for v in (found, q)]
    torch.testing.assert_close(found[0], q[0])
    torch.testing.assert_close(*slopes)
    assert abs(found[1] - q[1]) > 0.1
