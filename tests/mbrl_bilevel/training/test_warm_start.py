"""Fits that go on from one another: what is carried over, exactly, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import FitResult, Transitions
from mbrl_bilevel.data.growing_folds import GrowingFolds
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.models.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.training import method as training_method
from mbrl_bilevel.training.fit import Job
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule, WarmStart
from mbrl_bilevel.training.warm_start import lasting_units

SHORT = Schedule(steps=30, batch_size=32, evaluate_every=15)
#: One of each kind of scale, whose σ(x) may be read from the inputs alone.
LINEAR = ("bilevel", "nll", "nll-mixture", "faithful", "mse")
ON = WarmStart(1.0, 0.0)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def walk(episodes: int, length: int = 20, seed: int = 0, wide: float = 1.0) -> Transitions:
    """s' = s + (.5 u, .3 s_0 + noise), from places that lie ``wide`` apart, beside a clock that ticks and a
    wall that does not move."""
    g = np.random.default_rng(seed)
    rows, number = episodes * length, np.arange(episodes * length)
    obs = np.zeros((rows, 4), dtype=np.float32)
    u = g.uniform(-1, 1, size=(rows, 1)).astype(np.float32)
    obs[:, :2] = g.normal(size=(rows, 2)) * wide + [3.0, -1.0 + wide]
    obs[:, 2], obs[:, 3] = number % length, 7.0
    after = obs.copy()
    after[:, 0] += 0.5 * u[:, 0]
    after[:, 1] += 0.3 * obs[:, 0] + 0.1 * g.normal(size=rows)
    after[:, 2] += 1.0
    never = np.zeros(rows, dtype=np.bool_)
    reward = obs[:, 0].copy()
    return Transitions(obs, u, reward, after, never, never, number // length, number % length)


def grown(few: Transitions, more: Transitions, members: int = 2) -> list[GrowingFolds]:
    g = np.random.default_rng(0)
    first = GrowingFolds.of(few.episode, few.t, members, g)
    return [first, first.grown(more.episode, more.t, g)]


def fitted(data: Transitions, method: str = "mse", **more: Any) -> DynamicsModel:
    given: dict[str, Any] = {"members": 2, "hidden": (8,), "schedule": SHORT, "generator": seeded()}
    return fit_dynamics(data, METHODS[method], **(given | more))[0]


def said(model: DynamicsModel, data: Transitions) -> tuple[Tensor, Tensor]:
    obs, action = torch.from_numpy(data.obs), torch.from_numpy(data.action)
    mean, std = model.dist(obs, action).marginals()
    return mean.detach(), std.detach()


@cache
def case(
    method: str, hidden: tuple[int, ...]
) -> tuple[Transitions, Transitions, Any, DynamicsModel]:
    """Little data, more of it from further afield, the folds that grow with it, a model of the little."""
    few, far = walk(12), walk(12, seed=1, wide=1.6)
    more = Transitions.concatenate([few, replace(far, episode=far.episode + 12)])
    first, second = grown(few, more)
    return few, more, second, fitted(few, method, hidden=hidden, folds=first)


@pytest.mark.parametrize(
    ("method", "hidden"), [*((name, (8,)) for name in METHODS), *((name, ()) for name in LINEAR)]
)
def test_before_the_first_step_it_says_what_the_start_says(
    method: str, hidden: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mean and σ of each member in raw units, where inputs and targets have other means and spreads."""
    few, more, second, start = case(method, hidden)

    def still(jobs: Sequence[Job], **_: Any) -> list[FitResult]:
        return [FitResult((0.0,), (0,), 0, False, {}, {}) for _ in jobs]

    monkeypatch.setattr(training_method, "fit_side_by_side", still)
    on = fitted(more, method, hidden=hidden, folds=second, start=start, warm_start=ON)
    assert not torch.equal(on.inputs.scale, start.inputs.scale)
    assert not torch.equal(on.targets.shift, start.targets.shift)
    for mine, theirs in zip(said(on, few), said(start, few), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2e-4, atol=2e-5)
    assert on.policy is not start.policy
    fresh = fitted(more, method, hidden=hidden, folds=second)
    shaken = fitted(more, method, hidden=hidden, folds=second, start=start)
    for name, value in shaken.policy.named_parameters():
        parts = (dict(each.policy.named_parameters())[name] for each in (on, fresh))
        carried, new = parts
        torch.testing.assert_close(value, 0.8 * carried + 0.2 * new)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_goes_on(method: str) -> None:
    _, more, second, start = case(method, (8,))
    before = {name: value.clone() for name, value in start.policy.state_dict().items()}
    on = fitted(more, method, folds=second, start=start)
    for name, value in start.policy.state_dict().items():
        assert torch.equal(before[name], value), "the start was trained on"
    for mine, theirs in zip(said(on, more), said(start, more), strict=True):
        assert mine.isfinite().all()
        assert not torch.equal(mine, theirs)


