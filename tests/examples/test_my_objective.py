"""The example of an outer objective of one's own; what is told where it gives something else."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_bilevel import BilevelClassifier, Outer
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.policies.policies import Policy

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "examples"))

import my_objective  # noqa: E402


def test_who_wants_profit_gets_more_of_it() -> None:
    found = my_objective.profits(rows=1000, steps=300)
    # The best bet is on the second class where p·4 > (1 − p)·1.2.
    x, y = my_objective.races(4000, 1)
    p = 1.0 / (1.0 + np.exp(2.0 - 2.0 * x[:, 0]))
    best = my_objective.profit((p * 4.0 > (1.0 - p) * 1.2).astype(int), y)
    assert found["profit"] > found["likelihood"] + 0.1
    assert found["profit"] > best - 0.05


def test_another_shape_is_told() -> None:
    def a_row_each(policy: Policy, batch: Batch) -> Tensor:
        return -policy.dist(batch.x).log_prob(batch.y)

    def of_answers(policy: Policy, batch: Batch) -> Tensor:
        right = policy.dist(batch.x).log_prob(batch.y) > np.log(0.5)
        return -batch.mean(right.to(torch.float32))

    x, y = my_objective.races(100, 0)
    for objective, told in ((a_row_each, r"of shape \(2,\)"), (of_answers, "without a gradient")):
        model = BilevelClassifier(objective=objective, members=2, steps=20, random_state=0)
        with pytest.raises(InvalidInputError, match=f"objective: .*{told}"):
            model.fit(x, y)
    with pytest.raises(InvalidInputError, match="objective must be a function"):
        Outer(objective="profit")  # type: ignore[arg-type]
