"""What an actor that looks ahead climbs, against plain loops: horizons, their weights, endings, slopes."""

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
        self.cliff = cliff

    def __call__(self, obs: Tensor, action: Tensor) -> ImaginedStep:
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
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_it_is_the_mean_over_horizons(lam: float, cliff: float | None) -> None:
    obs, actions = rows(21)  # no multiple of two
    found = climbed(Ahead(Model(cliff), 2, lam), obs, actions, ask, act, GAMMA, ALPHA)
    weights = [1.0 - lam, lam * (1.0 - lam), lam**2]
    wanted = [
        sum(
            w * by_loop(obs[i : i + 1], actions[i : i + 1], i // 10, h, cliff)
            for h, w in enumerate(weights)
        )
        for i in range(20)
    ]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    if cliff is not None:
        at_once = (obs + 0.1 * actions)[:10, 0] > cliff
        assert 1 <= int(at_once.sum()) <= 8


@pytest.mark.parametrize(
    ("lam", "cliff", "asked"), [(0.7, None, 5 * 200), (1.0, None, 200), (1.0, -9.0, 5 * 200)]
)
def test_the_critics_are_asked_once(lam: float, cliff: float | None, asked: int) -> None:
    """At each horizon that counts."""
    obs, actions = rows(200)
    heard = []

    def counting(obs: Tensor, actions: Tensor) -> Tensor:
        heard.append(len(obs))
        return ask(obs, actions)

    climbed(Ahead(Model(cliff), 4, lam), obs, actions, counting, act, GAMMA, ALPHA)
    assert heard == [asked]


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
