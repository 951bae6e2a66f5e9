"""The saved agents of a run: the newest few and the best one, so that no damage to one loses all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mbrl_bilevel.base.atomic import write_atomically


class Shelf:
    """``folder``/agent-STEP.safetensors, of which ``keep`` stay, and best.safetensors."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep

    @property
    def best(self) -> Path:
        """A copy of the agent with the highest return so far."""
        return self.folder / "best.safetensors"

    def place(self, step: int) -> Path:
        """Where the agent of that step is saved."""
        return self.folder / f"agent-{step}.safetensors"

    def newest_first(self) -> list[Path]:
        """The saved agents, by step."""
        steps = [
            path.stem.removeprefix("agent-") for path in self.folder.glob("agent-*.safetensors")
        ]
        return [self.place(step) for step in sorted(map(int, filter(str.isdecimal, steps)))[::-1]]

    def tidy(self, returns: Mapping[int, float]) -> None:
        """Copy the best by ``returns`` (step -> mean return), then drop all but the newest.

        In this order, and the same however often it is called: a kill in between loses nothing.
        """
        if returns:
            candidate = self.place(max(returns, key=lambda step: (returns[step], -step)))
            if candidate.exists():
                write_atomically(self.best, candidate.read_bytes())
        for old in self.newest_first()[self._keep :]:
            old.unlink()
