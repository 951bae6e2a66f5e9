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


def logged(n: int = 12) -> dict[str, Any]:
    """A walk in two dimensions; it ends after the fourth step and is cut after the eighth."""
    draw = np.random.default_rng(0)
    path = draw.normal(size=(n + 1, 2)).cumsum(0)
    obs, after = path[:-1].copy(), path[1:].copy()
    obs[[4, 8]] += 100.0
    t = np.arange(n)
    action, reward = draw.normal(size=(n, 1)), draw.normal(size=n)
    ends = {"terminated": t == 3, "truncated": t == 7}
    return {"obs": obs, "action": action, "next_obs": after, "reward": reward, **ends}


def test_logged_arrays_of_any_kind_become_transitions() -> None:
    given = logged()
    found = Transitions.from_arrays(**given)
    assert found.obs.dtype == np.float32
    assert found.episode.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert found.t.tolist() == [0, 1, 2, 3] * 3
    assert found.terminated.tolist() == [t == 3 for t in range(12)]
    assert found.truncated.tolist() == [t == 7 for t in range(12)]
    np.testing.assert_array_equal(found.obs, given["obs"].astype(np.float32))
    other = {
        "obs": np.asfortranarray(given["obs"]).astype(">f8"),
        "action": given["action"][:, 0].tolist(),
        "next_obs": torch.from_numpy(given["next_obs"]),
        "reward": given["reward"][::-1][::-1, None],
        "terminated": given["terminated"].astype(np.uint8)[:, None],
        "truncated": given["truncated"].astype(np.float64),
    }
    for name, column in vars(Transitions.from_arrays(**other)).items():
        np.testing.assert_array_equal(column, vars(found)[name], name)


@pytest.mark.parametrize("offset", [0.0, 1e9])  # kept in single, and in double precision
def test_logged_arrays_are_copied(offset: float) -> None:
    given = {name: columns()[name].astype(float) for name in ("obs", "action", "reward")}
    given["obs"] += offset
    found = Transitions.from_arrays(next_obs=given["obs"] + 0.25, truncated=np.ones(5), **given)
    kept = {name: getattr(found, name).copy() for name in given}
    for value in given.values():
        value[:] = 7.0
    for name, value in kept.items():
        np.testing.assert_array_equal(getattr(found, name), value)


def test_steps_of_environments_side_by_side() -> None:
    """[T, B, …], as vector environments and SB3's buffers have them."""
    given = {name: np.stack([value, value + 0], 1) for name, value in logged().items()}
    found, one = Transitions.from_arrays(**given), Transitions.from_arrays(**logged())
    assert len(found) == 24
    assert found.episode.tolist() == [*one.episode, *(one.episode + 3)]
    np.testing.assert_array_equal(found.obs, np.concatenate([one.obs, one.obs]))
    assert found.t.tolist() == one.t.tolist() * 2


def test_integers_and_wide_rows_are_flat_numbers() -> None:
    obs = np.arange(48, dtype=np.uint8).reshape(8, 2, 3)
    found = Transitions.from_arrays(obs[:-1], np.zeros(7, np.int64), obs[1:], np.ones(7, bool))
    assert found.obs.shape == (7, 6)
    assert (found.next_obs - found.obs == 6.0).all()  # not 250, as bytes would have it backwards
    assert found.action.shape == (7, 1)
    assert found.episode.tolist() == [0] * 7


def test_a_jump_without_a_flag_ends_an_episode_and_is_told() -> None:
    given = logged()
    del given["truncated"]
    with pytest.warns(UserWarning, match="after 1 of 12 steps the next row begins elsewhere"):
        found = Transitions.from_arrays(**given)
    assert found.episode.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert not found.truncated.any()


def test_what_float32_would_lose_is_kept_in_double() -> None:
    given = logged()
    far = {name: given[name] + 5e8 for name in ("obs", "next_obs")}
    found = Transitions.from_arrays(**{**given, **far})
    assert found.obs.dtype == found.next_obs.dtype == np.float64
    assert found.action.dtype == found.reward.dtype == np.float32
    np.testing.assert_allclose(
        found.next_obs - found.obs, given["next_obs"] - given["obs"], atol=1e-6
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"reward": np.zeros(5)}, "reward must have a row for each of the 12"),
        ({"reward": np.zeros((12, 2))}, "reward must hold one number a step"),
        ({"next_obs": np.zeros((12, 3))}, "must agree"),
        ({"obs": np.full((12, 2), "far")}, "obs must be an array of numbers"),
        ({"terminated": np.full(12, 0.5)}, "terminated must be flags"),
        ({"obs": np.full((12, 2), np.nan)}, "obs holds NaN"),
    ],
)
@pytest.mark.filterwarnings("ignore:Transitions.from_arrays")
def test_arrays_that_do_not_fit_are_named(change: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        Transitions.from_arrays(**{**logged(), **change})
