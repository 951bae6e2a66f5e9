"""The options of scaling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.arguments import RunArgs, option_name

#: Rows of one episode for each member, so that all can hold some out.
ROWS_A_MEMBER = 10


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of scaling."""

    obs_dim: tuple[int, ...] = (17, 4, 40, 105, 348)
    """Observation dimensions; the first is what it is while another size grows, here and below."""
    members: tuple[int, ...] = (5, 1, 2, 10, 20)
    """Ensemble members."""
    n_train: tuple[int, ...] = (5000, 1000, 10_000, 100_000, 1_000_000)
    """Rows of a fit."""
    horizon: tuple[int, ...] = (20, 5, 10, 40)
    """Steps of a plan."""
    population: tuple[int, ...] = (80, 20, 40, 160, 320)
    """Candidates of a plan, in each of its iterations."""
    hidden: tuple[int, ...] = (200, 200)
    """Width of each hidden layer."""
    train_steps: int = 150
    """Gradient steps that are timed; what comes with every fit is told beside them."""
    plans: int = 20
    """Plans that are timed, after one to warm up."""
    repeats: int = 3
    """Processes that measure each row; the least of their times is told."""
    study: Path | None = None
    """A study's file (.toml): how long it takes on more and more machines, from the seconds of its rows in the folder
    rows/ beside it; cells that were not run take what their column takes a step elsewhere."""
    study_times: int = 1
    """The study so many times over, with other seeds."""
    nodes: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100)
    """Numbers of machines for --study."""
    cells_per_node: int = 8
    """Cells that a machine of --study runs at once."""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = ("obs_dim", "members", "n_train", "horizon", "population")
        self.require_at_least(1, *sizes, "hidden", "nodes", most=10**7)
        self.require_at_least(50, "n_train", most=10**8)
        for name in (*sizes, "nodes"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InvalidInputError(
                    f"{option_name(name)}: give at least one value, and none twice"
                )
        pairs = ((max(self.members), self.n_train[0]), (self.members[0], min(self.n_train)))
        for members, rows in pairs:
            if rows < ROWS_A_MEMBER * members:
                raise InvalidInputError(
                    f"--members, --n-train: {members} members need {ROWS_A_MEMBER * members} rows to hold some out; "
                    f"got {rows}"
                )
        self.require_at_least(
            1, "train_steps", "plans", "repeats", "cells_per_node", "study_times", most=10**6
        )
