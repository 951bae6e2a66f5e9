"""How an agent is: numbers against closed forms, the share of imagined rows, what is warned of and how often."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from agents import MBPO, MPC
from agents.planning_agent.agent import PlanningAgent
from agents.planning_agent.health import (
    Clock,
    imagined_share,
    look,
    of_the_critics,
    of_the_model,
    pace,
)
from agents.planning_agent.settings import PlanningSettings
from agents.planning_agent.terminal_value import returns_to_go
from envs.tasks.make import make_env
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.training.settings import Schedule

Array = npt.NDArray[Any]

SETTINGS = PlanningSettings(
    method="mse",
    members=2,
    hidden=(16,),
    schedule=Schedule(steps=150, batch_size=64),
    learning_starts=100,
    refit_every=80,
    imagination=Imagination(2, sample=False),
    updates_per_step=1,
)


@pytest.fixture(scope="module")
def agent() -> PlanningAgent:
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}, "gamma": 0.9}
    made = PlanningAgent(make_env("Pendulum-v1"), SETTINGS, algorithm_kwargs=kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return made.learn(230)


@pytest.fixture
def model(agent: PlanningAgent) -> DynamicsModel:
    assert isinstance(agent.model, DynamicsModel)
    return agent.model


@pytest.fixture
def imagined(agent: PlanningAgent, model: DynamicsModel) -> Transitions:
    """The last 60 steps, as the members' mean has them."""
    since = agent.experience.newest(60)[0]
    said = model.predict(torch.from_numpy(since.obs), torch.from_numpy(since.action)).mean.numpy()
    return replace(since, next_obs=since.obs + said[:, :3], reward=said[:, 3])


def test_a_model_that_is_right_is_not_off(model: DynamicsModel, imagined: Transitions) -> None:
    found = of_the_model(model, imagined)
    assert found["health/model_rmse"] < 1e-5
    assert found["health/model_coverage"] == 1.0


def test_the_error_is_in_spreads_of_the_targets(
    model: DynamicsModel, imagined: Transitions
) -> None:
    scale = model.targets.scale.numpy()
    off = replace(
        imagined,
        next_obs=imagined.next_obs + 0.5 * scale[:3],
        reward=imagined.reward + 0.5 * scale[3],
    )
    assert of_the_model(model, off)["health/model_rmse"] == pytest.approx(0.5, rel=1e-4)
    far = replace(imagined, next_obs=imagined.next_obs + 50 * scale[:3])
    # Of four targets the reward alone is where it was said to be.
    assert of_the_model(model, far)["health/model_coverage"] == pytest.approx(0.25)


