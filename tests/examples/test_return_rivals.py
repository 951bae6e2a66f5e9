"""examples/return_rivals.py: its value function against the closed form, and fits by its methods."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.records import Step, Transitions
from mbrl_bilevel.data.splits import Chain, FitData, cross_fit
from mbrl_bilevel.models.dynamics import fit_dynamics
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule

sys.path.append(str(Path(__file__).resolve().parents[2]))

from examples import return_rivals

RHO = 0.9


#: What the example registers.
NAMES = ("oracle", "vagram", "k-step-return", "nll-told", "beta-nll-told", "mse-told")
RIVALS = {name: METHODS.pop(name) for name in NAMES}


def walk(count: int = 4000) -> tuple[Tensor, Tensor]:
    """Two AR(1) states, standardised: one is paid, one is not. [N, 2] and the next ones."""
    random = np.random.default_rng(0)
    states = np.zeros((count + 1, 2))
    for t in range(count):
        states[t + 1] = RHO * states[t] + np.sqrt(1.0 - RHO**2) * random.standard_normal(2)
    return torch.from_numpy(states[:-1]).float(), torch.from_numpy(states[1:]).float()


def test_the_value_has_the_slope_of_the_closed_form() -> None:
    here, after = walk()
    change = after - here
    folds = cross_fit(np.arange(len(here)) // 50, 5, np.random.default_rng(0))

    def outcome(x: Tensor, y: Tensor) -> Step:
        return Step(x, x[..., 0], torch.zeros_like(x[..., 0]))

    successor = torch.arange(1, len(here) + 1)
    successor[-1] = -1
    chain = Chain(successor, torch.eye(2), torch.zeros(2), 1, outcome=outcome)
    data = FitData(here, change, folds, chain)
    slope = return_rivals.Value.of(data, chain).slope(here)
    # V(s) = s₁ / (1 − γρ), its reward having a spread of 1.
    assert slope[:, 0].mean().item() == pytest.approx(1.0 / (1.0 - 0.99 * RHO), rel=0.15)
    assert slope[:, 1].mean().abs().item() < 0.15 * slope[:, 0].mean().item()


@pytest.mark.parametrize("name", ["vagram", "k-step-return", "mse-told"])
def test_it_trains_a_model_of_what_is_paid(name: str) -> None:
    random = np.random.default_rng(0)
    action, states = random.uniform(-1.0, 1.0, (600, 1)), np.zeros((601, 3))
    for t in range(600):
        noise = 0.1 * random.standard_normal(3) * [0.0, 1.0, 1.0]
        states[t + 1] = 0.8 * states[t] + [0.5 * action[t, 0], 0.0, 0.0] + noise
    obs, after = states[:-1], states[1:]
    ends = np.arange(600) % 30 == 29
    rows = Transitions.from_arrays(obs, action, after, after[:, 0], truncated=ends)
    model, _ = fit_dynamics(
        rows,
        RIVALS[name],
        generator=torch.Generator().manual_seed(0),
        members=2,
        hidden=(16,),
        schedule=Schedule(steps=250, batch_size=64, learning_rate=3e-3),
    )
    x = torch.from_numpy(np.concatenate([obs, action], 1)).float()
    off = (model.regression.dist(x).mean.mean(0)[:, 0] - torch.from_numpy(after - obs)[:, 0]).std()
    assert off < 0.3 * (after - obs)[:, 0].std()