def test_going_on_is_ahead_of_a_new_network() -> None:
    few, more = walk(40), walk(80)
    first, second = grown(few, more)
    start = fitted(few, folds=first, schedule=Schedule(steps=600))
    brief = Schedule(steps=20)
    kinds: list[dict[str, Any]] = [{}, {"start": start}, {"start": start, "warm_start": ON}]
    test, errors = walk(20, seed=9), []
    for kind in kinds:
        model = fitted(more, folds=second, schedule=brief, **kind)
        errors.append((said(model, test)[0] - model.target_values(test)).square().mean().item())
    assert errors[2] < errors[1] < errors[0]


def test_only_a_fit_that_goes_on_makes_a_part_of_the_steps() -> None:
    few = walk(12)
    first, second = grown(few, few)
    half, found = WarmStart(part=0.5), []
    for start in (None, fitted(few, folds=first)):
        given: dict[str, Any] = {"members": 2, "hidden": (8,), "schedule": SHORT, "start": start}
        _, result = fit_dynamics(
            few, METHODS["mse"], generator=seeded(), folds=second, warm_start=half, **given
        )
        found.append(result.steps)
    assert found == [30, 15]
    for part in (0.0, 1.5):
        with pytest.raises(InvalidInputError, match=r"^WarmStart: part must be above 0"):
            WarmStart(part=part)


def test_an_input_that_never_varied_has_no_say_until_it_is_learned() -> None:
    few, more = walk(12), walk(24)
    more.obs[-40:, 3] = more.next_obs[-40:, 3] = 2000.0
    first, second = grown(few, more)
    start = fitted(few, folds=first)
    on = fitted(
        more, folds=second, start=start, warm_start=ON, schedule=replace(SHORT, learning_rate=1e-9)
    )
    torch.testing.assert_close(said(on, few)[0], said(start, few)[0], rtol=1e-3, atol=1e-4)
    assert (said(on, more)[0].abs() < 50.0).all()


def test_units_last_while_spreads_are_alike() -> None:
    def units(scale: list[float], constant: list[bool]) -> Normaliser:
        return Normaliser(torch.ones(2), torch.tensor(scale), torch.tensor(constant))

    old = units([1.0, 1.0], [False, True])
    new = units([1.9, 1.0], [False, True])
    found = lasting_units(old, new)
    assert found is not None
    assert torch.equal(found.scale, old.scale)
    assert lasting_units(old, units([2.1, 1.0], [False, True])) is None
    assert lasting_units(old, units([0.4, 1.0], [False, True])) is None
    assert lasting_units(old, units([1.0, 1.0], [False, False])) is None


def test_where_units_do_not_last_it_is_a_fit_from_scratch() -> None:
    few, more = walk(12), walk(24)
    more.reward[:] *= 100.0
    first, second = grown(few, more)
    on = fitted(more, folds=second, start=fitted(few, folds=first))
    fresh = fitted(more, folds=second)
    for name, value in fresh.policy.state_dict().items():
        assert torch.equal(on.policy.state_dict()[name], value)


def pays(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return obs[..., 0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"folds": None}, "^start: without the folds"),
        ({"members": 3}, "^folds are for 2 members; got members=3"),
        ({"hidden": (9,)}, "^start: a fit goes on from a model with the same"),
        ({"method": "nll"}, "^start: a fit goes on from a model with the same"),
        ({"direct": True}, "^start: it has other targets"),
        ({"reward": pays}, "^start: it has other targets"),
        ({"outer_transitions": walk(12)}, "^outer_transitions: they have no folds"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    few = walk(12)
    first, second = grown(few, few)
    start = fitted(few, folds=first, schedule=Schedule(steps=1))
    with pytest.raises(InvalidInputError, match=words) as caught:
        fitted(few, **({"folds": second, "start": start} | change))
    assert "\n" not in str(caught.value)


def test_a_start_of_other_spaces_is_refused() -> None:
    few = walk(12)
    folds, _ = grown(few, few)
    start = fitted(few, folds=folds, schedule=Schedule(steps=1))
    narrow = replace(few, obs=few.obs[:, :3], next_obs=few.next_obs[:, :3])
    with pytest.raises(
        InvalidInputError, match=r"^start: it has 5 inputs and 5 targets, the data 4 and 4"
    ):
        fitted(narrow, folds=folds, start=start)


@pytest.mark.parametrize("name", ["shrink", "perturb"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_shares_lie_between_0_and_1(name: str, value: float) -> None:
    with pytest.raises(InvalidInputError, match=f"^WarmStart: {name} must be from 0 to 1"):
        WarmStart(**{name: value})
