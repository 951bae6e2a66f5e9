"""A learner over tasks: what stays as it was, what starts anew, and that classes go the same way."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.continual.learner import Learner
from mbrl_bilevel.continual.recipes import get_recipe
from mbrl_bilevel.models.classification import Classification
from mbrl_bilevel.models.regression import Regression
from mbrl_bilevel.training.class_methods import get_class_method
from mbrl_bilevel.training.method import Method
from mbrl_bilevel.training.settings import Schedule

#: Of no consequence: θ hardly moves.
STILL = Schedule(steps=1, batch_size=8, learning_rate=1e-12, evaluate_every=1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def line(slope: float, centre: float = 0.0, seed: int = 0, rows: int = 60) -> tuple[Tensor, Tensor]:
    """y = slope·x around ``centre``, and a second target that never moves."""
    x = centre + torch.randn(rows, 1, generator=seeded(seed))
    noise = 0.1 * torch.randn(rows, 1, generator=seeded(seed + 1))
    return x, torch.cat([slope * x + noise, torch.ones(rows, 1)], 1)


def started(name: str, x: Tensor, y: Tensor, **options: Any) -> Learner:
    given: dict[str, Any] = {"members": 2, "hidden": (4,)} | options
    return Learner.start(get_recipe(name, 30), x, y, generator=seeded(), **given)


def parameters(learner: Learner) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in learner.model.policy.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_the_units_are_those_of_the_first_task_for_ever() -> None:
    first, second = line(2.0), line(-5.0, centre=100.0, seed=5)
    learner = started("nll", *first)
    later = learner.learn(*first, generator=seeded(), schedule=STILL)
    later = later.learn(*second, generator=seeded(), schedule=STILL)
    assert isinstance(learner.model, Regression)
    assert isinstance(later.model, Regression)
    assert later.model.inputs is learner.model.inputs
    assert later.model.targets is learner.model.targets
    torch.testing.assert_close(later.model.inputs.shift, first[0].mean(0))
    assert later.model.active.tolist() == [True, False]


@pytest.mark.parametrize("name", ["bilevel+kl", "nll+ewc", "nll+der", "bilevel+generative"])
def test_what_was_learned_before_stays_as_it_was(name: str) -> None:
    quick = Schedule(steps=20, batch_size=16, learning_rate=1e-2, evaluate_every=10)
    first = started(name, *line(2.0)).learn(*line(2.0), generator=seeded(1), schedule=quick)
    before, keep = parameters(first), copy.deepcopy(first.recipe.keep)
    again = [
        first.learn(*line(-1.0, seed=5), generator=seeded(2), schedule=quick) for _ in range(2)
    ]
    assert same(parameters(first), before)
    assert not same(parameters(again[0]), before)
    # Whatever the first learning of the second task did is not seen by another one.
    assert same(parameters(again[0]), parameters(again[1]))
    assert str(first.recipe.keep) == str(keep)
    assert str(first.recipe.keep) != str(again[0].recipe.keep)


@pytest.mark.parametrize(
    ("name", "anew"), [("nll", False), ("nll+alone", True), ("nll+joint", True)]
)
def test_some_start_anew_but_not_at_the_first_task(name: str, anew: bool) -> None:
    start = started(name, *line(2.0))
    first = start.learn(*line(2.0), generator=seeded(1), schedule=STILL)
    second = first.learn(*line(-1.0, seed=5), generator=seeded(2), schedule=STILL)

    def moved(a: Learner, b: Learner) -> float:
        return max(float((a.model.policy.state_dict()[n] - v).abs().max())
                   for n, v in b.model.policy.state_dict().items())  # fmt: skip

    assert moved(start, first) < 1e-6
    assert (moved(first, second) > 0.1) is anew


def test_joint_has_all_rows_and_alone_its_own() -> None:
    first, second = line(2.0), line(-1.0, seed=5)
    for name, rows in (("nll+joint", 120), ("nll+alone", 60)):
        learner = started(name, *first).learn(*first, generator=seeded(), schedule=STILL)
        new = learner.model.rows(*second, None, np.random.default_rng(0))
        data = learner.recipe.keep.data(new, seeded())
        assert len(data.x) == rows
        assert set(np.concatenate(data.folds.train)) <= set(range(rows))
        if rows == 120:  # each task half of each sample
            for part in data.folds.train:
                assert (part >= 60).mean() == pytest.approx(0.5, abs=0.05)


def test_moved_is_the_kl_from_before_to_after() -> None:
    """A policy without inputs' influence moves from N(0, 1) to what was learned, in the units of the task."""
    x, y = line(0.0)
    learner = started("nll", x, y, hidden=(), members=1)
    with torch.no_grad():
        for parameter in learner.model.policy.parameters():
            parameter.zero_()
    quick = Schedule(steps=60, batch_size=32, learning_rate=0.03, evaluate_every=20)
    after = learner.learn(x, y, generator=seeded(), schedule=quick)
    dist = after.model.policy.dist(learner.model.inputs.normalise(x).unsqueeze(0))
    variance, mean = dist.std.square(), dist.mean
    kl = 0.5 * (1.0 / variance + mean.square() / variance - 1.0 + variance.log())
    assert after.moved == pytest.approx(kl.mean().item(), rel=1e-3)
    assert after.moved > 0.0


