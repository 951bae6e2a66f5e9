"""Where the steps or rows of a data set come from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from envs.datasets.noise import Noise
    from envs.datasets.tables import Missing, Text


@dataclass(frozen=True)
class Source:
    """Where the rows of the data set ``name`` come from: one of an environment's id, a Minari id, an npz of
    logged steps or a table; and what is done to them. ``distractor``: what is appended to the environment."""

    name: str
    env_id: str | None = None
    minari: str | None = None
    csv: Path | None = None
    target: tuple[str, ...] = ()
    text: Text = "refuse"
    missing: Missing = "refuse"
    npz: Path | None = None
    distractor: str | None = None
    noise: Noise = "none"
    speed: bool = False
    test_minari: str | None = None
    outer_minari: str | None = None
