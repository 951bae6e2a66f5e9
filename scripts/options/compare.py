"""The options of compare: methods, sizes, and where the rows come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.arguments import option_name
from options.shared import (
    EnvironmentArgs,
    FitArgs,
    RepeatedArgs,
    TableArgs,
    require_device,
    require_methods,
)
from options.sources import Source

if TYPE_CHECKING:
    from mbrl_bilevel.training.settings import Schedule


@dataclass(frozen=True, kw_only=True)
class Args(EnvironmentArgs, RepeatedArgs, FitArgs, TableArgs):
    """Options of compare."""

    env_id: tuple[str, ...] = ("HalfCheetah-v5",)
    """Gymnasium environments with Box observations and actions; their data are collected."""
    distractor: str | None = None
    """Append observations that are not the task's to those of --env-id: another environment, whose actions
    are random and not seen, or noise:8 or background:8 for 8 channels."""
    minari: tuple[str, ...] = ()
    """Minari data sets to take the steps from, instead of --env-id."""
    npz: tuple[Path, ...] = ()
    """Logged steps (obs, action, next_obs, reward, terminated, truncated), instead of --env-id."""
    csv: tuple[Path, ...] = ()
    """Tables (.csv, .csv.gz, .npz) to fit --target in, instead of --env-id."""
    target: tuple[str, ...] = ()
    """Columns of --csv to predict from all the others; of several tables, one for each or one for all."""
    noise: tuple[Literal["none", "action", "heteroscedastic", "two-mode", "outliers"], ...] = (
        "none",
    )
    """Known noise to add to steps, each kind a data set of its own: none, action, heteroscedastic,
    two-mode, outliers."""
    shift: Literal["none", "speed"] = "none"
    """speed: train on the slower half of the stretches of --segment steps, test on the fastest quarter."""
    test_minari: tuple[str, ...] = ()
    """Another policy's data to test on, one data set for each of --minari."""
    outer_minari: tuple[str, ...] = ()
    """Another policy's data for the outer level (for training, without one), one for each of --minari."""
    settings: Path | None = None
    """metrics.json of tune: each method is trained with the best settings found there."""
    methods: tuple[str, ...] = ("bilevel", "nll", "mse")
    """How the models are trained: bilevel, bilevel-constant,
    bilevel-k-step, bilevel-mixture, bilevel-return, bilevel-look-ahead, nll,
    mse, mse-network, beta-nll, beta-nll-1, faithful, nll-mixture, k-step, paper, paper-exponential."""
    n_train: tuple[int, ...] = (1000,)
    """Numbers of training transitions, each at least 50."""
    segment: int = 50
    """Training data is taken in stretches of at most this many steps, from many episodes."""
    n_test: int = 4000
    """Test transitions at most, from whole episodes of their own; at most a fifth of a table."""
    horizons: tuple[int, ...] = (1, 5, 20, 50)
    """Steps ahead of the open-loop test; null where no test episode is long enough."""
    return_steps: int = 10
    """Steps of the open-loop return that return_error is of; fewer where test episodes are shorter."""
    side_by_side: int = 1
    """Repeats that are fitted at once, as one larger ensemble, for a GPU (on a CPU large networks lose by it); the
    rows are the same but for rounding."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where models are fitted (auto: on a CUDA device where there is one); they are judged, and planned with, on the CPU."""
    plan_episodes: int = 0
    """Episodes to plan with each model; their mean is the row's return."""
    plan_env: str | None = None
    """Environment to plan in with models of --minari data; those of --env-id plan in their own."""
    plan_steps: int | None = None
    """Cut the planned episodes here; none: where the environment does."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "segment", "n_test", "return_steps")
        self.require_at_least(1, "side_by_side", most=1000)
        self.require_at_least(1, "horizons", most=100_000)
        self.require_at_least(0, "plan_episodes", most=100_000)
        for name in ("methods", "n_train", "horizons", "hidden"):
            values, option = getattr(self, name), option_name(name)
            if not values or (name != "hidden" and len(set(values)) < len(values)):
                raise InvalidInputError(f"{option}: give at least one value, and none twice")
        self.require_at_least(50, "n_train")
        require_methods("--methods", self.methods)
        require_device(self.device)
        self._check_sources()
        self.schedule(self.methods[0])

    def _check_sources(self) -> None:
        if bool(self.csv) + bool(self.minari) + bool(self.npz) > 1:
            raise InvalidInputError("--csv, --minari and --npz: give one kind of data")
        if self.distractor is not None and (self.csv or self.minari or self.npz):
            raise InvalidInputError("--distractor is for environments: use it with --env-id")
        if not self.csv and (self.text, self.missing) != ("refuse", "refuse"):
            raise InvalidInputError("--text and --missing are for tables: give --csv")
        if bool(self.csv) != bool(self.target):
            raise InvalidInputError("--csv and --target go together: name the columns to predict")
        if len(self.csv) > 1 and len(self.target) not in (1, len(self.csv)):
            raise InvalidInputError(
                f"--target: give one column for all {len(self.csv)} tables, or one for each; "
                f"got {len(self.target)}"
            )
        if self.csv and (self.noise != ("none",) or self.shift != "none"):
            raise InvalidInputError("--noise and --shift are for steps, not for tables")
        for name in ("test_minari", "outer_minari"):
            if getattr(self, name) and len(getattr(self, name)) != len(self.minari):
                raise InvalidInputError(f"{option_name(name)}: give one for each of --minari")
        if self.shift != "none" and self.test_minari:
            raise InvalidInputError("--shift and --test-minari: give one of them")
        if self.plan_episodes and (self.csv or self.npz or self.noise != ("none",)):
            raise InvalidInputError("--plan-episodes needs an environment to plan in: use --env-id")
        if self.plan_steps is not None:
            self.require_at_least(1, "plan_steps")
            if not self.plan_episodes:
                raise InvalidInputError(
                    "--plan-steps cuts the episodes of --plan-episodes: give both"
                )
        if bool(self.plan_env) != bool(self.plan_episodes and self.minari):
            raise InvalidInputError(
                "--plan-env names the environment for --plan-episodes with --minari: give all three"
            )
        names = [source.name for source in self.sources]
        if not names or len(set(names)) < len(names):
            raise InvalidInputError(
                "--env-id, --minari, --npz, --csv, --noise: give at least one, and none twice; got "
                + (", ".join(names) or "none")
            )

    def schedule(self, method: str) -> Schedule:
        """How long and how fast models are trained by ``method``."""
        return self.schedule_with(**self.tuned.get(method, {}))

    @property
    def tuned(self) -> Mapping[str, Mapping[str, Any]]:
        """The settings of --settings, method by method."""
        from work.tuned_settings import read_settings

        return {} if self.settings is None else read_settings(self.settings)

    @property
    def sources(self) -> list[Source]:
        """The data sets of the rows."""
        if self.csv:
            single = len(self.csv) == 1
            targets = [self.target] if single else [(column,) for column in self.target]
            targets = targets * len(self.csv) if len(targets) == 1 else targets
            return [
                Source(
                    path.name.partition(".")[0],
                    csv=path,
                    target=target,
                    text=self.text,
                    missing=self.missing,
                )
                for path, target in zip(self.csv, targets, strict=True)
            ]
        found = [Source(path.stem, npz=path, speed=self.shift == "speed") for path in self.npz]
        found = found or [
            Source(
                name if self.distractor is None else f"{name}+{self.distractor}",
                distractor=self.distractor,
                minari=name if self.minari else None,
                env_id=None if self.minari else name,
                speed=self.shift == "speed",
                test_minari=self.test_minari[i] if self.test_minari else None,
                outer_minari=self.outer_minari[i] if self.outer_minari else None,
            )
            for i, name in enumerate(self.minari or self.env_id)
        ]
        return [
            replace(s, noise=noise, name=s.name if noise == "none" else f"{s.name}+{noise}")
            for s in found
            for noise in self.noise
        ]

    def source(self, dataset: str) -> Source:
        """The one of that name."""
        return next(source for source in self.sources if source.name == dataset)
