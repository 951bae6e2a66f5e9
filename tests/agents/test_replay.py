"""The mixed replay against numbers by hand, and against Stable-Baselines3's own buffer."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from agents.planning_agent.replay import STEP, MixedReplay, Ring, model_action, stored_action
from mbrl_bilevel.base.errors import InvalidInputError

Array = npt.NDArray[Any]

OBS = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
ACT = gym.spaces.Box(np.array([-3.0], np.float32), np.array([1.0], np.float32))
CHOICE = gym.spaces.Discrete(3, start=5)


def replay(n_envs: int = 2, share: float = 0.25, space: Any = ACT, rows: int = 100) -> MixedReplay:
    return MixedReplay(
        OBS,
        space,
        n_envs=n_envs,
        real_rows=rows,
        imagined_rows=50,
        real_share=share,
        generator=torch.Generator().manual_seed(0),
    )


def steps(count: int, n_envs: int = 2) -> list[dict[str, Any]]:
    """Steps whose third ends the first environment, and whose fourth cuts the second one."""
    random = np.random.default_rng(0)
    found = []
    for t in range(count):
        done = np.array([t % 5 == 2, t % 5 == 3][:n_envs])
        cut = [False, bool(t % 5 == 3)][:n_envs]
        found.append(
            {
                "obs": random.normal(size=(n_envs, 2)),
                "next_obs": random.normal(size=(n_envs, 2)),
                "action": random.uniform(-1, 1, (n_envs, 1)),
                "reward": random.normal(size=n_envs),
                "done": done,
                "infos": [{"TimeLimit.truncated": value} for value in cut],
            }
        )
    return found


def imagined(count: int, reward: float) -> dict[str, torch.Tensor]:
    row = {"obs": torch.zeros(count, 2), "next_obs": torch.zeros(count, 2)}
    row["action"], row["ended"] = torch.zeros(count, 1), torch.zeros(count)
    return row | {"reward": torch.full((count,), reward)}


def test_a_ring_keeps_the_last_rows() -> None:
    ring = Ring(5, {"a": torch.zeros(()), "b": torch.zeros(2)})
    for start, count in ((0, 3), (3, 4), (7, 12)):
        values = torch.arange(start, start + count).float()
        ring.add({"a": values, "b": torch.stack([values, -values], 1)})
        kept = min(5, ring.written)
        assert sorted(ring.stored()["a"].tolist()) == list(range(ring.written - kept, ring.written))
        assert torch.equal(ring.columns["b"][:, 1], -ring.columns["a"])
    assert (len(ring), ring.written) == (5, 19)


def test_a_ring_grows_with_its_rows() -> None:
    """Room for a million rows is not taken before they come; what was there stays, in its order."""
    ring = Ring(1_000_000, {"a": torch.zeros(2)})
    assert len(ring.columns["a"]) < 10_000
    rows = torch.arange(20_000.0).reshape(10_000, 2)
    for part in rows.split(700):
        ring.add({"a": part})
    assert torch.equal(ring.stored()["a"], rows)
    assert len(ring.columns["a"]) < 20_000
    small = Ring(5000, {"a": torch.zeros(2)})
    small.add({"a": rows})
    assert torch.equal(small.columns["a"].sort(0).values, rows[5000:])


def test_shares_are_exact() -> None:
    buffer = replay(share=0.25)
    for step in steps(10):
        buffer.add(**{**step, "reward": np.ones(2)})
    assert set(buffer.sample(40).rewards.flatten().tolist()) == {1.0}  # nothing imagined yet
    buffer.imagined.add(imagined(60, 2.0))
    for size, real in ((40, 10), (10, 2), (256, 64)):
        rewards = buffer.sample(size).rewards
        assert rewards.shape == (size, 1)
        assert int((rewards == 1.0).sum()) == real
    buffer.real_share = 1.0
    assert set(buffer.sample(40).rewards.flatten().tolist()) == {1.0}
    buffer.real_share = 0.0
    assert set(buffer.sample(40).rewards.flatten().tolist()) == {2.0}


def test_what_is_sampled_is_what_sb3s_buffer_would_give() -> None:
    """Ends, and time limits that are none, among it."""
    ours = replay()
    theirs = ReplayBuffer(200, OBS, ACT, device="cpu", n_envs=2)
    for step in steps(20):
        ours.add(**step)
        theirs.add(**step)

    def rows(buffer: Any) -> set[tuple[float, ...]]:
        drawn = buffer.sample(3000)
        columns = (drawn.observations, drawn.actions, drawn.next_observations)
        table = torch.cat([*columns, drawn.dones, drawn.rewards], 1).float()
        return {tuple(row) for row in table.tolist()}

    np.random.seed(0)  # noqa: NPY002 - what SB3 draws from
    found = rows(ours)
    assert found == rows(theirs)
    assert sum(row[5] for row in found) == 4.0  # the ends, not the cuts


def test_normalised_as_sb3_does() -> None:
    env: Any = VecNormalize(DummyVecEnv([lambda: gym.make("InvertedPendulum-v5")]))
    space = gym.spaces.Box(-np.inf, np.inf, (4,))
    env.obs_rms.mean, env.obs_rms.var = np.arange(4.0), np.arange(1.0, 5.0)
    env.ret_rms.var = np.array(9.0)
    buffer = MixedReplay(
        space,
        ACT,
        n_envs=1,
        real_rows=9,
        imagined_rows=9,
        real_share=1.0,
        generator=torch.Generator(),
    )
    step = steps(1, 1)[0]
    buffer.add(**{**step, "obs": np.ones((1, 4)), "next_obs": np.zeros((1, 4))})
    drawn = buffer.sample(3, env)
    expected = env.normalize_obs(np.ones((3, 4), np.float32))
    np.testing.assert_allclose(drawn.observations.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(drawn.rewards.numpy(), step["reward"][0] / 3.0, rtol=1e-5)
    np.testing.assert_array_equal(buffer.transitions().obs, np.ones((1, 4)))  # raw


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize(
    ("n_envs", "rows", "count"), [(1, 100, 31), (2, 100, 33), (2, 20, 47), (1, 9, 25)]
)
@pytest.mark.parametrize("n_steps", [2, 3, 7])
def test_n_step_returns_are_those_of_sb3s_buffer(
    n_steps: int, n_envs: int, rows: int, count: int, normalise: bool
) -> None:
    """Ends, time limits and a ring that went round among it; rewards are clipped one by one."""
    env: Any = None
    if normalise:
        env = VecNormalize(
            DummyVecEnv([lambda: gym.make("MountainCarContinuous-v0")]), clip_reward=0.7
        )
        env.obs_rms.mean, env.obs_rms.var = np.array([0.3, -1.0]), np.array([4.0, 0.25])
        env.ret_rms.var = np.array(2.25)
    ours = MixedReplay(
        OBS,
        ACT,
        n_envs=n_envs,
        real_rows=rows,
        imagined_rows=9,
        real_share=1.0,
        generator=torch.Generator().manual_seed(1),
        n_steps=n_steps,
        gamma=0.9,
    )
    theirs = NStepReplayBuffer(
        rows, OBS, ACT, device="cpu", n_envs=n_envs, n_steps=n_steps, gamma=0.9
    )
    for step in steps(count, n_envs):
        ours.add(**step)
        theirs.add(**step)

    def table(buffer: Any) -> Array:
        drawn = buffer.sample(4000, env)
        columns = (drawn.observations, drawn.actions, drawn.next_observations)
        more = (drawn.dones, drawn.rewards, drawn.discounts)
        found = torch.cat([*columns, *more], 1).double().numpy()
        return np.unique(found.round(5), axis=0)

    np.random.seed(0)  # noqa: NPY002 - what SB3 draws from
    found, expected = table(ours), table(theirs)
    assert len(expected) == min(rows, n_envs * count)
    np.testing.assert_allclose(found, expected, atol=2.1e-5)
    lengths = np.log(found[:, -1]) / np.log(0.9)
    assert lengths.max() == pytest.approx(min(n_steps, 5), abs=1e-3)
    assert lengths.min() == pytest.approx(1.0, abs=1e-3)
    ends = found[:, 5]
    assert 0 < ends.sum() < len(ends)


def test_n_step_rows_by_hand() -> None:
    """Two environments in turn, of rewards 1, 2, 4, …: the first ends after three steps, the second is cut
    after four; imagined rows stay rows of one step."""
    buffer = MixedReplay(
        OBS,
        ACT,
        n_envs=2,
        real_rows=50,
        imagined_rows=9,
        real_share=0.5,
        generator=torch.Generator().manual_seed(1),
        n_steps=3,
        gamma=0.5,
    )
    for t, step in enumerate(steps(4)):
        spots = np.array([[0.0, t], [1.0, t]])
        given = {
            "obs": spots,
            "next_obs": spots + np.array([0.0, 0.5]),
            "reward": np.full(2, 2.0**t),
        }
        buffer.add(**{**step, **given})
    drawn = buffer.sample(500)
    columns = (drawn.observations, drawn.rewards, drawn.discounts, drawn.dones)
    last = drawn.next_observations[:, 1:]
    rows = {tuple(row) for row in torch.cat([*columns, last], 1).tolist()}  # type: ignore[arg-type]
    assert rows == {
        # environment, t: 3 steps of 2ᵗ·(1, γ·2, γ²·4), γ³, no end, and where that leads
        (0.0, 0.0, 3.0, 0.125, 1.0, 2.5),
        (0.0, 1.0, 4.0, 0.25, 1.0, 2.5),
        (0.0, 2.0, 4.0, 0.5, 1.0, 2.5),
        (0.0, 3.0, 8.0, 0.5, 0.0, 3.5),
        (1.0, 0.0, 3.0, 0.125, 0.0, 2.5),
        (1.0, 1.0, 6.0, 0.125, 0.0, 3.5),
        (1.0, 2.0, 8.0, 0.25, 0.0, 3.5),
        (1.0, 3.0, 8.0, 0.5, 0.0, 3.5),
    }
    buffer.imagined.add(imagined(9, 77.0))
    mixed = buffer.sample(40)
    dreamt = mixed.rewards == 77.0
    assert int(dreamt.sum()) == 20
    assert mixed.discounts is not None
    assert set(mixed.discounts[dreamt].tolist()) == {0.5}
    assert len(set(mixed.discounts.flatten().tolist())) == 3


def test_which_rows_were_planned_is_kept() -> None:
    buffer = replay()
    for t, step in enumerate(steps(6)):
        buffer.actor = torch.tensor([1.0, float(t % 2)])
        buffer.add(**{**step, "reward": np.array([0.0, 1.0 + t % 2])})
    drawn = buffer.sample(300)
    told = {tuple(row) for row in torch.cat([drawn.rewards, drawn.planned], 1).tolist()}
    assert told == {(0.0, 1.0), (1.0, 0.0), (2.0, 1.0)}


def test_scales_are_found_by_raw_rows() -> None:
    """Who asks normalises them: they are not to be normalised twice."""
    buffer = replay()
    given = steps(8)
    for step in given:
        buffer.add(**step)
    obs, reward = buffer.standardising_rows()
    np.testing.assert_allclose(obs, np.concatenate([step["obs"] for step in given]), rtol=1e-6)
    np.testing.assert_allclose(
        reward, np.concatenate([step["reward"] for step in given]), rtol=1e-6
    )


def test_transitions_are_in_raw_units_and_by_episode() -> None:
    buffer = replay()
    given = steps(7)
    for step in given:
        buffer.add(**step)
    found = buffer.transitions()
    assert found.episode.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3]
    assert found.t.tolist() == [0, 1, 2, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2]
    assert np.flatnonzero(found.terminated).tolist() == [2]
    assert np.flatnonzero(found.truncated).tolist() == [6]
    first = np.array([step["action"][0, 0] for step in given[:3]])
    np.testing.assert_allclose(found.action[:3, 0], -3.0 + 2.0 * (first + 1.0), rtol=1e-5)
    again = replay()
    again.extend(found)
    back = again.transitions()
    np.testing.assert_array_equal(back.episode, found.episode)  # nothing was begun before
    for name in ("obs", "next_obs", "reward", "terminated", "truncated", "t"):
        np.testing.assert_array_equal(getattr(back, name), getattr(found, name))
    np.testing.assert_allclose(back.action, found.action, rtol=1e-5, atol=1e-6)
    again.start_episodes()
    again.add(**given[0])
    assert again.transitions().episode[-2:].tolist() == [4, 5]


def test_a_reset_of_the_environments_begins_episodes() -> None:
    buffer = replay(n_envs=1)
    for step in steps(2, 1):
        buffer.add(**step)
    buffer.start_episodes()
    buffer.add(**steps(1, 1)[0])
    assert buffer.transitions().episode.tolist() == [0, 0, 1]
    assert buffer.transitions().t.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("space", "vectors"),
    [(ACT, [[-3.0], [-1.0], [1.0]]), (CHOICE, [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])],
)
def test_stored_actions_and_vectors_are_inverse(space: Any, vectors: list[list[float]]) -> None:
    given = torch.tensor(vectors)
    stored = stored_action(space, given)
    assert stored.shape == (len(vectors), 1)
    torch.testing.assert_close(model_action(space, stored), given)
    assert stored.flatten().tolist() == ([-1.0, 0.0, 1.0] if space is ACT else [5.0, 7.0])


def test_what_does_not_fit_is_refused() -> None:
    buffer = replay()
    with pytest.raises(InvalidInputError, match="no steps"):
        buffer.transitions()
    step = steps(1)[0]
    with pytest.raises(InvalidInputError, match="NaN or infinity in the reward"):
        buffer.add(**{**step, "reward": np.array([0.0, np.nan])})
    with pytest.raises(InvalidInputError, match="NaN or infinity in the observation"):
        buffer.add(**{**step, "next_obs": np.full((2, 2), np.inf)})
    buffer.add(**step)
    found = buffer.transitions()
    with pytest.raises(InvalidInputError, match="actions have width 1, those of the environment 3"):
        replay(space=CHOICE).extend(found)
    with pytest.raises(
        InvalidInputError, match=r"observations have width 1, those of the env.* 2;"
    ):
        replay().extend(replace(found, obs=found.obs[:, :1], next_obs=found.obs[:, :1]))
    # ACT is from -3 to 1.
    found.action[:, 0] = -3.00001, 1.000004
    replay().extend(found)
    found.action[1, 0] = 1.001
    with pytest.raises(
        InvalidInputError, match=r"action\[1, 0\] is 1\.001, outside .* -3 to 1; clip"
    ):
        replay().extend(found)
    assert set(STEP) <= set(buffer.real.columns)


def test_changes_that_it_cannot_hold_are_told_once() -> None:
    buffer = replay(n_envs=1)
    offset = np.array([5e6, 0.0])
    told = []
    for step in steps(300, n_envs=1):
        far = {name: step[name] * 0.1 + offset for name in ("obs", "next_obs")}
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            buffer.add(**{**step, **far})
        told += [str(one.message) for one in found]
    assert len(told) == 1
    assert told[0].startswith("observations [0] change by less than float32 can tell")
