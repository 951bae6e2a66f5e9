"""Real experience: the same rows as stepping by hand, and an environment's faults told where they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest

from agents.common.experience import RandomBehaviour, Recorder, collect
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Transitions

Array = npt.NDArray[Any]


class Drift(gym.Env[Array, Array]):
    """x' = x + u from a random start in [−1, 1]; ends beyond 2, is cut after ``length`` steps.

    ``fault(episode, t)`` changes (obs, reward) of a step; t = −1 is the reset. With ``shared`` the
    environment returns one array, written anew at every step.
    """

    def __init__(
        self,
        length: int = 6,
        fault: Callable[[int, int], tuple[float, float]] = lambda episode, t: (0.0, 0.0),
        shared: bool = False,
    ) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.length, self.fault, self.shared = length, fault, shared
        self.episode, self.t, self.state = -1, 0, np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        start = self.np_random.uniform(-1.0, 1.0) + self.fault(self.episode, -1)[0]
        return self._observed(start), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        to_obs, to_reward = self.fault(self.episode, self.t)
        obs = self._observed(self.state[0] + float(action[0]) + to_obs)
        self.t += 1
        reward = -(float(obs[0]) ** 2) + to_reward
        return obs, reward, bool(abs(obs[0]) > 2.0), self.t >= self.length, {}

    def _observed(self, x: float) -> Array:
        if not self.shared:
            self.state = np.zeros(2)
        self.state[:] = x, x**2
        return self.state


def behave(obs: Array, t: int) -> Array:
    return np.array([0.7 * np.sin(3.0 * obs[0] + t)], dtype=np.float32)


def by_hand(steps: int, seed: int, cut: int) -> list[tuple[Any, ...]]:
    env, rows, episode, t = Drift(), [], 0, 0
    obs, _ = env.reset(seed=seed)
    for _ in range(steps):
        action = behave(obs, t)
        after, reward, ended, stopped, _ = env.step(action)
        stopped = stopped or t + 1 == cut
        rows.append((obs.copy(), action, reward, after.copy(), ended, stopped, episode, t))
        obs, t = after, t + 1
        if ended or stopped:
            (obs, _), episode, t = env.reset(), episode + 1, 0
    return rows


@pytest.mark.parametrize("cut", [None, 4, 1])
@pytest.mark.parametrize("shared", [False, True])
def test_rows_are_those_of_stepping_by_hand(cut: int | None, shared: bool) -> None:
    found = collect(Drift(shared=shared), behave, 40, seed=5, max_episode_steps=cut)
    columns = zip(*by_hand(40, 5, cut or 100), strict=True)
    for (name, value), expected in zip(vars(found).items(), columns, strict=True):
        np.testing.assert_array_equal(value, np.array(expected, dtype=value.dtype), err_msg=name)
    assert found.truncated.any()
    assert len(np.unique(found.obs[found.t == 0, 0])) == found.episode[-1] + 1  # fresh starts
    if cut is not None:
        assert found.t.max() < cut
    else:
        assert found.terminated.any()


def test_same_seed_same_rows() -> None:
    def rows(seed: int) -> Transitions:
        env = Drift()
        behaviour = RandomBehaviour(env.action_space, np.random.default_rng(seed))
        return collect(env, behaviour, 50, seed=seed)

    first, again, other = rows(0), rows(0), rows(1)
    for name, value in vars(first).items():
        np.testing.assert_array_equal(value, getattr(again, name))
    assert not np.array_equal(first.obs, other.obs)
    assert not np.array_equal(first.action, other.action)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e100])
@pytest.mark.parametrize(
    ("what", "place", "where"),
    [
        ("observation", (1, 2), "episode 1, step 2"),
        ("observation", (2, -1), "episode 2, reset"),
        ("observation", (0, -1), "episode 0, reset"),
        ("reward", (1, 0), "episode 1, step 0"),
    ],
)
def test_a_fault_is_told_with_its_place(
    what: str, place: tuple[int, int], where: str, bad: float
) -> None:
    def fault(episode: int, t: int) -> tuple[float, float]:
        hit = bad if (episode, t) == place else 0.0
        return (hit, 0.0) if what == "observation" else (0.0, hit)

    env = Drift(length=4, fault=fault)
    with (
        np.errstate(all="ignore"),
        pytest.raises(InvalidInputError, match=f"NaN or infinity in the {what}.*{where}") as error,
    ):
        collect(env, lambda obs, t: np.zeros(1, dtype=np.float32), 30, seed=0)
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize("bad", [{"steps": 0}, {"max_episode_steps": 0}])
def test_counts_are_checked(bad: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError, match=f"{next(iter(bad))} must be at least 1; got 0"):
        collect(Drift(), behave, **({"steps": 5, "seed": 0} | bad))


def add(recorder: Recorder, episode: int, t: int) -> None:
    obs = np.array([episode, t], dtype=np.float64)
    recorder.add(
        obs,
        np.zeros(1),
        float(t),
        obs + 0.5,
        terminated=False,
        truncated=t == 2,
        episode=episode,
        t=t,
    )


def test_recorder_groups_environments_that_take_turns() -> None:
    recorder = Recorder()
    with pytest.raises(InvalidInputError, match="no steps were recorded"):
        recorder.transitions()
    for t in range(3):
        for episode in (1, 0):
            add(recorder, episode, t)
    rows = recorder.transitions()
    assert len(recorder) == 6
    assert rows.episode.tolist() == [0, 0, 0, 1, 1, 1]
    assert rows.t.tolist() == [0, 1, 2, 0, 1, 2]
    assert rows.obs.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    assert rows.truncated.tolist() == [False, False, True] * 2
    # Rows recorded elsewhere, then more of them: nothing is lost or doubled.
    other = Recorder()
    other.extend(rows)
    add(other, 1, 3)
    assert other.transitions().t.tolist() == [0, 1, 2, 0, 1, 2, 3]
    np.testing.assert_array_equal(other.transitions().obs[:6], rows.obs)


def test_random_behaviour_takes_white_and_slow_episodes_in_turn() -> None:
    space = gym.spaces.Box(np.array([-1.0, 2.0]), np.array([3.0, 2.5]), dtype=np.float64)
    behaviour = RandomBehaviour(space, np.random.default_rng(0))
    episodes = [np.stack([behaviour(np.zeros(1), t) for t in range(4000)]) for _ in range(4)]
    for i, actions in enumerate(episodes):
        assert actions.dtype == space.dtype
        assert all(space.contains(action) for action in actions)
        unit = (actions - [1.0, 2.25]) / [2.0, 0.25]
        correlation = [np.corrcoef(u[1:], u[:-1])[0, 1] for u in unit.T]
        if i % 2 == 0:
            assert np.abs(correlation).max() < 0.06
            assert unit.std(0) == pytest.approx(3**-0.5, rel=0.05)
        else:
            # A unit Gaussian of correlation .9, clipped at ±1 (which costs it a little).
            assert 0.8 < min(correlation) <= max(correlation) < 0.93
            assert 0.25 < np.mean(np.abs(unit) >= 1.0) < 0.39  # .317 of a Gaussian
    assert not np.array_equal(episodes[1], episodes[3])


def test_random_choices_are_uniform_and_last_longer_in_slow_episodes() -> None:
    space = gym.spaces.Discrete(3, start=5)
    behaviour = RandomBehaviour(space, np.random.default_rng(0))
    for i in range(4):
        choices = np.array([behaviour(np.zeros(1), t) for t in range(6000)])
        assert all(space.contains(choice) for choice in choices[:20])
        share = np.bincount(choices - 5, minlength=3) / 6000
        assert np.abs(share - 1 / 3).max() < (0.03 if i % 2 == 0 else 0.08)
        same = np.mean(choices[1:] == choices[:-1])  # 1/3, or .9 + .1/3
        assert same == pytest.approx(1 / 3 if i % 2 == 0 else 0.9 + 0.1 / 3, abs=0.03)


def test_choices_are_recorded_one_hot() -> None:
    env = gym.make("CartPole-v1")
    chosen: list[int] = []

    def act(obs: Any, t: int) -> Any:
        chosen.append((t // 2) % 2)
        return np.int64(chosen[-1])

    rows = collect(env, act, 12, seed=0)
    assert rows.action.argmax(1).tolist() == chosen
    assert set(chosen) == {0, 1}
    assert rows.action.sum(1).tolist() == [1.0] * 12


def test_random_behaviour_keeps_to_bounds_that_float32_cannot_hold() -> None:
    """0.1 in single precision is larger than 0.1."""
    space = gym.spaces.Box(-0.1, 0.1, (1,), np.float64)
    behaviour = RandomBehaviour(space, np.random.default_rng(0))
    for _ in range(2):
        actions = [behaviour(np.zeros(1), t) for t in range(200)]
        assert all(space.contains(action) for action in actions)


def test_what_float32_would_lose_is_kept_in_double() -> None:
    """A state at 5e6 whose steps are below one."""
    env = Drift(length=50, fault=lambda episode, t: (5e6, 0.0) if t < 0 else (0.0, 0.0))
    seen = gym.wrappers.TransformObservation(env, lambda obs: obs, None)
    found = collect(seen, RandomBehaviour(env.action_space, np.random.default_rng(0)), 100, seed=0)
    assert found.obs.dtype == found.next_obs.dtype == np.float64
    change = found.next_obs[:, 0] - found.obs[:, 0]
    np.testing.assert_allclose(change, found.action[:, 0], atol=1e-6)
