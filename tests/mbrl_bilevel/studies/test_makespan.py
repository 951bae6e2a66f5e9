"""A study on many machines: list scheduling by hand, and seconds of cells that were not run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.grid import read_grid
from mbrl_bilevel.studies.grid_rows import keep
from mbrl_bilevel.studies.makespan import cell_seconds, makespan, study_on_machines

GRID = """
seeds = [0, 1]
shown = [100]

[columns]
ours = "--agent planning"
alone = "--agent sac"

[[tasks]]
env_id = "Reacher-v5"
steps = 100
eval_every = 100
eval_episodes = 1
columns = ["ours", "alone"]

[[tasks]]
env_id = "Pusher-v5"
steps = 200
eval_every = 100
eval_episodes = 1
columns = ["ours", "alone"]
"""


def test_cells_start_where_a_place_is_free_first() -> None:
    assert makespan([3.0, 1.0, 1.0, 4.0], 1) == 9.0
    assert makespan([3.0, 1.0, 1.0, 4.0], 2) == 6.0  # 3 | 1 1 4
    assert makespan([3.0, 1.0, 1.0, 4.0], 9) == 4.0
    assert makespan([], 2) == 0.0


@given(st.lists(st.floats(0.0, 100.0), min_size=1, max_size=30), st.integers(1, 8))
def test_it_lies_between_the_bounds_of_list_scheduling(seconds: list[float], places: int) -> None:
    """Graham 1966: at most (2 − 1/m) times the best, which is at least the mean load and the longest cell."""
    found = makespan(seconds, places)
    least = max(max(seconds), sum(seconds) / places)
    assert least - 1e-6 <= found <= (2.0 - 1.0 / places) * least + 1e-6


@pytest.mark.parametrize(("seconds", "places"), [([1.0], 0), ([-1.0], 1), ([float("nan")], 1)])
def test_what_cannot_be_is_refused(seconds: list[float], places: int) -> None:
    with pytest.raises(InvalidInputError):
        makespan(seconds, places)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Two cells were run: 60 seconds of Reacher by ours, 90 by the other column."""
    (tmp_path / "grid.toml").write_text(GRID)
    for cell in read_grid(tmp_path / "grid.toml").cells():
        if cell.task == "Reacher-v5" and cell.seed == 0:
            run = tmp_path / "run" / cell.name
            run.mkdir(parents=True)
            row = {"step": 100, "mean": 1.0, "std": 0.0, "returns": [1.0], "policy_mean": 1.0}
            row |= {"policy_std": 0.0, "policy_returns": [1.0], "cpu_seconds": 1.0}
            (run / "rows.jsonl").write_text(json.dumps(row) + "\n")
            (run / "config.json").write_text("{}")
            seconds = 60.0 if cell.column == "ours" else 90.0
            metrics = {
                "env_steps": 100,
                "wall_seconds": seconds,
                "peak_memory_mb": 1.0,
                "device": "cpu",
            }
            (run / "metrics.json").write_text(json.dumps(metrics))
            keep(run, tmp_path / "rows", cell)
    return tmp_path / "grid.toml"


def test_a_cell_that_was_not_run_takes_what_its_column_takes_a_step(study: Path) -> None:
    found = cell_seconds(read_grid(study), study.parent / "rows")
    told = {(cell.task[:6], cell.column, cell.seed): value for cell, value in found.items()}
    assert told == {
        **{("Reache", "ours", seed): 60.0 for seed in (0, 1)},
        **{("Reache", "alone", seed): 90.0 for seed in (0, 1)},
        **{("Pusher", "ours", seed): 120.0 for seed in (0, 1)},
        **{("Pusher", "alone", seed): 180.0 for seed in (0, 1)},
    }


def test_more_machines_take_less_until_the_longest_cell(study: Path) -> None:
    one, two, many = study_on_machines(study, [1, 2, 100], cells_per_node=2, times=3)
    assert one["cells"] == 24
    assert one["hours"] == pytest.approx(3 * 900 / 2 / 3600, rel=0.1)
    assert one["hours"] > two["hours"] > many["hours"] == many["longest"] == 180 / 3600
    assert many["used"] == pytest.approx(3 * 900 / (180 * 200))


def test_a_study_of_which_nothing_was_run_is_refused(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text(GRID)
    with pytest.raises(InvalidInputError, match="no finished cell"):
        study_on_machines(tmp_path / "grid.toml", [1], 1)
