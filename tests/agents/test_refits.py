"""An agent whose fits go on from one another: when, from what, and through a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch

from agents import MPC, MPCSettings
from agents.planners import RandomShooting
from agents.planning_agent import refits
from mbrl_bilevel.base.checkpoint import load_checkpoint, save_checkpoint
from mbrl_bilevel.base.errors import CheckpointError
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.training.settings import Schedule

Array = npt.NDArray[Any]

pytestmark = pytest.mark.filterwarnings("ignore:after .* steps the model is off")

TINY = MPCSettings(
    method="mse",
    members=2,
    hidden=(6,),
    schedule=Schedule(steps=10, batch_size=16, evaluate_every=5),
    learning_starts=60,
    refit_every=20,
    planner=RandomShooting(horizon=2, population=4),
    imagination=Imagination(2, sample=False),
    value=None,
    fresh_every=3,
)


class Walk(gym.Env[Array, Array]):
    """x' = x + 0.2 u, reward −x'², cut after 9 steps."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.x = 0, float(self.np_random.uniform(-1.0, 1.0))
        return np.array([self.x], np.float32), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.t, self.x = self.t + 1, self.x + 0.2 * float(action[0])
        return np.array([self.x], np.float32), -(self.x**2), False, self.t >= 9, {}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each fit of a model was asked for."""
    found: list[dict[str, Any]] = []
    real = refits.fit_dynamics

    def spy(experience: Any, method: Any, **given: Any) -> Any:
        found.append(given | {"experience": experience})
        return real(experience, method, **given)

    monkeypatch.setattr(refits, "fit_dynamics", spy)
    return found


def places(given: dict[str, Any], part: str, member: int) -> set[tuple[int, int]]:
    rows = given["experience"]
    kept = getattr(given["folds"].folds(rows.episode, rows.t), part)[member]
    return set(zip(rows.episode[kept].tolist(), rows.t[kept].tolist(), strict=True))


def test_each_third_fit_is_from_scratch_and_no_training_row_is_held_out_until_then(
    asked: list[dict[str, Any]],
) -> None:
    agent = MPC(Walk(), TINY).learn(141)
    starts = [given["start"] for given in asked]
    assert [start is None for start in starts] == [True, False, False, True, False]
    for one, two in ((0, 1), (1, 2), (3, 4)):
        for member in range(2):
            for part in ("train", "stop", "outer"):
                assert places(asked[one], part, member) < places(asked[two], part, member) or (
                    part != "train"
                    and places(asked[one], part, member) == places(asked[two], part, member)
                )
    assert agent.fit_start is not None
    assert (agent.fit_start.fits, agent.fit_start.model) == (2, agent.model)
    assert asked[4]["start"].members == 2


def test_by_default_each_fit_is_from_scratch_and_nothing_is_kept(
    asked: list[dict[str, Any]], tmp_path: Path
) -> None:
    agent = MPC(Walk(), replace(TINY, fresh_every=1)).learn(81)
    assert len(asked) == 2
    assert all("start" not in given and "folds" not in given for given in asked)
    assert agent.fit_start is None
    agent.save(tmp_path / "a")
    assert "fit_start" not in load_checkpoint(tmp_path / "a", "planning agent").config


def test_a_replay_that_forgets_makes_fits_from_scratch(asked: list[dict[str, Any]]) -> None:
    settings = replace(TINY, real_rows=60, refit_every=60, fresh_every=100)
    MPC(Walk(), settings).learn(181)
    assert len(asked) == 3
    for given in asked:
        assert min(len(places(given, part, m)) for part in ("stop", "outer") for m in (0, 1)) > 0


@pytest.mark.parametrize(
    ("first", "more"),
    [(61, {"elites": 1, "direct": True}), (101, {"elites": 1}), (85, {"method": "bilevel"})],
)
def test_saved_between_two_fits_it_goes_on_to_the_bit(
    first: int, more: dict[str, Any], tmp_path: Path
) -> None:
    whole, half = (MPC(Walk(), replace(TINY, **more), seed=4).learn(first) for _ in range(2))
    half.save(tmp_path / "a")
    back = MPC.load(tmp_path / "a", Walk())
    for each in (whole, back):
        each.learn(45)
    assert whole.fit_start is not None
    assert back.fit_start is not None
    np.testing.assert_array_equal(back.fit_start.folds.stretches, whole.fit_start.folds.stretches)
    assert back.fit_start.fits == whole.fit_start.fits
    for mine, theirs in ((back.model, whole.model), (back.fit_start.model, whole.fit_start.model)):
        model: Any = mine
        other: Any = theirs
        assert model.direct is other.direct
        for name, value in other.policy.state_dict().items():
            assert torch.equal(model.policy.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fits", 0),
        ("fits", "two"),
        ("members", 3),
        ("stretches", torch.zeros(3, 4)),
        ("stretches", torch.zeros(3, 3, dtype=torch.int64)),
        ("stretches", torch.full((3, 4), 99)),
    ],
)
def test_damage_is_told(name: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "a"
    MPC(Walk(), TINY).learn(61).save(path)
    stored = load_checkpoint(path, "planning agent")
    config, tensors = stored.config, stored.tensors
    if isinstance(value, torch.Tensor):
        tensors[f"fit_start.{name}"] = value
    else:
        config["fit_start"][name] = value
    save_checkpoint(path, "planning agent", tensors, config)
    with pytest.raises(CheckpointError, match=f"^checkpoint {path}: ") as caught:
        MPC.load(path, Walk())
    assert "\n" not in str(caught.value)
