"""Which sequences a study of forgetting is about: those on which fine-tuned likelihood forgets.

Where nothing is forgotten no way of keeping can be told from another, so the rule is declared before any is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.continual.sequence import transfer

#: What has to be lost: nats per dimension together with a share of the RMSE, or a share of the planned return.
NATS, RMSE_SHARE, RETURN_SHARE = 0.5, 0.2, 1.0 / 3.0


@dataclass(frozen=True)
class Admission:
    """What one repeat of fine-tuning lost on the tasks before the last: ``nats`` per dimension, ``rmse`` as a
    share of what it was just after learning, and ``planned``, the share of the return that learning had gained
    over plans of the untrained model (None: not measured, or nothing was gained)."""

    nats: float
    rmse: float
    planned: float | None = None

    @property
    def admitted(self) -> bool:
        """Half a nat and a fifth of the RMSE, or a third of the planned return. What is NaN admits nothing."""
        model = self.nats >= NATS and self.rmse >= RMSE_SHARE
        return model or (self.planned is not None and self.planned >= RETURN_SHARE)


def admission(row: Mapping[str, npt.ArrayLike]) -> Admission:
    """What was lost in a row of continual's ``rows.jsonl``: its matrices "nll" and "rmse" [T, T], R[i, j] on task j
    after task i, and where a return was planned "return" [T, T] and "return_before" [T].

    A sequence is admitted if each repeat of it is. Raises InvalidInputError for one task, a matrix that is missing
    or not square.
    """
    missing = [name for name in ("nll", "rmse") if name not in row]
    if missing:
        raise InvalidInputError(
            f"row: it has no matrix {missing[0]!r}; rows of a failed cell have none"
        )
    nats = transfer(row["nll"], "lower").forgetting
    if nats is None:
        raise InvalidInputError(
            "row: one task has nothing to forget; give a sequence of two at least"
        )
    planned = None
    if "return" in row:
        learned, end = _learned(row["return"]), _end(row["return"])
        gained = learned - float(np.asarray(row["return_before"], np.float64)[:-1].mean())
        planned = (learned - end) / gained if gained > 0.0 else None
    return Admission(nats, _end(row["rmse"]) / _learned(row["rmse"]) - 1.0, planned)


def _learned(matrix: npt.ArrayLike) -> float:
    """The mean over earlier tasks just after learning each."""
    return float(np.asarray(matrix, np.float64).diagonal()[:-1].mean())


def _end(matrix: npt.ArrayLike) -> float:
    """The same after the last."""
    return float(np.asarray(matrix, np.float64)[-1, :-1].mean())
