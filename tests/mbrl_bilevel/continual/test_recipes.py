"""METHOD+KEEP by name: what each means, and what is refused in one line before any work."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.continual.keeping import (
    Draws,
    Elastic,
    Keep,
    Near,
    Nothing,
    Recalled,
    Replay,
    Slow,
)
from mbrl_bilevel.continual.memory import Memory
from mbrl_bilevel.continual.packing import Packed
from mbrl_bilevel.continual.recipes import get_recipe
from mbrl_bilevel.training.class_methods import CLASS_METHODS, get_class_method
from mbrl_bilevel.training.method import Method
from mbrl_bilevel.training.methods import METHODS, get_method


def test_a_method_alone_is_fine_tuning() -> None:
    assert get_recipe("bilevel") == get_recipe("bilevel+none")
    assert get_recipe("nll").method is METHODS["nll"]
    assert (
        get_recipe("label-smoothing", way=get_class_method).method
        is CLASS_METHODS["label-smoothing"]
    )


@pytest.mark.parametrize(
    ("kept", "keep", "anew"),
    [
        ("none", Nothing(), False),
        ("kl", Near(1.0), False),
        ("kl:3", Near(3.0), False),
        ("kl-inferred:0.5", Near(0.5, inferred=True), False),
        ("kl-memory", Near(1.0, inferred=True, memory=Memory(70)), False),
        ("kl-seen", Recalled(1.0), False),
        ("kl-stored:2", Recalled(2.0, Memory(70)), False),
        ("lwf", Draws("new"), False),
        ("generative", Draws("seen"), False),
        ("replay", Replay(Memory(70)), False),
        ("der", Replay(Memory(70), dark=True), False),
        ("ewc:1e3", Elastic(1000.0), False),
        ("online-ewc", Elastic(100.0, decay=0.95), False),
        ("packnet", Packed(0.5), False),
        ("slow", Slow(0.1), False),
        ("slow:0.3", Slow(0.3), False),
        ("alone", Nothing(), True),
    ],
)
def test_each_way_of_keeping(kept: str, keep: Keep, anew: bool) -> None:
    recipe = get_recipe(f"bilevel+{kept}", 70)
    assert (recipe.keep, recipe.anew) == (keep, anew)


def test_joint_stores_more_than_there_is() -> None:
    recipe = get_recipe("nll+joint", 70)
    assert isinstance(recipe.keep, Replay)
    assert recipe.keep.memory.capacity > 10**9
    assert recipe.anew


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("bilevell+kl", "did you mean 'bilevel'"),
        ("nll+rehearse", "unknown way of keeping"),
        ("nll+kl:strong", "must be a number"),
        ("nll+kl:0", "must be positive"),
        ("nll+ewc:nan", "must be positive"),
        ("nll+ewc:inf", "must be positive"),
        ("nll+der:2", "no strength"),
        ("bilevel-k-step+kl", "one step"),
        ("bilevel-return+kl", "the next task may"),
    ],
)
def test_names_that_are_none(name: str, told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        get_recipe(name)


@pytest.mark.parametrize(
    ("name", "way", "told"),
    [
        ("nll+kl-inferred", get_method, "inferred by an outer level"),
        ("mse-network+kl-memory", get_method, "inferred by an outer level"),
        ("bilevel-constant+kl", get_method, "ClosedForm holds with entropy alone"),
        ("bilevel-constant+ewc", get_method, "ewc changes"),
        ("bilevel-mixture+ewc", get_method, "ewc changes"),
        ("nll-mixture+online-ewc", get_method, "EWC"),
        ("temperature-scaling+kl-inferred", get_class_method, "inferred by an outer level"),
        ("pg-beta+kl", get_class_method, "ClosedFormBeta"),
        ("bilevel-matrix+ewc", get_class_method, "ewc changes"),
        ("bilevel-mixture+kl-seen", get_method, "FisherImplicit infers a reward"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(
    name: str, way: Callable[[str], Method], told: str
) -> None:
    with pytest.raises(UnsupportedCombinationError, match=told) as refused:
        get_recipe(name, way=way)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("way", "table"), [(get_method, METHODS), (get_class_method, CLASS_METHODS)]
)
def test_rows_and_draws_go_with_every_method_of_one_step(
    way: Callable[[str], Method], table: Mapping[str, Method]
) -> None:
    def of_one_step(method: Method) -> bool:
        return method.horizon == 1 and method.relevance is None

    for name in (n for n, method in table.items() if of_one_step(method)):
        for kept in ("none", "lwf", "generative", "replay", "der", "joint", "alone"):
            assert get_recipe(f"{name}+{kept}", way=way).method is table[name]
