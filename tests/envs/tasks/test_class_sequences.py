"""Sequences of classification: their tasks part the rows, repeat by seed, and say what they claim."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits, load_iris

from envs.tasks.class_sequences import CLASS_SEQUENCES, ClassSequence, ClassTask
from mbrl_bilevel.base.errors import InvalidInputError


def made(name: str, seed: int = 0) -> list[ClassTask]:
    return list(CLASS_SEQUENCES[name].make(np.random.default_rng(seed)))


@pytest.mark.parametrize("name", CLASS_SEQUENCES)
def test_every_task_has_its_own_rows_and_parts_them(name: str) -> None:
    tasks, sequence = made(name), CLASS_SEQUENCES[name]
    assert len({task.name for task in tasks}) == len(tasks) >= 4
    for task, again in zip(tasks, made(name), strict=True):
        np.testing.assert_array_equal(task.x, again.x)
        assert set(task.y) <= set(range(sequence.classes))
        train, test = task.split(10**6, 10**6, seed=1)
        assert len(train.y) + len(test.y) == len(task.y)
        assert len(test.y) == pytest.approx(0.3 * len(task.y), abs=1)
        assert set(train.y) == set(test.y) == set(task.y)
        other = task.split(10**6, 10**6, seed=2)[0]
        assert not np.array_equal(train.x, other.x)
        few, some = task.split(20, 10, seed=1)
        assert (len(few.y), len(some.y)) == (20, 10)
        np.testing.assert_array_equal(few.x, train.x[:20])
    table = load_breast_cancer() if name.startswith("cancer") else load_digits()
    assert sum(len(task.y) for task in tasks) == len(table.target)


def test_two_digits_at_a_time() -> None:
    for k, (split, parity) in enumerate(
        zip(made("digits-split"), made("digits-parity"), strict=True)
    ):
        assert set(split.y) == {2 * k, 2 * k + 1}
        np.testing.assert_array_equal(parity.y, split.y % 2)
        np.testing.assert_array_equal(parity.x, split.x)


def test_images_are_turned_against_the_clock() -> None:
    upright = {row.tobytes() for row in load_digits().data}
    first, *_, last = made("digits-turned")
    assert all(row.tobytes() in upright for row in first.x)
    back = np.rot90(last.x.reshape(-1, 8, 8), -1, axes=(1, 2)).round().reshape(-1, 64)
    assert all(row.tobytes() in upright for row in np.ascontiguousarray(back))


def test_a_laboratory_moves_every_feature_by_one_bias() -> None:
    table = load_breast_cancer()
    known = {row.tobytes() for row in table.data}
    first, second, *_ = made("cancer-labs")
    assert all(row.tobytes() in known for row in first.x)
    bias = (second.x.mean(0) - table.data.mean(0)) / table.data.std(0)
    assert 0.5 < bias.std() < 2.0
    ratio = second.x.std(0) / table.data.std(0)  # moved, not stretched
    assert 0.5 < ratio.min() <= ratio.max() < 2.0
    assert not np.allclose(made("cancer-labs", 1)[1].x.mean(0), second.x.mean(0))


def test_a_user_adds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = load_iris(return_X_y=True)
    long = x[:, 2] > 3.0

    def make(random: np.random.Generator) -> list[ClassTask]:
        return [ClassTask("short", x[~long], y[~long]), ClassTask("long", x[long], y[long])]

    monkeypatch.setitem(CLASS_SEQUENCES, "iris", ClassSequence("shared", 3, make, "by petals"))
    assert [task.name for task in made("iris")] == ["short", "long"]


def test_a_class_of_one_row_cannot_be_parted() -> None:
    task = ClassTask("few", np.zeros((5, 1)), np.array([0, 0, 0, 0, 2]))
    with pytest.raises(InvalidInputError, match="two rows"):
        task.split(3, 2, 0)
    with pytest.raises(InvalidInputError, match="at least 1"):
        ClassTask("none", np.zeros((4, 1)), np.array([0, 0, 1, 1])).split(0, 2, 0)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((5, 1)), np.zeros(3, dtype=np.int64), "x must be"),
        (np.zeros(5), np.zeros(5, dtype=np.int64), "x must be"),
        (np.zeros((5, 1)), np.zeros(5), "whole numbers"),
        (np.full((5, 1), np.nan), np.zeros(5, dtype=np.int64), "NaN"),
    ],
)
def test_rows_that_cannot_be_learned_are_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=f"task 'mine': .*{message}"):
        ClassTask("mine", x, y)


@pytest.mark.parametrize(
    ("tasks", "classes", "message"),
    [
        ([], 2, "needs tasks"),
        ([(3, [0, 1])], 1, "two classes"),
        ([(3, [0, 1]), (2, [0, 1])], 2, "'1': it has 2 features"),
        ([(3, [0, 7])], 2, "classes 0 to 1"),
        ([(3, [-1, 0])], 2, "classes 0 to 1"),
    ],
)
def test_tasks_that_do_not_fit_each_other_are_refused(
    tasks: Any, classes: int, message: str
) -> None:
    made = [
        ClassTask(str(i), np.zeros((len(y), width)), np.array(y))
        for i, (width, y) in enumerate(tasks)
    ]
    sequence = ClassSequence("shared", classes, lambda random: made, "mine")
    with pytest.raises(InvalidInputError, match=message):
        sequence.tasks(np.random.default_rng(0))
