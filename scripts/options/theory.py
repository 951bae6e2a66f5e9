"""The options of theory."""

from __future__ import annotations

from dataclasses import dataclass

from mbrl_bilevel.studies.arguments import RunArgs


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of theory."""

    n: int = 20_000
    """Rows of the inner sample, and as many of the outer one."""
    dims: tuple[int, ...] = (1, 2, 10)
    """Target dimensions in which U* is recovered."""
    epochs: int = 30
    """Passes over the inner sample in the moment-matching curves."""
    repeats: int = 3
    """Data sets and initialisations behind each moment-matching curve."""
    quick: bool = False
    """A small part of everything, to see that it runs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(100, "n")
        self.require_at_least(1, "epochs", "repeats", "dims", most=1000)
