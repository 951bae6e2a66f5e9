"""bilevel-look-ahead where half of what is observed is not the task's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.records import FitResult, Transitions
from mbrl_bilevel.models.dynamics import DynamicsModel, fit_dynamics, weights_by_name
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule

OWN, OTHER, STEPS = 2, 6, 1500
NAMES = (*(f"own {i}" for i in range(OWN)), *(f"other {i}" for i in range(OTHER)), "reward")


def experience() -> Transitions:
    """A slow state that the action drives and the reward pays for, beside a chaotic one that pays nothing."""
    random = np.random.default_rng(0)
    mixing = 2.5 * random.standard_normal((OTHER, OTHER)) / np.sqrt(OTHER)
    rows = [[], [], [], []]  # type: list[list[np.ndarray]]
    for _ in range(30):
        own, other = random.standard_normal(OWN), random.standard_normal(OTHER)
        for _ in range(50):
            action = random.uniform(-1.0, 1.0, 1)
            obs = np.concatenate([own, other])
            own = own + 0.4 * np.tanh([own[1] - own[0], action[0] * 2.0 - own[0]])
            other = np.sin(other @ mixing)
            rows[0].append(obs)
            rows[1].append(action)
            rows[2].append(np.concatenate([own, other]))
            rows[3].append(np.array([own[0] - 0.3 * own[1] ** 2]))
    obs, action, next_obs, reward = (np.stack(part) for part in rows)
    ends = np.arange(len(obs)) % 50 == 49
    return Transitions.from_arrays(obs, action, next_obs, reward[:, 0], truncated=ends)


def fitted(**more: object) -> tuple[DynamicsModel, FitResult]:
    found: tuple[DynamicsModel, FitResult] = fit_dynamics(
        experience(),
        METHODS["bilevel-look-ahead"],
        generator=torch.Generator().manual_seed(0),
        members=3,
        hidden=(16,),
        schedule=Schedule(steps=STEPS, batch_size=128, learning_rate=3e-3),
        **more,  # type: ignore[arg-type]
    )
    return found


def pays(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return next_obs[..., 0] - 0.3 * next_obs[..., 1].square()


@pytest.mark.parametrize("reward", [None, pays])
def test_the_weights_are_told_and_what_pays_nothing_counts_less(reward: object) -> None:
    model, result = fitted(reward=reward)
    weights = weights_by_name(result, NAMES)
    assert ("reward" in weights) is (reward is None)
    logs = {name: float(np.log(weight)) for name, weight in weights.items()}
    assert sum(logs.values()) == pytest.approx(0.0, abs=1e-4)
    own = np.mean([logs[f"own {i}"] for i in range(OWN)])
    other = np.mean([logs[f"other {i}"] for i in range(OTHER)])
    if reward is None:
        assert own - other > 0.25
    else:  # Returns are nearly exact, and what is left of their error says nothing of the weights.
        assert abs(own - other) < 0.5
    # What was trained before the weights came to rest is not kept.
    assert min(result.best_step) > 0.6 * STEPS
    assert "outer/weight/0" in result.history
    assert model.members == 3
