"""The options of enjoy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from mbrl_bilevel.base.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class Args:
    """Options of enjoy."""

    file: tyro.conf.Positional[Path]
    """A run folder of train, whose best agent is taken, or the file of an agent that train or save() wrote."""
    env_id: str | None = None
    """Gymnasium environment; none: that of the run, or the one that the file names."""
    import_module: str | None = None
    """Module to import first; it registers environments of your own. None: that of the run."""
    termination: str | None = None
    """The rule that the agent was trained with, module:function; none: that of the run; standard tasks have theirs."""
    reward: str | None = None
    """Likewise: known, approximate, or module:function; none: that of the run."""
    out: Path | None = None
    """The video to write; none: beside the agent's file, named after it."""
    steps: int = 200
    """Steps of the film at most."""
    ahead: int = 25
    """Every so many steps the model starts anew from what is observed."""
    seed: int = 0
    """Seed of the episode."""

    def __post_init__(self) -> None:
        for name in ("steps", "ahead"):
            if not 1 <= getattr(self, name) <= 100_000:
                raise InvalidInputError(
                    f"--{name} must be at least 1 and at most 100,000; got {getattr(self, name)}"
                )
        if not 0 <= self.seed < 2**31:
            raise InvalidInputError(f"--seed must be 0 or more and below 2^31; got {self.seed}")
        if self.out is not None and self.out.suffix != ".mp4":
            raise InvalidInputError(f"--out: give a file that ends in .mp4; got {self.out}")
