"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from mbrl_bilevel.studies.arguments import RunArgs, naming
from mbrl_bilevel.studies.launchers import LauncherArgs

if TYPE_CHECKING:
    from mbrl_bilevel.training.settings import Schedule

#: ``--method`` was called ``--model`` once (``RunArgs.renamed``).
MODEL_IS_METHOD = {"model": "method"}


@dataclass(frozen=True, kw_only=True)
class OwnModuleArgs(RunArgs):
    """Of a run that can use what a module of the user's registers."""

    import_module: str | None = None
    """Module to import first; it registers environments, methods or sequences of your own."""

    def __post_init__(self) -> None:
        self._import_own()  # before anything is looked up by its name
        super().__post_init__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Where the options arrive in another process, the module is imported there as well."""
        self.__dict__.update(state)
        self._import_own()

    def _import_own(self) -> None:
        if self.import_module is not None:
            from envs.tasks.user_module import import_user_module

            import_user_module(self.import_module, f"--import-module {self.import_module!r}:")


@dataclass(frozen=True, kw_only=True)
class EnvironmentArgs(OwnModuleArgs):
    """Of a run that makes environments."""

    env_timeout: float | None = None
    """Seconds that one call of the environment may take; none: no limit."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.env_timeout is not None:
            self.require_positive("env_timeout")

    @property
    def making(self) -> dict[str, Any]:
        """What ``envs.make_env`` is told besides an environment's id."""
        return {"import_module": self.import_module, "timeout": self.env_timeout}


@dataclass(frozen=True, kw_only=True)
class EpisodeArgs(EnvironmentArgs):
    """Of a run that plays whole episodes."""

    max_episode_steps: int | None = None
    """Cut episodes here; none: where the environment does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_episode_steps is not None:
            self.require_at_least(1, "max_episode_steps")

    @property
    def making_shorter(self) -> dict[str, Any]:
        """The same, and to cut episodes where that was asked for."""
        limit = self.max_episode_steps
        return self.making if limit is None else self.making | {"max_episode_steps": limit}


@dataclass(frozen=True, kw_only=True)
class RepeatedArgs(LauncherArgs):
    """Of a run with repeats, which are cells (``mbrl_bilevel.studies.cells``)."""

    grows: ClassVar[tuple[str, ...]] = ("seeds",)

    seeds: int = 3
    """Repeats: --seed, --seed + 1, …"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "seeds", most=100_000)


@dataclass(frozen=True, kw_only=True)
class TableArgs(RunArgs):
    """Of a run that reads tables (``--csv``, ``envs.datasets.tables``)."""

    text: Literal["refuse", "one-hot"] = "refuse"
    """one-hot: a column of --csv with text becomes one column for each of its values."""
    missing: Literal["refuse", "drop", "fill"] = "refuse"
    """drop: leave out rows of --csv that lack a value; fill: take the column's median, and say where."""


@dataclass(frozen=True, kw_only=True)
class NetworkArgs(RunArgs):
    """Of a run that fits ensembles; a subclass may have other defaults."""

    members: int = 5
    """Ensemble members."""
    hidden: tuple[int, ...] = (200, 200)
    """Width of each hidden layer."""
    train_steps: int = 2000
    """Gradient steps of a fit at most; early stopping may end sooner."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "members", "hidden", most=100_000)
        self.require_at_least(1, "train_steps")


@dataclass(frozen=True, kw_only=True)
class FitArgs(NetworkArgs):
    """Of a run whose fits all have one schedule."""

    batch_size: int = 256
    """Rows of a minibatch, per member."""
    learning_rate: float = 1e-3
    """Adam's step size at the start of a fit's cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "batch_size")
        self.require_positive("learning_rate")

    def schedule_with(self, **tuned: Any) -> Schedule:
        """How long and how fast a model is trained; ``tuned`` values win over the options."""
        from mbrl_bilevel.training.settings import (
            Schedule,  # once options are read: it takes a second
        )

        options = {"batch_size": self.batch_size, "learning_rate": self.learning_rate}
        return Schedule(**{"steps": self.train_steps, **options, **tuned})


def require_methods(option: str, names: Iterable[str]) -> None:
    """Raises InvalidInputError, by the name of ``option``, for the first that is no method of
    ``mbrl_bilevel.training.methods``."""
    from mbrl_bilevel.training.methods import get_method  # once options are read: it takes a second

    with naming(option):
        for name in names:
            get_method(name)


def require_device(device: str) -> None:
    """Raises InvalidInputError for a ``--device`` that is not there."""
    from agents.common.device import chosen_device  # once options are read: it takes a second

    with naming("--device"):
        chosen_device(device)
