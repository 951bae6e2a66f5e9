"""Which wrappers change what an agent meets."""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from envs.tasks.layers import acting_layers
from envs.tasks.make import make_env


def test_acting_layers_leave_out_those_that_only_watch() -> None:
    env = gym.wrappers.RecordEpisodeStatistics(
        gym.wrappers.RescaleAction(make_env("Hopper-v5"), np.float32(-2), np.float32(2))
    )
    names = [type(layer).__name__ for layer in acting_layers(env)]
    assert names == ["RescaleAction", "HopperEnv"]
