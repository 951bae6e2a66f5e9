"""Fits side by side end as they do alone, each with its own rows, reward and early stopping."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mbrl_bilevel.base.errors import (
    DivergedError,
    InvalidInputError,
    UnsupportedCombinationError,
)
from mbrl_bilevel.base.records import FitResult
from mbrl_bilevel.data.splits import FitData, cross_fit
from mbrl_bilevel.inner.estimators import LeaveOneOut
from mbrl_bilevel.inner.losses import NLL, PolicyGradient
from mbrl_bilevel.inner.rewards import Mahalanobis
from mbrl_bilevel.models.regression import fit_regression, fit_regression_side_by_side
from mbrl_bilevel.policies.policies import CategoricalPolicy, GaussianPolicy
from mbrl_bilevel.training.class_methods import CLASS_METHODS
from mbrl_bilevel.training.fit import Job, fit, fit_side_by_side
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule

SHORT = Schedule(steps=60, batch_size=32, evaluate_every=10, patience=2)
#: What a batched product may round otherwise, after so many steps of Adam.
CLOSE: dict[str, Any] = {"rtol": 2e-3, "atol": 2e-4}


def rows(seed: int, members: int = 2, noise: float = 0.1) -> FitData:
    """y = tanh(x A) + noise, of other numbers for each seed."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200 + 10 * seed, 3, generator=generator)
    y = torch.tanh(x @ torch.randn(3, 2, generator=generator))
    y = y + noise * torch.randn(y.shape, generator=generator)
    return FitData(x, y, cross_fit(np.arange(len(x)), members, np.random.default_rng(seed)))


def classes(seed: int) -> FitData:
    found = rows(seed)
    return replace(found, y=(found.y[:, :1] > 0.0).float() + (found.y[:, 1:] > 0.0))


def made(method: Any, seed: int, targets: int) -> tuple[Any, torch.Generator]:
    generator = torch.Generator().manual_seed(seed)
    return method.make_policy(3, targets, generator=generator, members=2, hidden=(8,)), generator


def states(policies: list[Any]) -> list[dict[str, torch.Tensor]]:
    return [{k: v.clone() for k, v in policy.state_dict().items()} for policy in policies]


