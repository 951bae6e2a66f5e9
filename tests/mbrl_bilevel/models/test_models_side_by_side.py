"""Models side by side say what each says of its own rows: mean, draw, reward, ending and their derivatives."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Step, Transitions
from mbrl_bilevel.models.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.models.side_by_side import models_side_by_side
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule

MEMBERS, ROWS = 2, 7


def walks(seed: int, size: float = 1.0, still: bool = True) -> Transitions:
    """x' = x + 0.4 u in units of ``size``, ending above ``size``, which costs what the seed says; another observation
    never changes, if it is ``still``."""
    g = np.random.default_rng(seed)
    rows: list[tuple[float, ...]] = []
    for episode in range(40):
        x, y = g.uniform(-1.0, 0.5), 3.0 + seed
        for t in range(15):
            u = g.uniform(-1.0, 1.0)
            after, then = x + 0.4 * u + 0.05, y if still else y + 0.1 * u
            ended = after > 1.0
            pays = 0.3 * after - (2.0 + seed) * ended
            rows.append((size * x, y, u, pays, size * after, then, ended, episode, t))
            x, y = after, then
            if ended:
                break
    x_, y_, u_, r_, n_, m_, d_, e_, t_ = np.array(rows).T
    obs, next_obs = np.stack([x_, y_], 1), np.stack([n_, m_], 1)
    parts = (np.asarray(v, np.float32) for v in (obs, u_[:, None], r_, next_obs))
    never = np.zeros(len(x_), np.bool_)
    return Transitions(*parts, d_ > 0, never, e_.astype(np.int64), t_.astype(np.int64))


def fitted(seed: int, size: float = 1.0, still: bool = True, **more: Any) -> DynamicsModel:
    given: dict[str, Any] = {"method": METHODS["nll"], "hidden": (9,), **more}
    model, _ = fit_dynamics(
        walks(seed, size, still),
        generator=torch.Generator().manual_seed(seed),
        members=MEMBERS,
        schedule=Schedule(steps=30, batch_size=32, learning_rate=1e-2),
        **given,
    )
    return model


def beyond(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return next_obs[..., 0] > 1.0


class Pays:
    """A rule with a number of its own, as an environment's may have."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return self.factor * next_obs[..., 0]


@pytest.fixture(scope="module")
def learned() -> list[DynamicsModel]:
    """Of data of different sizes, whose endings are learned and cost differently."""
    return [fitted(seed, size) for seed, size in ((0, 1.0), (1, 5.0), (2, 0.2))]


def asked(models: list[DynamicsModel]) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(9)
    form = (len(models), MEMBERS, ROWS)
    noise = torch.randn((*form, models[0].noise_width), generator=g)
    return torch.randn((*form, 2), generator=g), torch.randn((*form, 1), generator=g), noise


def require_alike(models: list[DynamicsModel], noisy: bool) -> Step:
    """Their steps, and how these depend on the actions, are those of the joined model; the steps."""
    joined = models_side_by_side(models)
    assert joined.members == len(models) * MEMBERS
    obs, action, noise = asked(models)
    own = action.clone().requires_grad_()
    each = [
        model.step(obs[k], own[k], noise[k] if noisy else None) for k, model in enumerate(models)
    ]
    flat = action.flatten(0, 1).requires_grad_()
    found = joined.step(obs.flatten(0, 1), flat, noise.flatten(0, 1) if noisy else None)
    for name in ("next_obs", "reward", "terminated"):
        parts = torch.cat([getattr(step, name) for step in each])
        torch.testing.assert_close(getattr(found, name), parts, rtol=1e-5, atol=1e-6)
    total = found.reward.square().sum() + found.next_obs.square().sum()
    (slope,) = torch.autograd.grad(total, flat)
    alone = sum(step.reward.square().sum() + step.next_obs.square().sum() for step in each)
    (truth,) = torch.autograd.grad(alone, own)
    torch.testing.assert_close(slope, truth.flatten(0, 1), rtol=1e-4, atol=1e-5)
    assert (slope != 0.0).all()
    return found


@pytest.mark.parametrize("noisy", [False, True])
def test_what_was_learned_is_each_models_own(learned: list[DynamicsModel], noisy: bool) -> None:
    assert len({model.terminal_jump for model in learned}) == len(learned)
    assert not learned[0].active.all()  # the still observation is each one's constant
    found = require_alike(learned, noisy)
    still = found.next_obs[..., 1] - asked(learned)[0].flatten(0, 1)[..., 1]
    torch.testing.assert_close(still, torch.zeros_like(still), rtol=0.0, atol=1e-6)
    assert 0.0 < found.terminated.mean() < 1.0


@pytest.mark.parametrize("method", ["mse", "bilevel-mixture"])
def test_rules_are_each_models_own(method: str) -> None:
    found = require_alike(
        [
            fitted(seed, method=METHODS[method], termination=beyond, reward=Pays(1.0 + seed))
            for seed in (0, 1)
        ],
        noisy=False,
    )
    assert set(found.terminated.unique().tolist()) == {0.0, 1.0}


def test_direct_targets_go_side_by_side() -> None:
    require_alike([fitted(seed, direct=True) for seed in (0, 1)], noisy=True)


def test_models_of_other_forms_are_refused(learned: list[DynamicsModel]) -> None:
    first = learned[0]
    for other, says in (
        (fitted(3, still=False), "not the same targets vary|one size"),
        (fitted(3, hidden=(8,)), "one size"),
        (replace(learned[1], direct=True), "direct"),
        (replace(learned[1], termination=None), "know a rule that others do not"),
    ):
        with pytest.raises(InvalidInputError, match=says):
            models_side_by_side([first, other])
