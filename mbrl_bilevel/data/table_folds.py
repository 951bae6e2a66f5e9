"""Folds of independent rows, such as those of a table: every class in every part.

As ``splits.cross_fit``, but several members may hold out one fold, so that what they say there together
can be judged as the ensemble will be.
"""

from __future__ import annotations

import numpy as np

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.data.splits import Folds, IntArray

#: Fewer rows than this leave some member without a row to train on.
FEWEST_ROWS = 4


def row_folds(
    strata: IntArray, members: int, generator: np.random.Generator, folds: int = 5
) -> Folds:
    """Member k holds out fold k mod ``folds``: half of it to stop by, half as its outer sample.

    Rows are dealt out by ``strata`` [N] (the class of each), so that the parts differ by at most one
    row of a class. Of members that share a fold, each second pair has the halves the other way round:
    from four members a fold on, every row is in somebody's outer sample. With fewer than two rows a
    fold there are fewer folds.

    Raises InvalidInputError for fewer than FEWEST_ROWS rows, or a count below one.
    """
    if members < 1 or folds < 1:
        raise InvalidInputError(
            f"members and folds must be at least 1; got members={members}, folds={folds}"
        )
    if len(strata) < FEWEST_ROWS:
        raise InvalidInputError(
            f"{len(strata)} rows are too few to hold some out: give at least {FEWEST_ROWS}"
        )
    folds = max(2, min(folds, len(strata) // 2))
    order = generator.permutation(len(strata))
    order = order[np.argsort(strata[order], kind="stable")]
    cell = np.empty(len(strata), dtype=np.int64)
    cell[order] = generator.permutation(2 * folds)[np.arange(len(strata)) % (2 * folds)]
    train, stop, outer = [], [], []
    for member in range(members):
        fold, swapped = member % folds, member // folds // 2 % 2
        train.append(np.flatnonzero(cell // 2 != fold))
        stop.append(np.flatnonzero(cell == 2 * fold + swapped))
        outer.append(np.flatnonzero(cell == 2 * fold + 1 - swapped))
    return Folds(tuple(train), tuple(stop), tuple(outer))
