"""How good a classifier's probabilities are: likelihood, Brier score, expected calibration error.

ECE = Σ_b (n_b/n)·|accuracy_b − confidence_b| over bins of equal width of the largest probability
(Guo et al. 2017, eq. 3); Brier = mean ‖p − onehot(y)‖² (Brier 1950). All but ECE are scikit-learn's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn import metrics

from mbrl_bilevel.base.errors import InvalidInputError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

#: Probabilities below this are taken for this in the likelihood: a sure error costs 27.6 nats.
_LEAST_PROBABILITY = 1e-12


@dataclass(frozen=True)
class ClassScores:
    """Test scores of a classifier. ``count``, ``confidence`` and ``correct`` are those of each bin
    [bins]: rows, their mean largest probability, the share that is right (0 where there are none)."""

    accuracy: float
    balanced_accuracy: float
    nll: float
    ece: float
    brier: float
    count: tuple[int, ...]
    confidence: tuple[float, ...]
    correct: tuple[float, ...]


def class_scores(probs: FloatArray, y: IntArray, bins: int = 15) -> ClassScores:
    """Scores of ``probs`` [N, C], rows summing to one, against the classes ``y`` [N] in 0 … C − 1.

    Balanced accuracy is the mean recall over the classes that are in y. Raises InvalidInputError for
    other shapes, rows that are no probabilities, or no rows.
    """
    if probs.ndim != 2 or y.shape != probs.shape[:1] or len(y) == 0 or bins < 1:
        raise InvalidInputError(
            f"class_scores needs probs [N, C], y [N] with N >= 1 and bins >= 1; got "
            f"{probs.shape}, {y.shape} and {bins}"
        )
    # NaN compares false, so it is caught as well.
    if not (np.abs(probs.sum(1) - 1.0) < 1e-4).all() or not (probs >= 0.0).all():
        raise InvalidInputError("probs: every row must be probabilities that sum to one")
    answers, largest = probs.argmax(1), probs.max(1)
    right = answers == y
    cell = np.minimum((largest * bins).astype(np.int64), bins - 1)
    count = np.bincount(cell, minlength=bins)
    shares = np.maximum(count, 1)
    confidence = np.bincount(cell, largest, bins) / shares
    correct = np.bincount(cell, right, bins) / shares
    classes = np.arange(probs.shape[1])
    whole = probs / probs.sum(1, keepdims=True)  # scikit-learn asks for it to the last digits
    likely = np.maximum(whole, _LEAST_PROBABILITY)
    return ClassScores(
        accuracy=float(metrics.accuracy_score(y, answers)),
        balanced_accuracy=float(
            metrics.recall_score(y, answers, labels=np.unique(y), average="macro")
        ),
        nll=float(metrics.log_loss(y, likely, labels=classes)),
        ece=float((count / len(y) * np.abs(correct - confidence)).sum()),
        brier=float(metrics.brier_score_loss(y, whole, labels=classes, scale_by_half=False)),
        count=tuple(count.tolist()),
        confidence=tuple(confidence.tolist()),
        correct=tuple(correct.tolist()),
    )
