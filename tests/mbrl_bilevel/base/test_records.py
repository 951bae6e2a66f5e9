"""The frozen records refuse what does not fit together, and Batch means are weighted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Batch, Transitions

E, B = 2, 4


def batch(weight: torch.Tensor | None = None) -> Batch:
    return Batch(torch.zeros(E, B, 3), torch.zeros(E, B, 2), weight)


def columns(n: int = 5) -> dict[str, Any]:
    draw = np.random.default_rng(0)
    return {
        "obs": draw.normal(size=(n, 3)).astype(np.float32),
        "action": draw.normal(size=(n, 2)).astype(np.float32),
        "reward": draw.normal(size=n).astype(np.float32),
        "next_obs": draw.normal(size=(n, 3)).astype(np.float32),
        "terminated": np.zeros(n, dtype=np.bool_),
        "truncated": np.zeros(n, dtype=np.bool_),
        "episode": np.zeros(n, dtype=np.int64),
        "t": np.arange(n, dtype=np.int64),
    }


@settings(deadline=None)
@given(st.integers(0, 1000))
def test_a_row_of_weight_two_counts_as_two_rows(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randint(0, 4, (E, B), generator=draw).float()
    weight[:, 0] = 1.0
    values = torch.randn(3, E, B, generator=draw)
    found = batch(weight).mean(values)
    assert found.shape == (3, E)
    for member in range(E):
        repeated = values[:, member].repeat_interleave(weight[member].long(), dim=-1)
        torch.testing.assert_close(found[:, member], repeated.mean(-1))


def test_the_mean_of_a_batch_without_weights() -> None:
    values = torch.arange(E * B, dtype=torch.float32).reshape(E, B)
    torch.testing.assert_close(batch().mean(values), torch.tensor([1.5, 5.5]))
    torch.testing.assert_close(batch(torch.ones(E, B)).mean(values), batch().mean(values))
    torch.testing.assert_close(batch(3.0 * torch.ones(E, B)).mean(values), batch().mean(values))


def test_a_member_without_rows_has_no_mean() -> None:
    weight = torch.tensor([[1.0] * B, [0.0] * B])
    mean = batch(weight).mean(torch.ones(E, B))
    assert mean[0] == 1.0
    assert mean[1].isnan()


@pytest.mark.parametrize(
    ("x", "y", "weight"),
    [
        ((B, 3), (B, 2), None),
        ((E, B, 3), (E, B), None),
        ((E, B, 3), (E, B + 1, 2), None),
        ((E, B, 3), (E + 1, B, 2), None),
        ((E, B, 3), (E, B, 2), (B,)),
        ((E, B, 3), (E, B, 2), (E, B, 1)),
    ],
)
def test_a_batch_of_other_shapes_is_refused(
    x: tuple[int, ...], y: tuple[int, ...], weight: tuple[int, ...] | None
) -> None:
    with pytest.raises(InvalidInputError, match=r"Batch: (x|weight) must be \[E, B"):
        Batch(torch.zeros(x), torch.zeros(y), None if weight is None else torch.ones(weight))


@pytest.mark.parametrize("rows", [slice(1, 4), np.array([3, 1, 1]), np.arange(5) % 2 == 0])
def test_rows_of_transitions(rows: Any) -> None:
    data = columns()
    part = Transitions(**data)[rows]
    for name, column in data.items():
        np.testing.assert_array_equal(getattr(part, name), column[rows])
    assert len(part) == len(data["t"][rows])


def test_transitions_one_after_another() -> None:
    whole = Transitions(**columns())
    again = Transitions.concatenate([whole[:2], whole[2:2], whole[2:]])
    for name, column in columns().items():
        np.testing.assert_array_equal(getattr(again, name), column)
        assert getattr(again, name).dtype == column.dtype


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"obs": np.zeros(5, np.float32)}, "obs must have 2 dimension"),
        ({"action": np.zeros((4, 2), np.float32)}, "action must have 2 dimension.* 5 rows"),
        ({"reward": np.zeros((5, 1), np.float32)}, "reward must have 1 dimension"),
        ({"next_obs": np.zeros((5, 4), np.float32)}, "must agree"),
        ({"reward": np.full(5, np.nan, np.float32)}, "reward holds NaN or infinite"),
        ({"obs": np.full((5, 3), np.inf, np.float32)}, "obs holds NaN or infinite"),
        ({"obs": np.zeros((5, 3), np.float16)}, "obs must be float32; got float16"),
        ({"obs": np.zeros((5, 3), ">f4")}, "obs must be float32; got >f4"),
        ({"obs": np.zeros((5, 3))}, r"obs float64 \(5, 3\) and next_obs float32"),
        ({"terminated": np.zeros(5, np.float32)}, "terminated must be bool; got float32"),
        ({"episode": np.zeros(5, np.int32)}, "episode must be int64; got int32"),
    ],
)
def test_transitions_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Transitions(**{**columns(), **changes})


def test_parts_that_do_not_fit_are_refused() -> None:
    whole = Transitions(**columns())
    narrow = Transitions(**{**columns(), "action": np.zeros((5, 1), np.float32)})
    with pytest.raises(InvalidInputError, match=r"different .* dimensions \[\(3, 1\), \(3, 2\)\]"):
        Transitions.concatenate([whole, narrow])
    with pytest.raises(InvalidInputError, match="parts is empty"):
        Transitions.concatenate([])


def test_an_infinite_value_in_a_single_row_is_found() -> None:
    data = columns()
    data["next_obs"][4, 2] = -math.inf
    with pytest.raises(InvalidInputError, match="next_obs holds"):
        Transitions(**data)
