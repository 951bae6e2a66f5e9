"""The example from logged steps to a rollout with its band, on a system that is known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "examples"))

from logged_steps import band_of  # noqa: E402


def test_the_band_holds_the_truth_and_little_else(tmp_path: Path) -> None:
    """A damped spring that is pushed at random, with noise: the band is about as wide as what it may do."""
    random = np.random.default_rng(0)
    episodes, length = 60, 25
    dynamics, push, noise = np.array([[1.0, 0.2], [-0.2, 0.95]]), np.array([0.0, 0.3]), 0.03
    state = random.normal(size=(episodes, 2))
    obs, action, after = [], [], []
    for _ in range(length):
        taken = random.uniform(-1.0, 1.0, (episodes, 1))
        nxt = state @ dynamics.T + taken * push + noise * random.normal(size=(episodes, 2))
        obs.append(state)
        action.append(taken)
        after.append(nxt)
        state = nxt
    columns = {"observations": obs, "actions": action, "next_observations": after}
    columns["rewards"] = [-np.square(rows).sum(1) for rows in after]
    columns["truncated"] = [np.full(episodes, t == length - 1) for t in range(length)]
    np.savez(tmp_path / "log.npz", **{name: np.stack(rows) for name, rows in columns.items()})
    band = band_of(str(tmp_path / "log.npz"), steps=300)
    assert band["truth"].shape == (20, 2)
    inside = (band["low"] <= band["truth"]) & (band["truth"] <= band["high"])
    assert inside.float().mean() >= 0.7
    # σ of k steps of noise under a nearly orthogonal map grows as √k.
    wanted = 2 * 1.645 * noise * np.sqrt(np.arange(1, 21))
    width = (band["high"] - band["low"]).mean(1).numpy()
    assert (width / wanted)[5:].min() > 0.3
    assert (width / wanted)[5:].max() < 3.0
    assert (band["mean"] - band["truth"]).abs().mean() < 0.3


def test_it_says_what_is_missing(tmp_path: Path) -> None:
    np.savez(tmp_path / "log.npz", obs=np.zeros((3, 1)))
    with pytest.raises(Exception, match="has no array 'action'"):
        band_of(str(tmp_path / "log.npz"))
