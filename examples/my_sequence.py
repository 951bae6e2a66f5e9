"""Environments of your own as a continual sequence, of several robots too: a cart, a heavier one, and a boat.

    PYTHONPATH=examples python scripts/continual.py --import-module my_sequence --sequences my-carts

A task names any registered environment with Box observations and actions; tasks of one sequence need spaces of one
width, since one model learns them all.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from envs import SEQUENCES, TaskSequence
from envs.tasks.sequences import Task

Array = npt.NDArray[Any]


class Cart(gym.Env[Array, Array]):
    """Place and speed of a mass that is pushed: speed' = .9 speed + .1 push / mass."""

    friction = 0.1

    def __init__(self, mass: float = 1.0) -> None:
        self.mass = mass
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.normal(size=2)
        return self.state.copy(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        place, speed = self.state
        speed += 0.1 * float(action[0]) / self.mass - self.friction * speed
        self.state = np.array([place + 0.1 * speed, speed])
        return self.state.copy(), -float(place**2), False, False, {}


class Boat(Cart):
    """Another robot: water brakes it more."""

    friction = 0.5


gym.register("Cart-v0", entry_point="my_sequence:Cart", max_episode_steps=100)
gym.register("Boat-v0", entry_point="my_sequence:Boat", max_episode_steps=100)

SEQUENCES["my-carts"] = TaskSequence(
    "changing",
    (
        Task("cart", "Cart-v0", {}),
        Task("heavy cart", "Cart-v0", {"mass": 3.0}),
        Task("boat", "Boat-v0", {}),
    ),
    "carts and a boat",
)