def test_rows_of_a_group_are_never_parted() -> None:
    x, y = line(1.0, rows=100)
    learner, groups = started("nll", x, y), np.repeat(np.arange(20), 5)
    data = learner.model.rows(x, y, groups, np.random.default_rng(0))
    for train, stop in zip(data.folds.train, data.folds.stop, strict=True):
        assert not set(groups[train]) & set(groups[stop])


def blobs(classes: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Class c lies around the c-th of four corners."""
    y = torch.tensor(classes)[torch.randint(len(classes), (120,), generator=seeded(seed))]
    corner = torch.stack([(y % 2).float(), (y // 2).float()], 1)
    x = 3.0 * corner + 0.4 * torch.randn(120, 2, generator=seeded(seed + 1))
    return x, y.float().unsqueeze(1)


def accuracy(learner: Learner, task: tuple[Tensor, Tensor]) -> float:
    assert isinstance(learner.model, Classification)
    answers = learner.model.probs(task[0]).argmax(1)
    return float((answers == task[1][:, 0]).float().mean())


def test_classes_are_kept_by_a_memory() -> None:
    quick = Schedule(steps=120, batch_size=32, learning_rate=2e-2, evaluate_every=40)
    tasks = [blobs((0, 1), 0), blobs((2, 3), 10)]
    recipe = get_recipe("bilevel+replay", 40, get_class_method)
    learner = Learner.start(
        recipe, *tasks[0], generator=seeded(), members=2, hidden=(16,), classes=4
    )
    assert accuracy(learner, tasks[0]) < 0.9
    for task in tasks:
        learner = learner.learn(*task, generator=seeded(3), schedule=quick)
        assert accuracy(learner, task) > 0.9
    assert accuracy(learner, tasks[0]) > 0.9
    assert learner.moved is not None
    assert learner.moved > 0.0


def test_bad_input() -> None:
    x, y = line(2.0)
    with pytest.raises(InvalidInputError, match="no target ever changes"):
        started("nll", x, y[:, 1:])
    with pytest.raises(InvalidInputError, match="classes must be 0"):
        started("nll", x, y, classes=3)
    recipe = get_recipe("nll", way=get_class_method)
    with pytest.raises(InvalidInputError, match="classes must be how many"):
        Learner.start(recipe, x, y[:, 1:], generator=seeded())
    task = blobs((0, 1), 0)
    learner = Learner.start(recipe, *task, generator=seeded(), members=2, hidden=(), classes=2)
    with pytest.raises(InvalidInputError, match="groups"):
        learner.learn(*task, np.arange(120), generator=seeded())
    assert math.isfinite(accuracy(learner, task))


def test_slow_learns_the_first_task_as_ever_and_the_later_ones_at_a_fraction_of_the_rate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []
    fit = Method.fit

    def spied(*args: Any, schedule: Schedule, **more: Any) -> Any:
        rates.append(schedule.learning_rate)
        return fit(*args, schedule=schedule, **more)

    monkeypatch.setattr(Method, "fit", spied)
    x = torch.randn(60, 1, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    learner = Learner.start(
        get_recipe("nll+slow:0.2"), x, x, generator=generator, members=1, hidden=(4,)
    )
    for _ in range(3):
        learner = learner.learn(
            x, x, generator=generator, schedule=Schedule(steps=2, learning_rate=0.05)
        )
    assert rates == pytest.approx([0.05, 0.01, 0.01])
