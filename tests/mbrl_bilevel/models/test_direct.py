"""Targets that are the next observation itself: the same steps as with its change, by another way."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from mbrl_bilevel.base.checkpoint import load_checkpoint, save_checkpoint
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.data.splits import Chain
from mbrl_bilevel.evaluation.dynamics import evaluate_one_step, evaluate_open_loop
from mbrl_bilevel.imagination.branches import branch_step
from mbrl_bilevel.imagination.settings import Branching
from mbrl_bilevel.models.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.models.dynamics_checkpoint import load_model, save_model
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule

A = np.array([[0.9, 0.2], [-0.1, 0.8]], dtype=np.float32)
NOISE = 0.1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear(seed: int = 0, episodes: int = 40, length: int = 25) -> Transitions:
    """s' = A s + (u, 0) + noise with the reward s_0 + noise, beside an observation that stays 4."""
    g = np.random.default_rng(seed)
    rows = np.zeros((episodes, length + 1, 3), dtype=np.float32)
    rows[:, 0, :2], rows[..., 2] = g.normal(size=(episodes, 2)), 4.0
    u = g.uniform(-1, 1, size=(episodes, length, 1)).astype(np.float32)
    for t in range(length):
        noise = NOISE * g.normal(size=(episodes, 2))
        rows[:, t + 1, :2] = rows[:, t, :2] @ A.T + noise
        rows[:, t + 1, 0] += u[:, t, 0]
    obs, after = rows[:, :-1].reshape(-1, 3), rows[:, 1:].reshape(-1, 3)
    never, number = np.zeros(len(obs), dtype=np.bool_), np.arange(len(obs))
    u = u.reshape(-1, 1)
    reward = (obs[:, 0] + NOISE * g.normal(size=len(obs))).astype(np.float32)
    return Transitions(obs, u, reward, after, never, never, number // length, number % length)


@cache
def fitted(direct: bool, method: str = "mse") -> DynamicsModel:
    model, _ = fit_dynamics(
        linear(),
        METHODS[method],
        generator=seeded(),
        members=2,
        hidden=(),
        schedule=Schedule(steps=400, learning_rate=2e-2, batch_size=256, evaluate_every=100),
        direct=direct,
    )
    return model


@pytest.mark.parametrize("method", ["mse", "nll", "k-step", "bilevel-k-step"])
def test_both_kinds_find_the_same_linear_system(method: str) -> None:
    obs = torch.randn(2, 50, 3, generator=seeded(1))
    obs[..., 2] = 4.0
    action = torch.rand(2, 50, 1, generator=seeded(2)) * 2.0 - 1.0
    truth = obs.clone()
    truth[..., :2] = obs[..., :2] @ torch.from_numpy(A).T
    truth[..., 0] += action[..., 0]
    for direct in (False, True):
        model = fitted(direct, method)
        assert model.direct is direct
        step = model.step(obs, action)
        # 800 training rows of noise .1: the map is known to a few hundredths, even at the ends.
        torch.testing.assert_close(step.next_obs, truth, rtol=0.0, atol=0.09)
        if METHODS[method].horizon == 1:
            torch.testing.assert_close(step.reward, obs[..., 0], rtol=0.0, atol=0.07)
        assert (step.next_obs[..., 2] == 4.0).all()
        drawn = model.step(obs, action, torch.ones(model.noise_width))
        spread = (drawn.next_obs - step.next_obs)[..., :2].mean()
        assert spread.item() == pytest.approx(NOISE, rel=0.15)


def test_what_is_evaluated_imagined_and_penalised_is_alike() -> None:
    test, found = linear(seed=5, episodes=8), []
    for model in (fitted(False), fitted(True)):
        one = evaluate_one_step(model, test)
        ahead = evaluate_open_loop(model, test, generator=seeded(), steps=(1, 5), windows=50)
        obs, action = torch.from_numpy(test.obs), torch.from_numpy(test.action)
        member = torch.zeros(len(test), dtype=torch.int64)
        branch = branch_step(model, obs, action, member, Branching(penalty=1.0), seeded(3))
        found.append((one.rmse, one.nll, *ahead.nrmse, branch.uncertainty.mean().item()))
        assert 0.8 < one.coverage_90 < 0.98
    np.testing.assert_allclose(found[1], found[0], rtol=0.05, atol=0.02)
    truth = fitted(True).target_values(test)
    np.testing.assert_array_equal(truth[:, :2], test.next_obs[:, :2])


def test_open_loop_segments_land_where_the_targets_say() -> None:
    """By hand, in units of their own: x = (s − 1)/2 and y = (s' − 3)/4."""
    s = torch.tensor([[2.0], [5.0], [1.0], [4.0]])
    x, y = (s[:3] - 1.0) / 2.0, (s[1:] - 3.0) / 4.0
    gain, drift = torch.tensor([[4.0 / 2.0]]), torch.tensor([(3.0 - 1.0) / 2.0])
    chain = Chain(torch.tensor([1, 2, -1]), gain, drift, 3, direct=True)
    segment = chain.segment(x, y, torch.zeros(1, 1, dtype=torch.int64))
    for t in (0, 1):
        torch.testing.assert_close(segment.moved(x[None, [0]], y[None, [t]], t), x[None, [t + 1]])
    assert torch.equal(segment.target_from(x[None, [2]] + 9.0, 1), y[None, [1]])


def test_it_is_saved_and_an_old_file_means_changes(tmp_path: Path) -> None:
    obs, action = torch.randn(2, 5, 3), torch.randn(2, 5, 1)
    for direct in (False, True):
        model = fitted(direct)
        save_model(tmp_path / "model", model)
        back = load_model(tmp_path / "model")
        assert back.direct is direct
        assert back.to("cpu").direct is back.elites((0.0, 1.0), 1).direct is direct
        assert torch.equal(back.step(obs, action).next_obs, model.step(obs, action).next_obs)
    stored = load_checkpoint(tmp_path / "model", "dynamics model")
    del stored.config["model"]["direct"]
    save_checkpoint(tmp_path / "old", "dynamics model", stored.tensors, stored.config)
    old = load_model(tmp_path / "old")
    assert old.direct is False
    changes = replace(fitted(True), direct=False)
    assert torch.equal(old.step(obs, action).next_obs, changes.step(obs, action).next_obs)
