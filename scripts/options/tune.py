"""The options of tune."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.arguments import option_name
from mbrl_bilevel.studies.launchers import LauncherArgs
from options.shared import EnvironmentArgs, NetworkArgs, require_methods
from options.sources import Source


@dataclass(frozen=True, kw_only=True)
class Args(EnvironmentArgs, NetworkArgs, LauncherArgs):
    """Options of tune."""

    renamed: ClassVar[Mapping[str, str]] = {"repeats": "seeds"}

    methods: tuple[str, ...] = ("bilevel", "nll", "mse")
    """How the models are trained; every method gets as many trials."""
    env_id: tuple[str, ...] = ("Swimmer-v5", "Reacher-v5")
    """Gymnasium environments to tune on: others than those that are reported."""
    minari: tuple[str, ...] = ()
    """Minari data sets to tune on, instead of --env-id."""
    trials: int = 16
    """Trials of each method."""
    seeds: int = 1
    """Seeds that a trial's value is the mean over: --seed, --seed + 1, …; each has new data, a new split and a new
    initialisation."""
    storage: str | None = None
    """Optuna's storage, for one tuning by several processes or machines: the path of a journal file on a disk that
    they share, or the URL of a database, such as sqlite:///tuning.db. --trials is then the number of all
    together."""
    n_train: int = 1000
    """Training transitions of each data set."""
    n_test: int = 2000
    """Transitions of other episodes that a trial is judged on."""
    segment: int = 50
    """Training data is taken in stretches of at most this many steps, from many episodes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "segment", "n_test")
        self.require_at_least(1, "trials", "seeds", most=100_000)
        self.require_at_least(50, "n_train")
        for name in ("methods", "env_id"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise InvalidInputError(
                    f"{option_name(name)}: give at least one value, and none twice"
                )
        require_methods("--methods", self.methods)

    @property
    def sources(self) -> list[Source]:
        """The data sets that a trial is judged on."""
        if self.minari:
            return [Source(name, minari=name) for name in self.minari]
        return [Source(name, env_id=name) for name in self.env_id]
