"""The example of a user's own environments as a sequence: its data, and what is told where widths differ."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from agents import collect
from envs import SEQUENCES
from envs.tasks.sequences import Task
from mbrl_bilevel.base.errors import InvalidInputError

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "examples"))


def test_every_task_has_the_dynamics_of_its_own_robot() -> None:
    import my_sequence  # noqa: F401 (it registers itself)

    sequence = SEQUENCES["my-carts"]
    sequence.check()
    for task, mass, friction in zip(sequence.tasks, (1.0, 3.0, 1.0), (0.1, 0.1, 0.5), strict=True):
        train, test = task.data(collect, rows=200, test_rows=100, seed=0)
        assert (len(train), len(test)) == (200, 100)
        change = np.stack([train.obs[:, 1], train.action[:, 0]], 1)
        found = np.linalg.lstsq(change, train.next_obs[:, 1] - train.obs[:, 1], rcond=None)[0]
        np.testing.assert_allclose(found, [-friction, 0.1 / mass], atol=1e-4)
    wide = (*sequence.tasks, Task("pendulum", "Pendulum-v1", {}))
    with pytest.raises(
        InvalidInputError, match=r"'pendulum' has observations \(3,\).*'cart' \(2,\)"
    ):
        replace(sequence, tasks=wide).check()
    with pytest.raises(InvalidInputError, match="Kart-v0"):
        replace(sequence, tasks=(Task("cart", "Kart-v0", {}),)).check()
    with pytest.raises(InvalidInputError, match="needs tasks"):
        replace(sequence, tasks=())
    del SEQUENCES["my-carts"], gym.registry["Cart-v0"], gym.registry["Boat-v0"]
    del sys.modules["my_sequence"]
