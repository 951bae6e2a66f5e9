"""The options of bench."""

from __future__ import annotations

from dataclasses import dataclass

from bench_rows import ROWS

from mbrl_bilevel.base.errors import look_up
from mbrl_bilevel.studies.arguments import RunArgs


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of bench."""

    only: tuple[str, ...] = tuple(ROWS)
    """The rows to measure; those beside other libraries need what ``make peers`` installs."""
    repeats: int = 20
    """Timed calls of each side; of train-bilevel, where a call takes long, at most 5."""
    quick: bool = False
    """Tiny sizes, to see that it runs: the times then mean nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "repeats")
        for name in self.only:
            look_up(ROWS, name, "--only: unknown row")
