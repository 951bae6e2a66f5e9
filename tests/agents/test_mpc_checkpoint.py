"""The agent's file part by part: settings, random states and experience that do not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from agents.mpc import MPC, MPCSettings
from agents.mpc_checkpoint import Snapshot, Spaces, read_snapshot, write_snapshot
from agents.planning_agent.terminal_value import Value, ValueSettings
from mbrl_bilevel.checkpoint import load_checkpoint, save_checkpoint
from mbrl_bilevel.errors import CheckpointError
from mbrl_bilevel.normaliser import Normaliser
from mbrl_bilevel.policies import GaussianPolicy
from mbrl_bilevel.types import Transitions

SPACES = Spaces(2, [-1.0], [1.0])


def terminal_value() -> Value:
    policy = GaussianPolicy(
        2, 1, generator=torch.Generator().manual_seed(6), members=2, hidden=(4, 4)
    )
    inputs = Normaliser(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.25]), torch.zeros(2) > 0)
    low, high = torch.tensor([-2.0, -1.5]), torch.tensor([1.0, 3.0])
    return Value(policy, inputs, low, high, 7.5, (-20.0, 30.0), 0.5)


def snapshot(value: Value | None = None, first_planned: int | None = None) -> Snapshot:
    g = np.random.default_rng(5)
    never = np.zeros(7, dtype=np.bool_)
    return Snapshot(
        settings=MPCSettings(
            hidden=(3, 2), members=1, exploration=0.25, value=ValueSettings(discount=0.9)
        ),
        spaces=SPACES,
        rules=(),
        seed=4,
        num_timesteps=7,
        episodes=3,
        fitted_on=6,
        first_planned=first_planned,
        generator=torch.Generator().manual_seed(9).get_state(),
        noise=dict(np.random.default_rng(8).bit_generator.state),
        experience=Transitions(
            g.normal(size=(7, 2)).astype(np.float32),
            g.normal(size=(7, 1)).astype(np.float32),
            g.normal(size=7).astype(np.float32),
            g.normal(size=(7, 2)).astype(np.float32),
            never,
            ~never,
            np.arange(7),
            np.zeros(7, dtype=np.int64),
        ),
        model=None,
        value=value,
    )


@pytest.mark.parametrize("value", [None, terminal_value()])
@pytest.mark.parametrize("first_planned", [None, 0, 2])
def test_comes_back(value: Value | None, first_planned: int | None, tmp_path: Path) -> None:
    saved = snapshot(value, first_planned)
    write_snapshot(tmp_path / "a", saved)
    found = read_snapshot(tmp_path / "a", SPACES, None, None)
    for name, part in vars(saved).items():
        if name == "experience":
            for column, expected in vars(part).items():
                np.testing.assert_array_equal(getattr(found.experience, column), expected)
        elif name == "generator":
            assert torch.equal(found.generator, part)
        elif name == "value" and part is not None:
            assert_same_value(found.value, part)
        else:
            assert getattr(found, name) == part, name


@pytest.mark.parametrize("settings", [None, ValueSettings(0.5, 2.0, 1, 7, 3, 16)])
def test_the_settings_of_the_value_come_back(
    settings: ValueSettings | None, tmp_path: Path
) -> None:
    saved = snapshot()
    wanted = replace(saved.settings, value=settings)
    write_snapshot(tmp_path / "a", replace(saved, settings=wanted))
    assert read_snapshot(tmp_path / "a", SPACES, None, None).settings == wanted


def assert_same_value(found: Value | None, wanted: Value) -> None:
    assert found is not None
    for name in ("scale", "bounds", "pessimism"):
        assert getattr(found, name) == getattr(wanted, name)
    obs = 4.0 * torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found(obs), wanted(obs))
    assert torch.equal(found.members(obs), wanted.members(obs))


def edited(section: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda config, tensors: config.update({section: value})


def of_value(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda config, tensors: config["value"].update({name: value})


def setting(name: str, value: Any) -> Callable[[dict[str, Any], dict[str, Any]], object]:
    return lambda config, tensors: config["settings"].update({name: value})


@pytest.mark.parametrize(
    "damage",
    [
        setting("planner_kind", "MPPI"),
        setting("planner", {"horizon": 0}),
        setting("planner", {"depth": 3}),
        setting("imagination", {"particles": 0}),
        setting("imagination", 5),
        setting("hidden", 5),
        setting("method", "unheard of"),
        setting("learning_starts", "soon"),
        setting("surplus", 1),
        setting("members", 3),
        edited("settings", []),
        edited("spaces", 3),
        edited("seed", "four"),
        edited("fitted_on", None),
        edited("rules", "termination"),
        edited("noise", {"bit_generator": "MT19937"}),
        edited("noise", {}),
        edited("has_experience", 1),
        edited("model", 3),
        edited("model", {}),
        edited("first_planned", "two"),
        edited("value", 3),
        edited("value", {}),
        setting("value", 5),
        setting("value", {"discount": 1.0}),
        setting("value", {"depth": 3}),
        lambda config, tensors: config["settings"].pop("value"),
        of_value("members", 3),
        of_value("hidden", [4]),
        of_value("hidden", 4),
        of_value("bounds", [1.0]),
        of_value("scale", "large"),
        of_value("pessimism", None),
        lambda config, tensors: tensors.pop("value.low"),
        lambda config, tensors: tensors.pop("value.inputs.shift"),
        lambda config, tensors: tensors.update({"value.high": torch.zeros(3)}),
        lambda config, tensors: tensors.update({"value.low": torch.zeros(2, dtype=torch.int64)}),
        lambda config, tensors: config.pop("episodes"),
        lambda config, tensors: tensors.pop("experience.reward"),
        lambda config, tensors: tensors.pop("generator"),
        lambda config, tensors: tensors.update({"generator": torch.zeros(3, dtype=torch.uint8)}),
        lambda config, tensors: tensors.update({"generator": torch.zeros(5056)}),
        lambda config, tensors: tensors.update({"experience.t": torch.zeros(6, dtype=torch.int64)}),
        lambda config, tensors: tensors.update({"experience.reward": torch.full((7,), torch.nan)}),
        lambda config, tensors: tensors.update({"experience.obs": torch.zeros(7, 3)}),
        lambda config, tensors: tensors.update({"experience.action": torch.zeros(7, 2)}),
        lambda config, tensors: tensors.update({"experience.surplus": torch.zeros(7)}),
    ],
)
def test_damage_is_told(
    damage: Callable[[dict[str, Any], dict[str, Any]], object], tmp_path: Path
) -> None:
    path = tmp_path / "agent"
    write_snapshot(path, snapshot(terminal_value(), 2))
    sound = load_checkpoint(path, "mpc agent")
    config, tensors = dict(sound.config), dict(sound.tensors)
    damage(config, tensors)
    save_checkpoint(path, "mpc agent", tensors, config)
    with pytest.raises(CheckpointError, match="agent: ") as error:
        MPC.load(path, _Still())
    assert "\n" not in str(error.value)


class _Still(gym.Env[Any, Any]):
    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))
