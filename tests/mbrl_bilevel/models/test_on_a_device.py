"""Fits on another device than the CPU find the same model. All methods were run so once; these stand for their solvers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.data.growing_folds import GrowingFolds
from mbrl_bilevel.models import regression
from mbrl_bilevel.models.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule
from tests.another_device import another_device, needs_it

pytestmark = needs_it


def rows() -> Transitions:
    random = np.random.default_rng(0)
    obs, action = random.normal(size=(240, 2)), random.uniform(-1.0, 1.0, size=(240, 1))
    next_obs = obs + 0.1 * action + 0.02 * random.normal(size=(240, 2))
    ends = np.arange(1, 241) % 20 == 0
    return Transitions.from_arrays(
        obs, action, next_obs, obs[:, 0], terminated=next_obs[:, 0] > 2.0, truncated=ends
    )


@pytest.mark.parametrize("name", ["bilevel-mixture", "bilevel-look-ahead"])
def test_a_fit_finds_there_what_it_finds_here(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Its own generator there would be another one.
    monkeypatch.setattr(regression, "_draws_on", lambda generator, device: generator)
    data = rows()
    obs, action = torch.from_numpy(data.obs[:20]), torch.from_numpy(data.action[:20])

    random = np.random.default_rng(1)
    folds = GrowingFolds.of(data.episode, data.t, 2, random)

    def fitted(device: torch.device | str, start: DynamicsModel | None = None) -> DynamicsModel:
        return fit_dynamics(
            data,
            METHODS[name],
            generator=torch.Generator().manual_seed(0),
            members=2,
            hidden=(8,),
            schedule=Schedule(steps=10, batch_size=32),
            start=start,
            folds=folds,
            device=device,
        )[0]

    with another_device() as there:
        here, away = fitted("cpu"), fitted(there)
        assert away.device == there
        # A fit goes on from one that lies elsewhere.
        for one, other in ((here, away), (fitted("cpu", here), fitted(there, here))):
            found = other.dist(obs.to(there), action.to(there)).marginals()
            for part, peer in zip(found, one.dist(obs, action).marginals(), strict=True):
                torch.testing.assert_close(part.cpu(), peer, rtol=1e-4, atol=1e-5)
