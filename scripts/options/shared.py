"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mbrl_bilevel.studies.arguments import RunArgs, naming


@dataclass(frozen=True, kw_only=True)
class EnvironmentArgs(RunArgs):
    """Of a run that makes environments."""

    import_module: str | None = None
    """Module to import first; it registers an environment of your own."""
    env_timeout: float | None = None
    """Seconds that one call of the environment may take; none: no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.env_timeout is not None:
            self.require_positive("env_timeout")


@dataclass(frozen=True, kw_only=True)
class RepeatedArgs(RunArgs):
    """Of a run with repeats, which are cells (``mbrl_bilevel.studies.cells``)."""

    seeds: int = 3
    """Repeats: --seed, --seed + 1, …"""
    jobs: int = 1
    """Processes, each with one thread; the rows are the same whatever their number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "seeds", "jobs", most=100_000)


def require_methods(option: str, names: Iterable[str]) -> None:
    """Raises InvalidInputError, by the name of ``option``, for the first that is no method of
    ``mbrl_bilevel.training.methods``."""
    from mbrl_bilevel.training.methods import get_method  # once options are read: it takes a second

    with naming(option):
        for name in names:
            get_method(name)


def require_device(device: str) -> None:
    """Raises InvalidInputError for a ``--device`` that is not there."""
    from agents.common.device import planning_device  # once options are read: it takes a second

    with naming("--device"):
        planning_device(device)