def test_returns_ahead_are_sums_over_ten_steps(model: DynamicsModel, agent: PlanningAgent) -> None:
    since = agent.experience.newest(30)[0]
    found = of_the_model(model, since)
    first = since.reward[: len(since) // 10 * 10].reshape(-1, 10).sum(1)
    assert found["health/real_return"] == pytest.approx(first.mean(), rel=1e-5)


def test_where_model_and_data_agree_the_targets_do(
    agent: PlanningAgent, model: DynamicsModel, imagined: Transitions
) -> None:
    """With one and the same next state for all members the two targets are one."""
    alone = model.elites([0.0, 1.0], 1)
    said = alone.predict(torch.from_numpy(imagined.obs), torch.from_numpy(imagined.action)).mean
    own = replace(imagined, next_obs=imagined.obs + said[:, :3].numpy(), reward=said[:, 3].numpy())
    planned = np.zeros(len(own), dtype=np.bool_)
    assert of_the_critics(agent, alone, own, planned)["health/target_error"] < 1e-3
    assert "health/plan_gain" not in of_the_critics(agent, alone, own, planned)
    # A reward that is off by c moves the model's target by c, and the error of the data's own with it.
    off = replace(own, reward=own.reward + 3.0)
    found = of_the_critics(agent, alone, off, ~planned)
    obs, next_obs = torch.from_numpy(off.obs), torch.from_numpy(off.next_obs)
    stored = torch.from_numpy(off.action) / 2.0
    q = agent.held.action_value(obs, stored)
    target = torch.from_numpy(off.reward) + 0.9 * agent.held.value(next_obs)
    temporal = float((q - target).square().mean().sqrt())
    assert found["health/target_error"] == pytest.approx(3.0 / temporal, rel=1e-3)
    gain = float((q - agent.held.value(obs)).mean())
    assert found["health/plan_gain"] == pytest.approx(gain, rel=1e-4, abs=1e-5)


def test_returns_to_go() -> None:
    rows = 4
    since = Transitions(
        np.zeros((rows, 1), np.float32),
        np.zeros((rows, 1), np.float32),
        np.array([1.0, 2.0, 4.0, 8.0], np.float32),
        np.zeros((rows, 1), np.float32),
        np.array([False, True, False, False]),
        np.zeros(rows, np.bool_),
        np.array([0, 0, 1, 1]),
        np.array([0, 1, 0, 1]),
    )
    found = returns_to_go(since, np.full(rows, 100.0), 0.5)
    # The first episode ended; behind the second, 100 goes on.
    np.testing.assert_allclose(found, [1 + 0.5 * 2, 2, 4 + 0.5 * (8 + 50), 8 + 50])


def test_the_share_is_an_inverse_variance() -> None:
    assert imagined_share(0.0) == 1.0
    assert imagined_share(1.0) == 0.5
    assert imagined_share(3.0) == pytest.approx(0.1)
    for unknown in (np.nan, np.inf, -np.inf):
        assert imagined_share(unknown) == 0.0


def test_the_clock_begins_anew(agent: PlanningAgent) -> None:
    clock = Clock()
    clock.lap("acting")
    time.sleep(0.01)
    clock.lap("updating")
    assert clock.seconds["updating"] >= 0.01
    assert pace(agent, clock)["time/steps_per_second"] > 0.0
    clock.start()
    assert set(clock.seconds.values()) == {0.0}


def test_a_doubtful_model_is_warned_of_once(agent: PlanningAgent, model: DynamicsModel) -> None:
    progress, clock = agent.progress, Clock()
    try:
        agent.note(fitted_on=len(agent.experience) - 40)
        agent.progress = agent.progress.with_health({})
        scale = replace(model.targets, scale=model.targets.scale * 1e-3)
        agent.model = replace(
            model, regression=replace(model.regression, targets=scale)
        )  # sure of next to nothing
        with pytest.warns(
            UserWarning, match="standard deviations on new steps.*do not trust plans"
        ):
            look(agent, clock)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            look(agent, clock)
    finally:
        agent.model, agent.progress = model, progress


@pytest.mark.parametrize("kind", [PlanningAgent, MPC, MBPO])
def test_every_agent_says_how_its_model_is_and_that_it_was_fitted_too_shortly(kind: Any) -> None:
    changes: dict[str, Any] = {"method": "mse", "members": 2, "hidden": (16,), "fresh_every": 1}
    changes |= {"imagination": Imagination(2), "learning_starts": 100, "refit_every": 20}
    short = Schedule(steps=80, batch_size=64, evaluate_every=10)
    agent = kind(make_env("Pendulum-v1"), schedule=short, updates_per_step=1, **changes)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        agent.learn(122)
    told = [str(warning.message) for warning in said]
    assert sum("still becoming likelier" in text for text in told) == 2, told
    health = dict(agent.progress.health)
    since = agent.experience.transitions()[100:120]  # new to the first model, not to the second
    truth = agent.model.target_values(since)
    found = agent.model.predict(torch.from_numpy(since.obs), torch.from_numpy(since.action))
    scale = agent.model.targets.scale
    seen = float(((found.mean - truth) / scale).square().mean().sqrt())
    assert 0.5 * seen < health["health/model_rmse"] < 3.0 * seen
    assert 0.0 < health["health/model_coverage"] <= 1.0
    assert agent.last_fit.underfitted
