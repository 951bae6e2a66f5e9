"""The reservoir, the density of inputs, and rows that keep who may see them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.continual.memory import (
    InputDensity,
    Memory,
    drawn_targets,
    independent_rows,
    joined,
    rehearsed,
    taken,
)
from mbrl_bilevel.data.splits import FitData, cross_fit
from mbrl_bilevel.policies.policies import CategoricalPolicy, GaussianPolicy


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(first: int, rows: int, members: int = 2) -> FitData:
    """Rows whose input is their number, from ``first`` on, and whose target is its negative."""
    x = torch.arange(first, first + rows, dtype=torch.float32).unsqueeze(1)
    folds = cross_fit(np.arange(rows), members, np.random.default_rng(first))
    return FitData(x, -x, folds)


def seen(data: FitData, part: str) -> list[set[float]]:
    """The inputs that each member sees in one part."""
    return [set(data.x[rows, 0].tolist()) for rows in getattr(data.folds, part)]


def test_each_row_of_each_task_is_as_likely_to_be_stored() -> None:
    counts = torch.zeros(100)
    repeats = 150
    for seed in range(repeats):
        memory, generator = Memory(20), seeded(seed)
        for first, rows in ((0, 15), (15, 35), (50, 50)):
            memory = memory.after(numbered(first, rows), generator)
        assert memory.rows is not None
        assert (len(memory.rows.x), memory.seen) == (20, 100)
        assert len(memory.rows.x.unique()) == 20
        counts[memory.rows.x[:, 0].long()] += 1
    expected, spread = repeats * 0.2, (repeats * 0.2 * 0.8) ** 0.5
    assert (counts - expected).abs().max() < 4.5 * spread
    # Whole tasks: 15, 35 and 50 in a hundred of what is stored.
    shares = torch.stack([counts[:15].sum(), counts[15:50].sum(), counts[50:].sum()]) / counts.sum()
    torch.testing.assert_close(shares, torch.tensor([0.15, 0.35, 0.5]), atol=0.03, rtol=0.0)


def test_a_memory_with_room_for_all_keeps_all_and_who_saw_what() -> None:
    first, second = numbered(0, 20), numbered(20, 30)
    memory = Memory(1000).after(first, seeded()).after(second, seeded())
    assert memory.rows is not None
    torch.testing.assert_close(memory.rows.x, torch.cat([first.x, second.x]))
    torch.testing.assert_close(memory.rows.y, -memory.rows.x)
    for part in ("train", "stop", "outer"):
        for kept, a, b in zip(
            seen(memory.rows, part), seen(first, part), seen(second, part), strict=True
        ):
            assert kept == a | b


def test_what_a_member_held_out_it_holds_out_for_ever() -> None:
    first = numbered(0, 40)
    memory = Memory(15).after(first, seeded()).after(numbered(40, 40), seeded(1))
    assert memory.rows is not None
    for part in ("train", "stop", "outer"):
        for kept, before in zip(seen(memory.rows, part), seen(first, part), strict=True):
            assert {x for x in kept if x < 40} <= before


def test_taken_and_joined_are_each_others_inverse() -> None:
    first, second = numbered(0, 20), numbered(20, 30)
    both = joined(first, second)
    again = taken(both, np.arange(20, 50))
    torch.testing.assert_close(again.x, second.x)
    for part in ("train", "stop", "outer"):
        assert seen(again, part) == seen(second, part)


def test_past_rows_are_named_as_often_as_makes_their_share() -> None:
    new, past = numbered(0, 100), numbered(1000, 30)
    found = rehearsed(new, past, 2.0 / 3.0)  # 200 wanted: each of 30 seven times
    for part in ("train", "stop", "outer"):
        for rows, old in zip(getattr(found.folds, part), getattr(past.folds, part), strict=True):
            assert (rows >= 100).sum() == 7 * len(old)
    assert seen(found, "train")[0] == seen(new, "train")[0] | seen(past, "train")[0]
    few = rehearsed(new, past, 0.01)  # at least once
    assert (few.folds.train[0] >= 100).sum() == len(past.folds.train[0])
    with pytest.raises(InvalidInputError, match="share"):
        rehearsed(new, past, 1.0)


def test_inputs_are_drawn_from_each_task_by_its_rows() -> None:
    draw = seeded(3)
    mix = torch.tensor([[1.0, 0.0], [0.8, 0.6]])
    narrow = 5.0 + torch.randn(3000, 2, generator=draw) @ mix.mT
    wide = -5.0 + 2.0 * torch.randn(1000, 2, generator=draw)
    drawn = InputDensity().after(narrow).after(wide).draw(20_000, seeded(4))
    first = drawn[:, 0] + drawn[:, 1] > 0.0
    assert float(first.float().mean()) == pytest.approx(0.75, abs=0.02)
    torch.testing.assert_close(drawn[first].mean(0), narrow.mean(0), atol=0.05, rtol=0.0)
    torch.testing.assert_close(drawn[first].T.cov(), narrow.T.cov(), atol=0.06, rtol=0.0)
    torch.testing.assert_close(drawn[~first].T.cov(), wide.T.cov(), atol=0.3, rtol=0.0)


def test_an_input_that_never_moved_is_drawn_where_it_was() -> None:
    x = torch.tensor([[1.0, 3.0], [2.0, 3.0]])
    drawn = InputDensity().after(x).draw(100, seeded())
    assert (drawn[:, 1] - 3.0).abs().max() < 1e-3


def test_targets_are_the_members_own_draws() -> None:
    policy = GaussianPolicy(1, 1, generator=seeded(), members=2, hidden=())
    with torch.no_grad():
        policy.network.last.weight.zero_()
        policy.network.last.bias.copy_(torch.tensor([[[-10.0]], [[10.0]]]))
    policy.set_std(torch.tensor([[0.5], [2.0]]))
    y = drawn_targets(policy, torch.zeros(8000, 1), seeded(1))
    low, high = y[y < 0.0], y[y > 0.0]
    assert len(low) == pytest.approx(4000, abs=200)
    assert (low.mean().item(), low.std().item()) == pytest.approx((-10.0, 0.5), abs=0.05)
    assert (high.mean().item(), high.std().item()) == pytest.approx((10.0, 2.0), abs=0.1)


def test_drawn_classes_come_at_their_probabilities_and_in_folds_of_their_kind() -> None:
    policy = CategoricalPolicy(1, 3, generator=seeded(), members=6, hidden=())
    x = torch.zeros(6000, 1)
    with torch.no_grad():
        probs = policy.dist(x[None, :1].expand(6, -1, -1)).probs.mean((0, 1))
    y = drawn_targets(policy, x, seeded(1))
    shares = torch.bincount(y[:, 0].long(), minlength=3) / 6000
    torch.testing.assert_close(shares, probs, atol=0.02, rtol=0.0)
    folds = independent_rows(x, y, policy, seeded(2)).folds
    # Members 0 and 5 share a fold, as row_folds has it.
    assert np.array_equal(folds.train[0], folds.train[5])
    assert not np.array_equal(folds.train[0], folds.train[1])


def test_capacity() -> None:
    with pytest.raises(InvalidInputError, match="capacity"):
        Memory(0)
