"""The terminal value: returns to go by hand, a known value function, and caution off the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from agents.planning_agent.settings import ValueSettings
from agents.planning_agent.terminal_value import (
    fit_value,
    returns_to_go,
    value_from_checkpoint,
    value_to_checkpoint,
)
from mbrl_bilevel.base.checkpoint import load_checkpoint, save_checkpoint
from mbrl_bilevel.base.errors import CheckpointError, InvalidInputError
from mbrl_bilevel.base.records import Transitions


def corridor(episodes: int = 60, seed: int = 0) -> Transitions:
    """From x in (0, 1) a walk of +0.1 a step, reward 1 a step, which terminates beyond x = 1."""
    random = np.random.default_rng(seed)
    rows = []
    for episode in range(episodes):
        x, t = float(random.uniform(0.0, 1.0)), 0
        while True:
            ended = x + 0.1 > 1.0
            rows.append((x, x + 0.1, ended, episode, t))
            x, t = x + 0.1, t + 1
            if ended:
                break
    x0, x1, ended_, episode_, t_ = zip(*rows, strict=True)
    n = len(rows)
    return Transitions(
        np.array(x0, dtype=np.float32)[:, None],
        np.zeros((n, 1), dtype=np.float32),
        np.ones(n, dtype=np.float32),
        np.array(x1, dtype=np.float32)[:, None],
        np.array(ended_),
        np.zeros(n, dtype=np.bool_),
        np.array(episode_, dtype=np.int64),
        np.array(t_, dtype=np.int64),
    )


def test_returns_to_go_by_hand() -> None:
    rows = corridor(2)
    shuffled = rows[np.random.default_rng(1).permutation(len(rows))]
    found = returns_to_go(shuffled, np.full(len(rows), 7.0), 0.9)
    for row in range(len(rows)):
        left = int(
            ((shuffled.episode == shuffled.episode[row]) & (shuffled.t >= shuffled.t[row])).sum()
        )
        assert found[row] == pytest.approx(sum(0.9**k for k in range(left)))


def test_a_cut_episode_goes_on_with_the_tail() -> None:
    rows = corridor(1)
    cut = Transitions(**{**vars(rows), "terminated": np.zeros(len(rows), dtype=np.bool_)})
    tail = np.arange(float(len(rows)))
    found = returns_to_go(cut, tail, 0.5)
    assert found[-1] == pytest.approx(1.0 + 0.5 * tail[-1])
    assert found[-2] == pytest.approx(1.0 + 0.5 * found[-1])


@pytest.fixture(scope="module")
def walked() -> tuple[Transitions, ValueSettings]:
    return corridor(), ValueSettings(discount=0.9, pessimism=0.0, rounds=1, steps=400, members=2)


def test_it_learns_a_known_value(walked: tuple[Transitions, ValueSettings]) -> None:
    rows, settings = walked
    value = fit_value(rows, settings, torch.Generator().manual_seed(0))
    x = torch.linspace(0.05, 0.85, 9)
    steps = torch.floor((1.0 - x) / 0.1 + 1e-4) + 1.0
    truth = (1.0 - 0.9**steps) / (1.0 - 0.9)
    assert (value(x.unsqueeze(1)) - truth).abs().mean() < 0.35  # of values from 1 to 6.5


def test_off_the_data_it_is_flat_and_bounded(walked: tuple[Transitions, ValueSettings]) -> None:
    rows, settings = walked
    value = fit_value(rows, settings, torch.Generator().manual_seed(0))
    low, high = float(rows.obs.min()), float(rows.obs.max())
    far = value(torch.tensor([[low - 50.0], [low], [high], [high + 50.0]]))
    assert far[0] == far[1]
    assert far[2] == far[3]
    assert ((far >= 0.0) & (far <= 10.0 + 1e-4)).all()  # rewards of 1 at γ = .9 add up to 10


def test_pessimism_takes_the_members_spread_off(walked: tuple[Transitions, ValueSettings]) -> None:
    rows, settings = walked
    value = fit_value(rows, settings, torch.Generator().manual_seed(0))
    wary = type(value)(**{**vars(value), "pessimism": 2.0})
    x = torch.linspace(0.1, 0.9, 7).unsqueeze(1)
    spread = value.members(x).std(0, correction=0)
    assert spread.max() > 1e-4
    torch.testing.assert_close(wary(x), (value(x) - 2.0 * spread).clamp(*value.bounds))


def test_same_seed_same_value(walked: tuple[Transitions, ValueSettings]) -> None:
    rows, settings = walked
    x = torch.linspace(0.0, 1.0, 5).unsqueeze(1)
    first, second, other = (
        fit_value(rows, settings, torch.Generator().manual_seed(seed))(x) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_it_survives_a_checkpoint_bitwise(
    walked: tuple[Transitions, ValueSettings], tmp_path: Path
) -> None:
    rows, settings = walked
    value = fit_value(rows, settings, torch.Generator().manual_seed(0))
    tensors, config = value_to_checkpoint(value)
    named = {f"value.{name}": tensor for name, tensor in tensors.items()}
    save_checkpoint(tmp_path / "v.safetensors", "test", named, {"value": config})
    checkpoint = load_checkpoint(tmp_path / "v.safetensors", "test")
    loaded = value_from_checkpoint(checkpoint, "value", 1)
    x = torch.linspace(-1.0, 2.0, 9).unsqueeze(1)
    assert torch.equal(loaded(x), value(x))
    with pytest.raises(CheckpointError, match="shape"):
        value_from_checkpoint(checkpoint, "value", 2)


@pytest.mark.parametrize(
    "wrong", [{"discount": 1.0}, {"discount": -0.1}, {"pessimism": -1.0}, {"rounds": 0}]
)
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError):
        ValueSettings(**wrong)  # type: ignore[arg-type]


def cut_short(episodes: int, deaths: float, seed: int = 0) -> Transitions:
    """Reward 1 a step in states that say nothing; each step ends the task with a probability of ``deaths``,
    and an episode is cut after ten."""
    random = np.random.default_rng(seed)
    ended = random.random((episodes, 10)) < deaths
    here = np.cumsum(ended, 1) - ended == 0
    n = int(here.sum())
    obs, next_obs = random.normal(size=(2, n, 2)).astype(np.float32)
    rows, t = np.nonzero(here)
    over = ended[here]
    return Transitions(
        obs,
        np.zeros((n, 1), np.float32),
        np.ones(n, np.float32),
        next_obs,
        over,
        (t == 9) & ~over,
        rows.astype(np.int64),
        t.astype(np.int64),
    )


def test_short_episodes_tell_of_all_that_follows() -> None:
    """Ten steps at a time of a life of fifty: 1 / (1 − γ(1 − p)), and not what three rounds of ten reach."""
    rows = cut_short(400, 0.02)
    dying = rows.terminated.mean()
    settings = ValueSettings(discount=0.99, pessimism=0.0, members=2, steps=100)
    value = fit_value(rows, settings, torch.Generator().manual_seed(0))
    truth = 1.0 / (1.0 - 0.99 * (1.0 - dying))
    assert 28.0 < truth < 40.0
    assert float(value(torch.from_numpy(rows.obs)).mean()) == pytest.approx(truth, rel=0.05)


def test_short_episodes_tell_good_places_from_bad_ones() -> None:
    """Two rooms that nobody leaves, with rewards 0 and 1: worth 0 and 100, from ten steps at a time."""
    random = np.random.default_rng(0)
    rows = cut_short(200, 0.0)
    room = random.integers(0, 2, 200)[rows.episode].astype(np.float32)
    obs, next_obs = (
        np.stack([room, 0.1 * random.normal(size=len(room))], 1).astype(np.float32)
        for _ in range(2)
    )
    rows = replace(rows, obs=obs, next_obs=next_obs, reward=room)
    settings = ValueSettings(discount=0.99, pessimism=0.0, members=2, steps=200)
    value = fit_value(rows, settings, torch.Generator().manual_seed(0))(torch.from_numpy(obs))
    assert float(value[room == 0.0].mean()) == pytest.approx(0.0, abs=5.0)
    assert float(value[room == 1.0].mean()) == pytest.approx(100.0, abs=5.0)


@pytest.mark.parametrize("pay", [1e-9, 1e9])
def test_a_value_is_in_the_unit_of_its_rewards(pay: float) -> None:
    rows = cut_short(100, 0.05)
    settings = ValueSettings(discount=0.9, pessimism=0.0, members=2, steps=60)
    plain = fit_value(rows, settings, torch.Generator().manual_seed(0))
    paid = replace(rows, reward=rows.reward * np.float32(pay))
    found = fit_value(paid, settings, torch.Generator().manual_seed(0))
    x = torch.from_numpy(rows.obs)
    torch.testing.assert_close(found(x) / pay, plain(x), rtol=1e-2, atol=1e-2)
