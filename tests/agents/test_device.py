"""Plans imagined on another device: what moves there, what stays, and that nothing is mixed up.

Without a GPU, PyTorch's "meta" device stands in for one: it computes no numbers, but raises where tensors
of two devices meet.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.common.device import chosen_device
from agents.mpc import MPC, MPCSettings
from agents.planners import ICEM
from agents.planning_agent.plans import Plans
from agents.planning_agent.settings import ValueSettings
from agents.planning_agent.terminal_value import fit_value
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.imagination.particles import imagined_returns
from mbrl_bilevel.imagination.settings import Imagination, Propagation
from mbrl_bilevel.models.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.training.methods import get_method
from mbrl_bilevel.training.settings import Schedule


@pytest.fixture(scope="module")
def rows() -> Transitions:
    """Ten episodes of 30 steps; some of them end."""
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(300, 3)), rng.uniform(-1, 1, size=(300, 1))
    next_obs = obs + 0.1 * action + 0.01 * rng.normal(size=(300, 3))
    terminated = np.zeros(300, dtype=bool)
    terminated[29::60] = True
    return Transitions(
        obs.astype(np.float32),
        action.astype(np.float32),
        obs[:, 0].astype(np.float32),
        next_obs.astype(np.float32),
        terminated,
        np.zeros(300, dtype=bool),
        np.repeat(np.arange(10), 30),
        np.tile(np.arange(30), 10),
    )


@pytest.fixture(scope="module")
def model(rows: Transitions) -> DynamicsModel:
    generator = torch.Generator().manual_seed(0)
    made, _ = fit_dynamics(
        rows,
        get_method("nll"),
        generator=generator,
        members=2,
        hidden=(8,),
        schedule=Schedule(steps=20),
    )
    return made


def agent_with(model: DynamicsModel, rows: Transitions, device: str = "cpu") -> MPC:
    class Plain(gym.Env[Any, Any]):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    settings = MPCSettings(
        planner=ICEM(horizon=4, population=12, iterations=2),
        members=2,
        imagination=Imagination(particles=4),
    )
    agent = MPC(Plain(), settings, device=device)
    agent.model = model
    agent.value = fit_value(
        rows, ValueSettings(members=2, width=8, steps=10), torch.Generator().manual_seed(0)
    )
    return agent


def test_automatic_is_cuda_where_there_is_one() -> None:
    expected = "cuda" if torch.cuda.is_available() else "cpu"
    assert chosen_device("auto").type == expected
    assert chosen_device(torch.device("cpu")) == torch.device("cpu")


@pytest.mark.parametrize("device", ["gpu", "meta", "cuda:977", "", 3.5])
def test_a_device_that_is_not_there(device: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^device "):
        chosen_device(device)


@pytest.mark.parametrize("propagation", ["tsinf", "ts1"])
@pytest.mark.parametrize("known", [False, True])
def test_nothing_of_two_devices_meets(
    model: DynamicsModel, propagation: Propagation, known: bool
) -> None:
    assert model.termination is not None  # it is learned, and has to move as well
    moved = model.frozen("meta")
    # How many targets vary, and whether a probability is one, is not known without numbers.
    units = tuple(part.to("meta") for part in model.regression.active_units)
    moved.regression.__dict__["active_units"] = units
    moved.__dict__["termination"] = _unjudged(moved.termination)
    if known:  # a rule of the user's that makes a tensor of its own, on the CPU
        moved = replace(
            moved, reward=lambda obs, action, next_obs: torch.zeros(next_obs.shape[:-1])
        )
        units = tuple(part.to("meta") for part in model.regression.active_units)
    moved.regression.__dict__["active_units"] = units
    scores = imagined_returns(
        moved,
        torch.zeros(2, 3),
        torch.zeros(2, 6, 4, 1, device="meta"),
        Imagination(particles=4, propagation=propagation),
        torch.Generator().manual_seed(0),
    )
    assert moved.device.type == "meta"
    assert scores.shape == (2, 6)


def test_the_stand_in_would_see_it(model: DynamicsModel) -> None:
    with pytest.raises(RuntimeError, match="device"):
        model.to("meta").inputs.normalise(torch.zeros(5, 4))


def test_a_value_moves(model: DynamicsModel, rows: Transitions) -> None:
    value = agent_with(model, rows).value
    assert value is not None
    assert value.to("cpu") is value
    assert value.to("meta")(torch.zeros(2, 5, 3, device="meta")).device.type == "meta"
    assert value.low.device.type == "cpu"


def test_model_and_value_are_copied_once_and_stay_where_they_are(
    model: DynamicsModel, rows: Transitions
) -> None:
    agent = agent_with(model, rows)
    agent.plans = Plans(agent.plans.actions, agent.held, torch.device("meta"))
    there, value = agent.plans.on_device(model, agent.value)
    assert there.device.type == "meta"
    assert value is not None
    assert value.low.device.type == "meta"
    assert agent.plans.on_device(model, agent.value)[0] is there
    assert model.device.type == "cpu"
    assert next(model.policy.parameters()).device.type == "cpu"
    agent.value = None
    assert agent.plans.on_device(model, agent.value)[1] is None
    agent.model = other = model.elites([0.0, 1.0], 1)
    found = agent.plans.on_device(other, agent.value)[0]
    assert found.members == 1


def test_plans_are_made_in_the_model_frozen_once_for_each_precision(
    model: DynamicsModel, rows: Transitions
) -> None:
    agent = agent_with(model, rows)
    there, value = agent.plans.on_device(model, agent.value)
    assert isinstance(there, DynamicsModel)
    assert there.frozen() is there
    assert agent.plans.on_device(model, agent.value)[0] is there
    assert value is agent.value
    rough = agent.plans.on_device(model, agent.value, "bfloat16")[0]
    assert rough.frozen(None, "bfloat16") is rough
    assert rough is not there


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_plans_are_the_same_on_both(model: DynamicsModel, rows: Transitions) -> None:
    obs = np.array([0.3, -0.2, 0.1], dtype=np.float32)
    actions = [
        agent_with(model, rows, device).predict(obs, deterministic=True)[0]
        for device in ("cpu", "cuda")
    ]
    np.testing.assert_allclose(actions[0], actions[1], atol=1e-3)


def _unjudged(rule: Any) -> Any:
    """The learned termination without asking for numbers."""
    return lambda obs, action, next_obs: rule(obs, action, next_obs) > 0.5
