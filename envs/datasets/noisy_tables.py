"""Tables whose classes are drawn from known probabilities, several of them likely at each x.

p(c|x) = softmax_c(size·tanh(xW) + offset), x ~ N(0, I₈), W ~ ½·N(0, I): the noise that easy tables lack.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mbrl_bilevel.base.errors import look_up

FloatArray = npt.NDArray[np.float64]

_FEATURES = 8


@dataclass(frozen=True)
class NoisyTable:
    """``offset`` of each class's score, the larger the more frequent; ``size`` of what x does to the scores;
    ``seed`` of W and of the rows."""

    offset: tuple[float, ...]
    size: float
    seed: int

    def draw(self, rows: int) -> tuple[FloatArray, npt.NDArray[np.int64], FloatArray]:
        """x [N, 8], the classes y [N] drawn at it, and the probabilities [N, C] they were drawn from."""
        random = np.random.default_rng(self.seed)
        weight = 0.5 * random.standard_normal((_FEATURES, len(self.offset)))
        x = random.standard_normal((rows, _FEATURES))
        score = np.exp(self.size * np.tanh(x @ weight) + np.array(self.offset))
        probs = score / score.sum(1, keepdims=True)
        y = (probs.cumsum(1) < random.random((rows, 1))).sum(1)
        return x, np.minimum(y, len(self.offset) - 1), probs


#: By name: two frequent classes and four rarer ones, many classes, two rare classes beside one.
NOISY_TABLES = {
    "noisy": NoisyTable((2.0, 1.8, 0.0, -1.0, -2.0, -3.0), 1.2, 0),
    "noisy-many": NoisyTable(tuple(np.linspace(1.5, -1.5, 20).tolist()), 2.0, 1),
    "noisy-rare": NoisyTable((3.5, 0.0, 0.0), 1.5, 2),
}


def noisy_table(
    name: str, rows: int = 8000
) -> tuple[FloatArray, npt.NDArray[np.int64], FloatArray]:
    """``rows`` of the table of that ``name``, as ``NoisyTable.draw``. Raises InvalidInputError with the nearest
    name."""
    return look_up(NOISY_TABLES, name, "unknown noisy table").draw(rows)
