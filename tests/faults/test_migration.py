"""Files of every version there has been can be read, and act as they did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agents.mpc import MPC
from envs.tasks.make import make_env

DATA = Path(__file__).resolve().parents[1] / "data"

#: file -> what its agent did at three observations when it was written (Pendulum-v1, in Nm).
WRITTEN = {"agent-v1.safetensors": [2.0, 2.0, 1.8]}


@pytest.mark.parametrize("name", WRITTEN)
def test_an_agent_of_an_older_version_acts_as_it_did(name: str) -> None:
    agent = MPC.load(DATA / name, make_env("Pendulum-v1"))
    observations = np.array([[1.0, 0.0, 0.1], [0.0, 1.0, -2.0], [-0.8, -0.6, 4.0]], np.float32)
    actions = [agent.predict(obs, deterministic=True)[0].item() for obs in observations]
    # Other machines round otherwise; the plans are the same.
    np.testing.assert_allclose(actions, WRITTEN[name], atol=1e-3)
    assert len(agent.experience) == 60
    agent.learn(5)
