"""The declared rule: what a fine-tuned model has to lose for a sequence to be of a study of forgetting."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.continual.admission import admission


def row(nats: float, share: float, **more: Any) -> dict[str, Any]:
    """Three tasks: the first two learned at NLL −1 and RMSE .4 and .6; lost ``nats``, and a ``share``, on average."""
    nll = np.array([[-1.0, 9.0, 9.0], [5.0, -1.0, 9.0], [-1.0 + 2 * nats, -1.0, -3.0]])
    rmse = np.array([[0.4, 9.0, 9.0], [5.0, 0.6, 9.0], [0.4, 0.6 + share, 9.0]])
    return {"nll": nll.tolist(), "rmse": rmse.tolist(), **more}


def test_losses_are_those_of_the_tasks_before_the_last() -> None:
    found = admission(row(0.7, 0.3))
    assert found.nats == pytest.approx(0.7)
    assert found.rmse == pytest.approx(0.3)
    assert found.planned is None
    planned = {
        "return": [[30.0, 0, 0], [0, 50.0, 0], [10.0, 40.0, 99.0]],
        "return_before": [4.0, 6.0, 99.0],
    }
    # Learned 40, untrained 5, in the end 25.
    assert admission(row(0.7, 0.3, **planned)).planned == pytest.approx(15.0 / 35.0)
    assert (
        admission(row(0.7, 0.3, **planned | {"return_before": [60.0, 60.0, 0.0]})).planned is None
    )


@pytest.mark.parametrize(
    ("nats", "share", "kept", "admitted"),
    [
        (0.51, 0.21, None, True),
        (0.49, 0.9, None, False),
        (9.0, 0.19, None, False),  # a likelihood that breaks down, a mean that is kept
        (float("nan"), 0.9, None, False),
        (0.0, 0.0, 0.6, True),
        (0.0, 0.0, 0.7, False),
    ],
)
def test_the_rule(nats: float, share: float, kept: float | None, admitted: bool) -> None:
    more: dict[str, Any] = {}
    if kept is not None:
        more = {"return": [[10.0, 0, 0], [0, 10.0, 0], [10 * kept] * 3], "return_before": [0.0] * 3}
    assert admission(row(nats, share, **more)).admitted is admitted


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no matrix 'rmse'"):
        admission({"nll": [[1.0]]})
    with pytest.raises(InvalidInputError, match="one task has nothing to forget"):
        admission({"nll": [[1.0]], "rmse": [[1.0]]})
    with pytest.raises(InvalidInputError, match=r"must be \[T, T\]"):
        admission({"nll": [[1.0, 2.0]], "rmse": [[1.0]]})
