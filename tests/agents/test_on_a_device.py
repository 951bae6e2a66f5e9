"""An agent on another device than the CPU: the same numbers, in no loop a copy between the two, files that are of neither."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import DQN, SAC

from agents.planning_agent import base_agent
from agents.planning_agent.agent import PlanningAgent
from agents.planning_agent.settings import PlanningSettings, ValueSettings
from agents.side_by_side import learn_side_by_side
from envs.tasks.make import make_env
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.models import regression
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.training.settings import Schedule
from tests.another_device import COPIES, another_device, needs_it

pytestmark = needs_it

KWARGS: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}}


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    # The fit's own generator there would be another one.
    monkeypatch.setattr(regression, "_draws_on", lambda generator, device: generator)
    monkeypatch.setattr(base_agent, "chosen_device", torch.device)
    with another_device() as device:
        yield device


def learned(device: torch.device | str, kind: Any, **more: Any) -> PlanningAgent:
    return made(device, kind, **more).learn(90)


def made(device: torch.device | str, kind: Any = None, seed: int = 0, **more: Any) -> PlanningAgent:
    fast = kind is None
    settings = PlanningSettings(
        **{
            "method": "nll",
            "members": 2,
            "hidden": (8,),
            "schedule": Schedule(steps=15, batch_size=32),
            "learning_starts": 60,
            "refit_every": 25,
            "imagination": Imagination(2, screen=0.5),
            "look_ahead": 2 if fast else 0,
            "look_ahead_lambda": 0.7 if fast else 1.0,
            "updates_per_step": 1,
            "value": "critic",
        }
        | more
    )
    env = make_env("CartPole-v1" if kind is DQN else "Pendulum-v1")
    own = KWARGS | ({"standardise": True} if fast else {})
    return PlanningAgent(
        env, settings, algorithm=kind, algorithm_kwargs=own, seed=seed, device=device
    )


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (None, {"real_share": 0.5, "rollouts_per_step": 2}),
        (
            SAC,
            {"method": "mse", "n_steps": 3, "rollout_cut": 0.9, "real_share": "auto"},
        ),
        (DQN, {"value": ValueSettings(members=2, width=8, steps=10, rounds=1)}),
    ],
)
def test_it_learns_there_what_it_learns_here(
    there: torch.device, tmp_path: Path, kind: Any, more: dict[str, Any]
) -> None:
    here, away = learned("cpu", kind, **more), learned(there, kind, **more)
    assert isinstance(away.model, DynamicsModel)
    parts = [away.model.device, away.experience.real.columns["obs"].device, away.algorithm.device]
    assert {device.type for device in parts} == {"there"}
    require_alike(away, here)
    obs = torch.from_numpy(here.experience.newest(20)[0].obs)
    away.save(tmp_path / "agent.safetensors")
    algorithm = None if kind is None else kind
    for device in ("cpu", there):
        loaded = PlanningAgent.load(
            tmp_path / "agent.safetensors", here.env, algorithm=algorithm, device=device
        )
        assert torch.equal(loaded.held.value(obs), away.held.value(obs))
        loaded.learn(5)


def require_alike(away: PlanningAgent, here: PlanningAgent) -> None:
    """They have seen the same, act alike and say the same of it."""
    obs = torch.from_numpy(here.experience.newest(20)[0].obs)
    torch.testing.assert_close(
        torch.from_numpy(away.experience.transitions().obs),
        torch.from_numpy(here.experience.transitions().obs),
        rtol=1e-4,
        atol=1e-4,
    )
    for ask in ("act", "value"):
        torch.testing.assert_close(
            getattr(away.held, ask)(obs), getattr(here.held, ask)(obs), rtol=1e-3, atol=1e-4
        )


def test_agents_learn_there_side_by_side_what_they_learn_here_alone(there: torch.device) -> None:
    beside = [made(there, seed=seed) for seed in (0, 1)]
    assert learn_side_by_side(beside, 72) == [None, None]
    for seed, away in enumerate(beside):
        require_alike(away, made("cpu", seed=seed).learn(72))


def test_no_update_waits_for_rows_from_the_host(there: torch.device) -> None:
    """Which rows are drawn is said by the host; the rows, and all that is made of them, stay where they are."""
    agent = learned(there, None)
    agent.algorithm.train(1, 32)
    COPIES.clear()
    with agent._random:
        agent.algorithm.train(8, 32)
    assert COPIES[torch.float32] == 0
    assert COPIES[torch.int64] == 8
    with pytest.raises(InvalidInputError, match='make the agent with device="cpu"'):
        agent.next_task(make_env("Pendulum-v1"))
