from __future__ import annotations

import numpy as np
import pytest

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.evaluation.class_scores import class_scores


def drawn(rows: int = 500, power: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Classes drawn from probabilities, of which a power is then handed out."""
    random = np.random.default_rng(0)
    probs = random.dirichlet([0.5, 1.0, 1.5], rows)
    y = np.array([random.choice(3, p=p) for p in probs])
    other = probs**power
    return other / other.sum(1, keepdims=True), y


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("missing", [False, True])
def test_scores_by_their_formulas(missing: bool) -> None:
    probs, y = drawn(power=2.0)
    if missing:  # a class that is answered, but never true
        probs, y = probs[y != 2], y[y != 2]
    found = class_scores(probs, y)
    right = probs.argmax(1) == y
    assert found.accuracy == pytest.approx(right.mean())
    recall = [right[y == c].mean() for c in range(3) if (y == c).any()]
    assert found.balanced_accuracy == pytest.approx(np.mean(recall))
    assert found.nll == pytest.approx(-np.log(probs[np.arange(len(y)), y]).mean())
    assert found.brier == pytest.approx(np.mean(np.sum((probs - np.eye(3)[y]) ** 2, 1)))


def test_expected_calibration_error_by_hand() -> None:
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.5, 0.5]])
    found = class_scores(probs, np.array([0, 1, 1, 0]), bins=10)
    # .9: half right; .6 and .5 are each right.
    assert found.ece == pytest.approx((2 * 0.4 + 0.4 + 0.5) / 4)
    assert found.count[9] == 2
    assert found.correct[9] == pytest.approx(0.5)
    assert found.confidence[9] == pytest.approx(0.9)


def test_it_tells_calibrated_from_overconfident() -> None:
    calibrated, sharp = (class_scores(*drawn(20_000, power)) for power in (1.0, 3.0))
    assert calibrated.ece < 0.02
    assert sharp.ece > 0.1


def test_a_sure_error_is_finite() -> None:
    found = class_scores(np.array([[1.0, 0.0]]), np.array([1]))
    assert found.nll == pytest.approx(-np.log(1e-12))


@pytest.mark.parametrize(
    ("probs", "y"),
    [
        (np.full((2, 2), 0.5), np.array([0])),
        (np.full((2, 2), 0.4), np.array([0, 1])),
        (np.array([[1.5, -0.5]]), np.array([0])),
        (np.array([[np.nan, np.nan]]), np.array([0])),
        (np.empty((0, 2)), np.empty(0, dtype=int)),
    ],
)
def test_bad_input_is_refused(probs: np.ndarray, y: np.ndarray) -> None:
    with pytest.raises(InvalidInputError):
        class_scores(probs, y)
