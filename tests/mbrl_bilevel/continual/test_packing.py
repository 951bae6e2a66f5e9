"""PackNet: whose weights are whose, and that what an earlier task answers never changes again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.continual.learner import Learner
from mbrl_bilevel.continual.packing import Packed, _largest
from mbrl_bilevel.continual.recipes import get_recipe
from mbrl_bilevel.training.class_methods import get_class_method
from mbrl_bilevel.training.settings import Schedule

QUICK = Schedule(steps=30, learning_rate=1e-2, evaluate_every=10, weight_decay=0.1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rows(slope: float) -> tuple[Tensor, Tensor]:
    x = torch.randn(120, 2, generator=seeded(3))
    noise = 0.1 * torch.randn(120, 2, generator=seeded(4))
    return x, torch.stack([slope * x[:, 0], x[:, 0] * x[:, 1]], 1) + noise


def learners(name: str) -> list[Learner]:
    """After nothing, one task, two and three."""
    generator = seeded()
    found = [
        Learner.start(get_recipe(name), *rows(1.0), generator=generator, members=2, hidden=(9, 8))
    ]
    for slope in (1.0, -1.0, 3.0):
        found.append(found[-1].learn(*rows(slope), generator=generator, schedule=QUICK))
    return found


def answers(learner: Learner, number: int) -> tuple[Tensor, ...]:
    x = torch.randn(2, 20, 2, generator=seeded(5))
    return tuple(p.detach() for p in learner.for_task(number).model.policy.dist(x).params)


@pytest.mark.parametrize("method", ["nll", "bilevel", "nll-mixture"])
def test_an_earlier_task_is_answered_exactly_as_before(method: str) -> None:
    found = learners(f"{method}+packnet:0.5")
    for task in (0, 1):
        just = answers(found[task + 1], task)
        for later in found[task + 2 :]:
            for a, b in zip(just, answers(later, task), strict=True):
                assert torch.equal(a, b)
        assert not torch.equal(just[0], answers(found[-1], task + 1)[0])
    # A task to come is answered by the last one's weights; and a task has learned something.
    assert torch.equal(answers(found[2], 2)[0], answers(found[2], 1)[0])
    assert not torch.equal(answers(found[0], 0)[0], answers(found[1], 0)[0])


def test_masks_are_disjoint_shares_of_what_is_free_and_the_largest_are_kept() -> None:
    found = learners("nll+packnet:0.4")
    keep = found[-1].recipe.keep
    assert isinstance(keep, Packed)
    policy = found[-1].model.policy
    layers = [weight for weight, _ in policy.network.pairs[:-1]]
    for owner, weight in zip(keep.owner, layers, strict=True):
        left = owner[0].numel()
        for task in range(3):
            mine = int(np.ceil(0.4 * left))
            assert [(o == task).sum().item() for o in owner] == [mine, mine]
            left -= mine
        assert ((weight == 0.0) == (owner == -1)).all()
    # No bias below the last layer moves after the first task.
    for learner in found[2:]:
        for (_, before), (_, now) in zip(
            found[1].model.policy.network.pairs[:-1],
            learner.model.policy.network.pairs[:-1],
            strict=True,
        ):
            assert torch.equal(before, now)
    result = found[1].last
    assert result is not None
    assert result.steps == QUICK.steps


def test_pruning_takes_the_smallest() -> None:
    weight = torch.tensor([[[1.0, -5.0], [0.2, 3.0]], [[4.0, 0.1], [-9.0, 2.0]]])
    free = torch.tensor([[[True, False], [True, True]]] * 2)
    kept = _largest(weight, free, 0.5)
    assert kept.tolist() == [
        [[True, False], [False, True]],
        [[True, False], [True, False]],
    ]


def test_classes_and_what_is_refused() -> None:
    assert get_recipe("nll+packnet", way=get_class_method).told_the_task
    assert not get_recipe("nll+ewc").told_the_task
    for share in ("1", "2"):
        with pytest.raises(InvalidInputError, match="above 0 and below 1"):
            get_recipe(f"nll+packnet:{share}")
    with pytest.raises(UnsupportedCombinationError, match="packnet changes the inner problem"):
        get_recipe("bilevel-mixture+packnet")
