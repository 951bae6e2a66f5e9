"""Sequences of classification tasks from scikit-learn's tables: new classes in turn, or new kinds of input.

A new one is a few lines: ``CLASS_SEQUENCES["mine"] = ClassSequence("shared", 3, make, "what it is")``, with
``make(random)`` giving its ``ClassTask``s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.ndimage import rotate
from sklearn import datasets
from sklearn.model_selection import train_test_split

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.data.splits import IntArray

Array = npt.NDArray[np.float64]

#: The share of a task's rows that is tested on.
_TEST = 0.3


@dataclass(frozen=True)
class ClassTask:
    """Rows ``x`` [N, X] with classes ``y`` [N] in 0 … C − 1."""

    name: str
    x: Array
    y: IntArray

    def __post_init__(self) -> None:
        shapes = np.shape(self.x), np.shape(self.y)
        whole = np.issubdtype(np.asarray(self.y).dtype, np.integer)
        if len(shapes[0]) != 2 or shapes[1] != shapes[0][:1] or not whole:
            raise InvalidInputError(
                f"task {self.name!r}: x must be [N, X] and y [N] whole numbers; got "
                f"{shapes[0]}, {shapes[1]} of {np.asarray(self.y).dtype}"
            )
        if not np.isfinite(self.x).all():
            raise InvalidInputError(
                f"task {self.name!r}: x holds NaN or infinity; take those rows out"
            )

    def split(self, rows: int, test_rows: int, seed: int) -> tuple[ClassTask, ClassTask]:
        """At most ``rows`` to train on and ``test_rows`` to test on, three tenths of all at most, with
        the same shares of the classes; always the same for a seed.

        Raises InvalidInputError if a class has too few rows for that.
        """
        least = int(np.bincount(self.y)[np.unique(self.y)].min())
        if min(rows, test_rows) < 1 or least < 2:
            raise InvalidInputError(
                f"task {self.name!r}: rows and test_rows must be at least 1, and a class must have two "
                f"rows at least; got {rows}, {test_rows} and {least}"
            )
        train, test = train_test_split(
            np.arange(len(self.y)), test_size=_TEST, stratify=self.y, random_state=seed
        )
        return self._taken(train[:rows]), self._taken(test[:test_rows])

    def _taken(self, rows: IntArray) -> ClassTask:
        return replace(self, x=self.x[rows], y=self.y[rows])


@dataclass(frozen=True)
class ClassSequence:
    """Tasks over the same ``classes``, in their order, by ``make(random)``, which a repeat calls with draws
    of its own. ``kind`` "shared": one rule holds for all, so that no forgetting is needed; "changing":
    what was true of an input in an earlier task need not be in a later one."""

    kind: Literal["shared", "changing"]
    classes: int
    make: Callable[[np.random.Generator], Sequence[ClassTask]]
    summary: str

    def tasks(self, random: np.random.Generator) -> list[ClassTask]:
        """What ``make`` gives. Raises InvalidInputError for no tasks, another number of features from
        task to task, or a class that is not one of ``classes``."""
        found = list(self.make(random))
        if not found or self.classes < 2:
            raise InvalidInputError(
                f"a sequence needs tasks and two classes or more; got {len(found)} and {self.classes}"
            )
        for task in found:
            if task.x.shape[1] != found[0].x.shape[1]:
                raise InvalidInputError(
                    f"task {task.name!r}: it has {task.x.shape[1]} features, the first task "
                    f"{found[0].x.shape[1]}; one model learns them all"
                )
            if not len(task.y) or task.y.min() < 0 or task.y.max() >= self.classes:
                raise InvalidInputError(
                    f"task {task.name!r}: y must have rows, of classes 0 to {self.classes - 1}"
                )
        return found


def _digits() -> tuple[Array, IntArray]:
    """8 x 8 images [N, 64] and what they show."""
    found: Any = datasets.load_digits()
    return found.data.astype(np.float64), found.target.astype(np.int64)


def _pairs(random: np.random.Generator) -> list[ClassTask]:
    x, y = _digits()
    pairs = [(x[y // 2 == k], y[y // 2 == k]) for k in range(5)]
    return [ClassTask(f"{2 * k} {2 * k + 1}", *pair) for k, pair in enumerate(pairs)]


def _odd(random: np.random.Generator) -> list[ClassTask]:
    return [replace(task, y=task.y % 2) for task in _pairs(random)]


def _turned(random: np.random.Generator) -> list[ClassTask]:
    """Each image is in one task only."""
    x, y = _digits()
    tasks, angles = random.permutation(len(y)) % 4, (0, 30, 60, 90)
    found = []
    for k, angle in enumerate(angles):
        images = x[tasks == k].reshape(-1, 8, 8)
        turned = rotate(images, angle, axes=(2, 1), reshape=False, order=1)
        found.append(ClassTask(f"{angle}°", turned.reshape(-1, 64), y[tasks == k]))
    return found


def _laboratories(random: np.random.Generator) -> list[ClassTask]:
    """Each patient is in one of them only; the first measures as the table says."""
    table: Any = datasets.load_breast_cancer()
    x, y = table.data.astype(np.float64), table.target.astype(np.int64)
    where, spread = random.permutation(len(y)) % 4, x.std(0)
    bias = [random.standard_normal(x.shape[1]) * min(k, 1) for k in range(4)]
    return [
        ClassTask(f"lab {k}", x[where == k] + bias[k] * spread, y[where == k]) for k in range(4)
    ]


CLASS_SEQUENCES: dict[str, ClassSequence] = {
    "digits-split": ClassSequence("shared", 10, _pairs, "two new digits of ten at a time"),
    "digits-parity": ClassSequence("shared", 2, _odd, "odd or even, two new digits at a time"),
    "digits-turned": ClassSequence("shared", 10, _turned, "images turned further and further"),
    "cancer-labs": ClassSequence(
        "changing",
        2,
        _laboratories,
        "four laboratories that measure each feature with another bias",
    ),
}
