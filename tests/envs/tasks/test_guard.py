"""An environment that raises, hangs or answers nonsense is told in one line."""

from __future__ import annotations

import sys
import time
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from envs.tasks.guard import Guard
from mbrl_bilevel.base.errors import EnvironmentFailedError, InvalidInputError


class Faulty(gym.Env[Any, Any]):
    """Does ``how`` at its third step, or at reset."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def __init__(self, how: str) -> None:
        self.how, self.t = how, 0

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        if self.how == "reset":
            raise OSError("no such robot")
        self.t = 0
        return np.zeros(2), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        answer: tuple[Any, ...] = (np.full(2, 0.1 * self.t), 1.5, False, False, {})
        if self.t < 3:
            return answer
        if self.how == "raise":
            raise ValueError("wheel\nlost")
        if self.how == "exit":
            sys.exit(0)
        if self.how == "hang":
            while True:
                time.sleep(0.01)
        if self.how == "swallow":
            while True:
                try:
                    time.sleep(0.01)
                except Exception:
                    continue
        return {
            "shape": (np.zeros(3), *answer[1:]),
            "reward": (answer[0], "much", *answer[2:]),
            "four": answer[:4],
            "none": None,
        }[self.how]


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("raise", "raised ValueError: wheel lost, at step 3"),
        ("exit", "raised SystemExit: 0"),
        ("hang", "took longer than 0.1 s, at step 3"),
        ("swallow", "took longer than 0.1 s"),
        ("shape", "shape (3,), not (2,)"),
        ("reward", "'much'"),
        ("four", "5 values"),
        ("none", "5 values"),
        ("reset", "raised OSError: no such robot, at reset"),
    ],
)
def test_a_fault_is_one_line_that_says_what_and_when(how: str, told: str) -> None:
    env = Guard(Faulty(how), timeout=0.1)

    def play() -> None:
        env.reset()
        for _ in range(5):
            env.step(np.zeros(1))

    with pytest.raises(EnvironmentFailedError) as caught:
        play()
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Faulty" in str(caught.value)


def test_a_sound_environment_is_left_as_it_is() -> None:
    bare, guarded = gym.make("Pendulum-v1"), Guard(gym.make("Pendulum-v1"), timeout=5.0)
    np.testing.assert_array_equal(bare.reset(seed=3)[0], guarded.reset(seed=3)[0])
    for _ in range(5):
        ours, theirs = guarded.step(np.array([0.7])), bare.step(np.array([0.7]))
        np.testing.assert_array_equal(ours[0], theirs[0])
        assert ours[1:4] == (float(theirs[1]), theirs[2], theirs[3])
    # The timer is off again: nothing rings later.
    time.sleep(0.05)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("inf"), float("nan")])
def test_a_limit_is_a_positive_number(timeout: float) -> None:
    with pytest.raises(InvalidInputError, match="timeout"):
        Guard(gym.make("Pendulum-v1"), timeout=timeout)
