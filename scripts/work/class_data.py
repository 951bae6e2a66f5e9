"""Tables with a class to predict: sets by name, or CSV files; split afresh for a seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from options.classify import SETS
from sklearn import datasets
from sklearn.model_selection import train_test_split

from envs.datasets.noisy_tables import NOISY_TABLES, noisy_table
from envs.datasets.tables import Missing, Text, load_table
from mbrl_bilevel.base.errors import InvalidInputError

#: The share of a table that is trained on where no number of rows is asked for.
_SHARE = 0.8


@dataclass(frozen=True)
class Classes:
    """``x`` [N, X] and classes ``y`` [N] in 0 … len(labels) − 1."""

    x: npt.NDArray[np.float64]
    y: npt.NDArray[np.int64]
    labels: tuple[str, ...]


@lru_cache(maxsize=8)
def load(
    name: str, csv: Path | None, target: str, text: Text = "refuse", missing: Missing = "refuse"
) -> Classes:
    """The named set, or the table in ``csv``. Raises InvalidInputError for what cannot be read."""
    if csv is not None:
        table = load_table(csv, target, kind="classification", text=text, missing=missing)
        return Classes(table.x.astype(np.float64), table.y, tuple(map(str, table.classes)))
    if name in NOISY_TABLES:
        x, y, probs = noisy_table(name)
        return Classes(x, y, tuple(map(str, range(probs.shape[1]))))
    if name not in SETS:
        known = ", ".join((*SETS, *NOISY_TABLES))
        raise InvalidInputError(f"--data: no set {name!r}; choose from {known}, or --csv")
    found = getattr(datasets, f"load_{name}")()
    labels = tuple(map(str, found.target_names))
    return Classes(found.data.astype(np.float64), found.target.astype(np.int64), labels)


def split(data: Classes, n_train: int, n_test: int, seed: int) -> tuple[Classes, Classes]:
    """``n_train`` rows (0: four fifths) and at most ``n_test`` of the others, with the same shares of
    the classes. Raises InvalidInputError if there are not so many rows."""
    rows, classes = len(data.y), len(data.labels)
    wanted = n_train or int(_SHARE * rows)
    if wanted < 2 * classes or wanted > rows - classes:
        raise InvalidInputError(
            f"--n-train: {wanted} of {rows} rows do not leave {classes} classes to train and test on"
        )
    if np.bincount(data.y).min() < 2:
        raise InvalidInputError("a class has one row only: drop it, or join it with another")
    train, test = train_test_split(
        np.arange(rows), train_size=wanted, stratify=data.y, random_state=seed
    )
    return _rows(data, train), _rows(data, test[:n_test])


def _rows(data: Classes, rows: npt.NDArray[np.int64]) -> Classes:
    return Classes(data.x[rows], data.y[rows], data.labels)
