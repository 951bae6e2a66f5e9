"""The options of classify."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.arguments import naming, option_name
from options.shared import NetworkArgs, OwnModuleArgs, RepeatedArgs, TableArgs

#: scikit-learn's own sets.
SETS = ("wine", "iris", "breast_cancer", "digits")
#: Outside references, at scikit-learn's own settings.
REFERENCES = ("logistic-regression", "logistic-regression-balanced", "hist-gradient-boosting")


@dataclass(frozen=True, kw_only=True)
class Args(OwnModuleArgs, RepeatedArgs, NetworkArgs, TableArgs):
    """Options of classify."""

    data: tuple[str, ...] = ()
    """scikit-learn's own sets: wine, iris, breast_cancer, digits (all of them without --csv); and tables of 8000
    rows drawn from known probabilities: noisy (six classes), noisy-many (20), noisy-rare (two rare ones of
    three)."""
    csv: tuple[Path, ...] = ()
    """Tables (.csv, .csv.gz, .npz) to classify."""
    target: str = "target"
    """The column of --csv that holds the class."""
    methods: tuple[str, ...] = (
        "bilevel",
        "nll",
        "label-smoothing",
        "temperature-scaling",
        "logistic-regression",
        "hist-gradient-boosting",
    )
    """How the classifiers are trained: bilevel, bilevel-bounded, bilevel-matrix, bilevel-lambda, nll,
    temperature-scaling, label-smoothing, smoothing-temperature, focal, pg-identity, pg-beta; and
    outside references: logistic-regression, logistic-regression-balanced, hist-gradient-boosting."""
    objective: str = "nll"
    """What the outer level wants: nll, balanced_accuracy, or costs as rows y of answers ŷ, such as
    "0,1;5,0". Methods without an outer level, and references, go on wanting likelihood."""
    n_train: tuple[int, ...] = (0,)
    """Numbers of training rows; 0 means four fifths of the table."""
    n_test: int = 3000
    """Test rows at most, of those not trained on."""
    members: int = 20
    """Ensemble members; of each five, each holds out another fifth of the rows."""
    hidden: tuple[int, ...] = (64,)
    train_steps: int = 600
    batch_size: int = 64
    """Rows of a minibatch, per member."""
    learning_rate: tuple[float, ...] = (3e-3,)
    """Adam's step sizes at the start of the cosine; several make a figure of their range."""

    def __post_init__(self) -> None:
        super().__post_init__()
        from mbrl_bilevel.training.class_methods import get_class_method  # they bring in PyTorch
        from mbrl_bilevel.training.settings import Schedule

        self.require_at_least(1, "batch_size", "n_test")
        self.require_at_least(0, "n_train")
        for name in ("methods", "n_train", "learning_rate"):
            values, option = getattr(self, name), option_name(name)
            if not values or len(set(values)) < len(values):
                raise InvalidInputError(f"{option}: give at least one value, and none twice")
        with naming("--methods"):
            for method in self.methods:
                if method not in REFERENCES:
                    get_class_method(method)
        if len(set(self.datasets)) < len(self.datasets):
            raise InvalidInputError("--data, --csv: two tables have the same name; rename one")
        for rate in self.learning_rate:
            Schedule(learning_rate=rate)
        wanted(self.objective)

    def source(self, dataset: str) -> Path | None:
        """The table of that name; None for scikit-learn's own."""
        return next((path for path in self.csv if _name(path) == dataset), None)

    @property
    def datasets(self) -> tuple[str, ...]:
        """The names of the data in the rows."""
        return (*self.data, *map(_name, self.csv)) or SETS


def _name(path: Path) -> str:
    return path.name.partition(".")[0]


def wanted(objective: str) -> Any:
    """A name, or the cost matrix that ``objective`` spells. Raises InvalidInputError."""
    if objective in ("nll", "balanced_accuracy"):
        return objective
    try:
        return [[float(cost) for cost in row.split(",")] for row in objective.split(";")]
    except ValueError:
        raise InvalidInputError(
            f'--objective must be nll, balanced_accuracy or costs like "0,1;5,0"; got {objective!r}'
        ) from None
