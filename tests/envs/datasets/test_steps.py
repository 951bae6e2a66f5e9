"""Logged steps in an npz file, by the names of several libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envs.datasets.steps import load_steps
from mbrl_bilevel.base.errors import InvalidInputError


def arrays() -> dict[str, Any]:
    path = np.random.default_rng(0).normal(size=(13, 2)).cumsum(0)
    return {"obs": path[:-1], "action": path[:-1, :1], "next_obs": path[1:], "reward": path[1:, 0]}


@pytest.mark.parametrize(
    "names",
    [
        ("obs", "action", "next_obs", "reward", "terminated", "truncated"),
        ("observations", "actions", "next_observations", "rewards", "terminals", "timeouts"),
        ("states", "actions", "next_states", "rewards", "done", "truncated"),
    ],
)
def test_columns_go_by_their_usual_names(tmp_path: Path, names: tuple[str, ...]) -> None:
    t = np.arange(12)
    truncated = t == 5
    ended = (t == 8) | truncated if names[4] == "done" else t == 8
    columns = [*arrays().values(), ended, truncated]
    np.savez(tmp_path / "t.npz", **dict(zip(names, columns, strict=True)), infos=np.zeros(3))
    found = load_steps(tmp_path / "t.npz")
    assert found.terminated.tolist() == (t == 8).tolist()
    assert found.truncated.tolist() == truncated.tolist()
    assert found.episode.tolist() == [0] * 6 + [1] * 3 + [2] * 3
    np.testing.assert_array_equal(found.obs, arrays()["obs"].astype(np.float32))


def test_done_alone_is_an_end_and_told(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **arrays(), dones=np.arange(12) == 11)
    with pytest.warns(UserWarning, match="done is taken for an end of the task"):
        found = load_steps(tmp_path / "t.npz")
    assert found.terminated.tolist() == [False] * 11 + [True]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"reward": None}, "has no array 'reward'; it has obs, action, next_obs"),
        ({"reward": np.zeros(3)}, "reward must have a row for each of the 12"),
        ({"obs": np.array([{}])}, "cannot be read as npz"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(tmp_path: Path, change: Any, told: str) -> None:
    given = {name: value for name, value in (arrays() | change).items() if value is not None}
    np.savez(tmp_path / "t.npz", **given)
    with pytest.raises(InvalidInputError) as caught:
        load_steps(tmp_path / "t.npz")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidInputError, match="no such file"):
        load_steps(tmp_path / "u.npz")