def require_alike(together: FitResult, alone: FitResult) -> None:
    assert together.steps == alone.steps
    assert together.best_step == alone.best_step
    assert together.history.keys() == alone.history.keys()
    np.testing.assert_allclose(together.criterion, alone.criterion, rtol=2e-3, atol=2e-4)
    for name, points in alone.history.items():
        np.testing.assert_allclose(together.history[name], points, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("name", [*METHODS, *(f"class {name}" for name in CLASS_METHODS)])
def test_each_ends_as_it_does_alone(name: str) -> None:
    of_classes = name.startswith("class ")
    method = CLASS_METHODS[name.removeprefix("class ")] if of_classes else METHODS[name]
    data = [classes(seed) if of_classes else rows(seed) for seed in range(3)]
    if method.horizon > 1:
        pytest.skip("looks ahead: made one after another")
    targets = 3 if of_classes else 2
    expected, kept = [], []
    for seed in range(3):
        policy, generator = made(method, seed, targets)
        expected.append(method.fit(policy, data[seed], generator=generator, schedule=SHORT))
        kept.append(policy)
    pairs = [made(method, seed, targets) for seed in range(3)]
    policies, generators = [p for p, _ in pairs], [g for _, g in pairs]
    found = method.fit_side_by_side(policies, data, generators=generators, schedule=SHORT)
    for together, alone in zip(found, expected, strict=True):
        assert isinstance(together, FitResult)
        require_alike(together, alone)
    for mine, theirs in zip(states(policies), states(kept), strict=True):
        for key, value in theirs.items():
            torch.testing.assert_close(mine[key], value, **CLOSE)


def test_a_step_is_one_pass_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    plain = GaussianPolicy.dist

    def dist(self: GaussianPolicy, x: torch.Tensor) -> Any:
        if x.requires_grad or torch.is_grad_enabled():
            asked.append(len(x))
        return plain(self, x)

    monkeypatch.setattr(GaussianPolicy, "dist", dist)
    pairs = [made(METHODS["nll"], seed, 2) for seed in range(4)]
    jobs = [Job(policy, NLL(), rows(k), g) for k, (policy, g) in enumerate(pairs)]
    fit_side_by_side(jobs, schedule=replace(SHORT, steps=5, patience=5))
    assert asked == [8] * 5


def test_those_that_stop_early_leave_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = GaussianPolicy.dist

    def dist(self: GaussianPolicy, x: torch.Tensor) -> Any:
        if torch.is_grad_enabled():
            sizes.append(len(x))
        return plain(self, x)

    data = [rows(0, noise=3.0), rows(1, noise=0.01), rows(2, noise=3.0)]
    schedule = Schedule(300, 32, learning_rate=0.01, evaluate_every=5, patience=1)
    alone = []
    for seed in range(3):
        policy, generator = made(METHODS["nll"], seed, 2)
        alone.append(fit(policy, NLL(), data[seed], generator=generator, schedule=schedule))
    steps = [result.steps for result in alone]
    assert len(set(steps)) == 3, steps
    monkeypatch.setattr(GaussianPolicy, "dist", dist)
    pairs = [made(METHODS["nll"], seed, 2) for seed in range(3)]
    jobs = [Job(policy, NLL(), data[k], g) for k, (policy, g) in enumerate(pairs)]
    found = fit_side_by_side(jobs, schedule=schedule)
    assert [result.steps for result in found if isinstance(result, FitResult)] == steps
    assert [sizes.count(2 * k) for k in (3, 2, 1)] == list(np.diff([0, *sorted(steps)]))


class _Broken(nn.Module):
    """Likelihood, infinite from the third call on."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, policy: Any, batch: Any, generator: torch.Generator) -> Any:
        self.calls += 1
        value, told = NLL()(policy, batch, generator)
        return (value * float("nan") if self.calls > 2 else value), told


def test_one_that_diverges_costs_the_others_nothing() -> None:
    pairs = [made(METHODS["nll"], seed, 2) for seed in range(3)]
    losses = [NLL(), _Broken(), NLL()]
    jobs = [
        Job(p, loss, rows(k), g) for k, ((p, g), loss) in enumerate(zip(pairs, losses, strict=True))
    ]
    first, second, third = fit_side_by_side(jobs, schedule=SHORT)
    assert isinstance(second, DivergedError)
    assert all(v.isfinite().all() for v in pairs[1][0].parameters())
    for seed, found in ((0, first), (2, third)):
        policy, generator = made(METHODS["nll"], seed, 2)
        assert isinstance(found, FitResult)
        require_alike(found, fit(policy, NLL(), rows(seed), generator=generator, schedule=SHORT))


def test_draws_of_a_sampled_reward_are_each_ones_own() -> None:
    def job(seed: int) -> Job:
        policy, generator = made(METHODS["bilevel-constant"], seed, 2)
        loss = PolicyGradient(Mahalanobis(2).requires_grad_(False), LeaveOneOut(4))
        return Job(policy, loss, rows(seed), generator)

    alone = []
    for seed in range(2):
        one = job(seed)
        alone.append(fit(one.policy, one.loss, one.data, generator=one.generator, schedule=SHORT))
    for together, expected in zip(
        fit_side_by_side([job(0), job(1)], schedule=SHORT), alone, strict=True
    ):
        assert isinstance(together, FitResult)
        require_alike(together, expected)


def test_policies_are_their_own_again_behind_it() -> None:
    pairs = [made(METHODS["bilevel"], seed, 2) for seed in range(2)]
    policies, generators = [p for p, _ in pairs], [g for _, g in pairs]
    with warnings.catch_warnings():
        METHODS["bilevel"].fit_side_by_side(
            policies, [rows(0), rows(1)], generators=generators, schedule=SHORT
        )
    storages = [
        {v.untyped_storage().data_ptr() for v in policy.state_dict().values()}
        for policy in policies
    ]
    assert not storages[0] & storages[1]
    for policy in policies:
        for value in policy.state_dict().values():
            assert value.untyped_storage().nbytes() == value.nbytes


def test_what_cannot_be_joined_is_refused() -> None:
    (narrow, g), (wide, h) = made(METHODS["nll"], 0, 2), made(METHODS["nll"], 1, 3)
    other = replace(rows(1), y=torch.randn(len(rows(1).y), 3))
    with pytest.raises(InvalidInputError, match="one class, one size"):
        fit_side_by_side([Job(narrow, NLL(), rows(0), g), Job(wide, NLL(), other, h)])
    generator = torch.Generator().manual_seed(0)
    labels = CategoricalPolicy(3, 2, generator=generator, members=2, hidden=(8,))
    with pytest.raises(InvalidInputError, match="CategoricalPolicy"):
        fit_side_by_side([Job(narrow, NLL(), rows(0), g), Job(labels, NLL(), classes(0), h)])

    def elsewhere(policy: Any, batch: Any, generator: torch.Generator) -> Any:
        return NLL()(policy, replace(batch, x=batch.x + 1.0), generator)

    (one, g), (two, h) = made(METHODS["nll"], 0, 2), made(METHODS["nll"], 1, 2)
    with pytest.raises(UnsupportedCombinationError, match="one after another"):
        fit_side_by_side([Job(one, elsewhere, rows(0), g), Job(two, elsewhere, rows(1), h)])


def test_a_loss_that_reads_the_parameters_is_refused() -> None:
    """Its gradient by them would be of the single policy, which nobody descends."""

    def ridge(policy: Any, batch: Any, generator: torch.Generator) -> Any:
        value, told = NLL()(policy, batch, generator)
        return value + sum(p.square().flatten(1).sum(1) for p in policy.parameters()), told

    (one, g), (two, h) = made(METHODS["nll"], 0, 2), made(METHODS["nll"], 1, 2)
    before = states([one, two])
    with pytest.raises(UnsupportedCombinationError, match="reads the parameters"):
        fit_side_by_side([Job(one, ridge, rows(0), g), Job(two, ridge, rows(1), h)])
    for mine, theirs in zip(states([one, two]), before, strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert isinstance(fit(one, ridge, rows(0), generator=g, schedule=SHORT), FitResult)


class _Own(GaussianPolicy):
    """May hold what nobody knows how to join."""


@pytest.mark.parametrize("what", ["bounds", "frozen", "subclass"])
def test_policies_that_are_not_alike_are_refused(what: str) -> None:
    (one, g), (two, h) = made(METHODS["nll"], 0, 2), made(METHODS["nll"], 1, 2)
    if what == "bounds":
        two = GaussianPolicy(
            3, 2, generator=h, members=2, hidden=(8,), scale="network", log_std_bounds=(-1.0, 1.0)
        )
    elif what == "frozen":
        two.network.last.requires_grad_(False)
    else:
        one, two = (_Own(3, 2, generator=draws, members=2, hidden=(8,)) for draws in (g, h))
    with pytest.raises(InvalidInputError, match="side by side need policies"):
        fit_side_by_side([Job(one, NLL(), rows(0), g), Job(two, NLL(), rows(1), h)])


def test_a_repeat_that_cannot_be_fitted_costs_the_others_nothing() -> None:
    good = [rows(seed) for seed in range(3)]
    data = [(found.x, found.y) for found in good]
    data[1] = (torch.full_like(data[1][0], torch.nan), data[1][1])
    how: dict[str, Any] = {"members": 2, "hidden": (8,), "schedule": SHORT}
    draws = [torch.Generator().manual_seed(seed) for seed in range(3)]
    first, second, third = fit_regression_side_by_side(
        data, METHODS["nll"], generators=draws, **how
    )
    assert isinstance(second, InvalidInputError)
    for seed, found in ((0, first), (2, third)):
        assert isinstance(found, tuple)
        x, y = data[seed]
        draw = torch.Generator().manual_seed(seed)
        _, alone = fit_regression(x, y, np.arange(len(x)), METHODS["nll"], generator=draw, **how)
        require_alike(found[1], alone)
    assert fit_regression_side_by_side([], METHODS["nll"], generators=[]) == []
    assert fit_side_by_side([]) == []
