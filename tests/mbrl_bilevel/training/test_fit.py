"""The training loop: it learns, keeps the best of each member, stops, and fails cleanly."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import DivergedError, InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch, FitResult
from mbrl_bilevel.data.splits import FitData, Folds, cross_fit
from mbrl_bilevel.inner.estimators import GroupNormalised, LeaveOneOut
from mbrl_bilevel.inner.losses import MSE, NLL, Loss, PolicyGradient
from mbrl_bilevel.inner.rewards import Mahalanobis
from mbrl_bilevel.outer.closed_form import ClosedForm, ClosedFormGradient, HeldOutVariance
from mbrl_bilevel.outer.implicit import FisherImplicit
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.objectives import OneStepMSE, OneStepNLL
from mbrl_bilevel.outer.problem import Hypergradient, Problem, Warm
from mbrl_bilevel.policies.policies import GaussianPolicy, Policy
from mbrl_bilevel.training.fit import fit
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule

NOISE = (0.3, 0.8)
SLOPE = torch.tensor([[1.0, -0.5], [0.3, 0.8]])
FISHER = FisherImplicit(damping=0.0, rows=None)


def data(rows: int = 1000, members: int = 2, *, wide: int = 0, seed: int = 0) -> FitData:
    """y = x·SLOPE + noise, with ``wide`` further inputs that mean nothing."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2 + wide, generator=generator)
    y = x[:, :2] @ SLOPE + torch.randn(rows, 2, generator=generator) * torch.tensor(NOISE)
    folds = cross_fit(np.arange(rows) // 2, members, np.random.default_rng(seed))
    return FitData(x, y, folds)


def policy(
    members: int = 2, inputs: int = 2, hidden: tuple[int, ...] = (), seed: int = 0
) -> GaussianPolicy:
    generator = torch.Generator().manual_seed(seed)
    return GaussianPolicy(inputs, 2, generator=generator, members=members, hidden=hidden)


def run(
    made: GaussianPolicy,
    loss: Loss,
    outer: Outer | None,
    *,
    rows: FitData | None = None,
    seed: int = 1,
    **settings: object,
) -> FitResult:
    schedule = Schedule(**{"steps": 600, "learning_rate": 0.02, **settings})  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    return fit(made, loss, rows or data(), generator=generator, outer=outer, schedule=schedule)


def state(made: GaussianPolicy) -> list[Tensor]:
    return [p.detach().clone() for p in made.parameters()]


OUTERS: dict[str, tuple[Callable[[], Loss], Outer | None]] = {
    "nll": (NLL, None),
    "mse": (MSE, Outer(HeldOutVariance())),
    "closed form": (lambda: PolicyGradient(Mahalanobis(2)), Outer(ClosedForm())),
    "fisher": (
        lambda: PolicyGradient(Mahalanobis(2)),
        Outer(FISHER, optimiser=partial(torch.optim.Adam, lr=0.1), every=5),
    ),
    "gradient": (
        lambda: PolicyGradient(Mahalanobis(2)),
        Outer(ClosedFormGradient(), optimiser=partial(torch.optim.Adam, lr=0.1), every=5),
    ),
    "sampled": (
        lambda: PolicyGradient(Mahalanobis(2), LeaveOneOut(16)),
        Outer(FISHER, optimiser=partial(torch.optim.Adam, lr=0.1), every=5),
    ),
}


@pytest.mark.parametrize("name", OUTERS)
def test_learns_the_known_optimum(name: str) -> None:
    """Mean x·SLOPE and standard deviations NOISE, whatever the way there."""
    make, outer = OUTERS[name]
    made, loss = policy(), make()
    result = run(made, loss, outer)
    dist = made.dist(torch.eye(2).expand(2, 2, 2))
    zero = made.dist(torch.zeros(2, 1, 2)).mean
    torch.testing.assert_close(dist.mean - zero, SLOPE.expand(2, 2, 2), rtol=0.0, atol=0.15)
    spread = dist.std.mean((0, 1))
    torch.testing.assert_close(spread, torch.tensor(NOISE), rtol=0.15, atol=0.0)
    if isinstance(loss, PolicyGradient):
        assert isinstance(loss.reward, Mahalanobis)
        expected = 0.5 / torch.tensor(NOISE).square()
        torch.testing.assert_close(loss.reward.u.detach(), expected, rtol=0.3, atol=0.0)
        assert result.outer["updates"] > 0
    best_possible = sum(math.log(s) for s in NOISE) / 2 + 0.5 * math.log(2 * math.pi * math.e)
    nll = OneStepNLL()(made, data(seed=5).sample(data(seed=5).folds.train))
    assert nll.max().item() < best_possible + 0.05


def test_same_seed_same_result_bit_by_bit() -> None:
    results, states = [], []
    for _ in range(2):
        made = policy()
        loss = PolicyGradient(Mahalanobis(2), LeaveOneOut(4))
        results.append(run(made, loss, Outer(FISHER, every=10), steps=60))
        states.append(state(made))
    assert results[0] == results[1]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    other = policy()
    run(
        other,
        PolicyGradient(Mahalanobis(2), LeaveOneOut(4)),
        Outer(FISHER, every=10),
        steps=60,
        seed=2,
    )
    assert not torch.equal(state(other)[0], states[0][0])


def test_stops_early_on_few_noisy_rows_and_keeps_each_members_best() -> None:
    rows = data(200, wide=20)
    made = policy(inputs=22, hidden=(64, 64))
    result = run(
        made, NLL(), None, rows=rows, steps=3000, learning_rate=3e-3, evaluate_every=20, patience=5
    )
    assert result.stopped_early
    assert result.steps < 3000
    assert result.steps == max(step for step, _ in result.history["held_out"])
    assert result.steps - max(result.best_step) == 5 * 20
    stop = OneStepNLL()(made, rows.sample(rows.folds.stop))
    assert stop.tolist() == pytest.approx(list(result.criterion), rel=1e-5)
    assert min(result.criterion) <= min(value for _, value in result.history["held_out"])


def test_members_keep_states_of_different_steps() -> None:
    seen: list[Tensor] = []
    script = {0: [3.0, 1.0, 2.0], 1: [1.0, 2.0, 3.0]}

    def criterion(p: Policy, batch: Batch) -> Tensor:
        at = len(seen)
        seen.append(next(iter(p.parameters())).detach().clone())
        return torch.tensor([script[0][at], script[1][at]])

    made = policy()
    generator = torch.Generator().manual_seed(0)
    result = fit(
        made,
        NLL(),
        data(),
        generator=generator,
        criterion=criterion,
        schedule=Schedule(steps=30, evaluate_every=10, learning_rate=0.05),
    )
    assert result.best_step == (20, 10)
    assert result.criterion == (1.0, 1.0)
    kept = next(iter(made.parameters())).detach()
    assert torch.equal(kept[0], seen[1][0])
    assert torch.equal(kept[1], seen[0][1])
    assert not torch.equal(seen[0][1], seen[1][1])


def test_nan_in_the_training_rows_is_a_clean_divergence() -> None:
    rows = data()
    bad = rows.y.clone()
    bad[rows.folds.train[0]] = math.nan
    made = policy()
    before = state(made)
    with pytest.raises(DivergedError, match="learning_rate") as caught:
        run(made, NLL(), None, rows=FitData(rows.x, bad, rows.folds))
    assert "\n" not in str(caught.value)
    assert all(torch.equal(a, b) for a, b in zip(before, state(made), strict=True))


@pytest.mark.parametrize("name", ["closed form", "fisher"])
def test_nan_in_the_outer_rows_is_a_clean_divergence(name: str) -> None:
    rows = data()
    bad = rows.y.clone()
    # A row of member 0's outer sample alone is also a training row of member 1: take one member.
    only = Folds(rows.folds.train[:1], rows.folds.stop[:1], rows.folds.outer[:1])
    bad[only.outer[0]] = math.nan
    make, outer = OUTERS[name]
    made = policy(members=1)
    with pytest.raises(DivergedError):
        run(made, make(), outer, rows=FitData(rows.x, bad, only))
    assert all(bool(p.isfinite().all()) for p in made.parameters())


def test_divergence_after_progress_restores_the_best_state() -> None:
    values = iter([2.0, 1.0, math.nan])
    seen: list[list[Tensor]] = []

    def criterion(p: Policy, batch: Batch) -> Tensor:
        seen.append([q.detach().clone() for q in p.parameters()])
        return torch.full((2,), next(values))

    made = policy()
    with pytest.raises(DivergedError, match="step 30"):
        fit(
            made,
            NLL(),
            data(),
            generator=torch.Generator().manual_seed(0),
            criterion=criterion,
            schedule=Schedule(steps=100, evaluate_every=10),
        )
    assert all(torch.equal(a, b) for a, b in zip(seen[1], state(made), strict=True))


def test_ctrl_c_restores_the_best_state() -> None:
    seen: list[list[Tensor]] = []

    def log(name: str, value: float, step: int) -> None:
        if name == "fit/held_out":
            seen.append(state(made))
            if step == 30:
                raise KeyboardInterrupt

    values = iter([1.0, 2.0, 3.0])
    made = policy()
    with pytest.raises(KeyboardInterrupt):
        fit(
            made,
            NLL(),
            data(),
            generator=torch.Generator().manual_seed(0),
            criterion=lambda p, b: torch.full((2,), next(values)),
            schedule=Schedule(steps=100, evaluate_every=10),
            log=log,
        )
    assert all(torch.equal(a, b) for a, b in zip(seen[0], state(made), strict=True))


def test_the_history_and_the_log_tell_the_same() -> None:
    logged: list[tuple[str, float, int]] = []
    made = policy()
    result = fit(
        made,
        PolicyGradient(Mahalanobis(2)),
        data(),
        generator=torch.Generator().manual_seed(0),
        outer=Outer(FISHER, every=10),
        schedule=Schedule(steps=100, evaluate_every=50),
        log=lambda name, value, step: logged.append((name, value, step)),
    )
    told = {(f"fit/{n}", v, s) for n, points in result.history.items() for s, v in points}
    assert told == set(logged)
    for name in (
        "loss",
        "inner_gradient_norm",
        "held_out",
        "outer/linear_residual",
        "outer/inner_gradient_norm",
    ):
        assert [step for step, _ in result.history[name]][-1] == 100
    assert result.steps == 100
    assert not result.stopped_early
    assert result.outer["updates"] == 10.0


def test_no_memory_is_kept_over_many_outer_steps() -> None:
    counts: list[int] = []

    def log(name: str, value: float, step: int) -> None:
        if name == "fit/held_out":
            gc.collect()
            counts.append(sum(type(o) is Tensor for o in gc.get_objects()))

    # An outer step for each inner one: short, so that the inner level can follow.
    slow = partial(torch.optim.Adam, lr=0.01)
    outer = Outer(FISHER, optimiser=slow, every=1, batch_size=32)
    fit(
        policy(),
        PolicyGradient(Mahalanobis(2), LeaveOneOut(2)),
        data(200),
        generator=torch.Generator().manual_seed(0),
        outer=outer,
        schedule=Schedule(steps=300, evaluate_every=50, batch_size=32, patience=100),
        log=log,
    )
    assert counts[-1] <= counts[1] + 2


def test_phi_gathers_no_gradient_and_other_losses_leave_sigma_alone() -> None:
    loss = PolicyGradient(Mahalanobis(2))
    run(policy(), loss, Outer(ClosedForm()), steps=20)
    assert all(p.grad is None for p in loss.parameters())
    made = policy()
    run(made, MSE(), None, steps=20)
    torch.testing.assert_close(made.dist(torch.zeros(2, 1, 2)).std, torch.ones(2, 1, 2))


def test_refusals_come_before_training() -> None:
    rows = data()
    empty = tuple(r[:0] for r in rows.folds.train)
    biased = PolicyGradient(Mahalanobis(2), GroupNormalised(8))
    without = FitData(rows.x, rows.y, rows.folds.without_outer())
    unstopped = FitData(rows.x, rows.y, Folds(rows.folds.train, empty, rows.folds.outer))
    made = policy()
    before = state(made)
    with pytest.raises(UnsupportedCombinationError, match="unbiased"):
        run(made, biased, Outer())
    with pytest.raises(InvalidInputError, match="outer"):
        run(made, PolicyGradient(Mahalanobis(2)), Outer(ClosedForm()), rows=without)
    with pytest.raises(InvalidInputError, match="stop"):
        run(made, NLL(), None, rows=unstopped)
    with pytest.raises(InvalidInputError, match="members"):
        run(policy(members=3), NLL(), None)
    assert all(torch.equal(a, b) for a, b in zip(before, state(made), strict=True))


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"patience": 0},
        {"learning_rate": math.nan},
        {"weight_decay": -1.0},
    ],
)
def test_bad_schedules(wrong: dict[str, float]) -> None:
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        Schedule(**wrong)  # type: ignore[arg-type]


def test_the_named_methods_train() -> None:
    for name in ("bilevel", "nll", "mse"):
        method = METHODS[name]
        generator = torch.Generator().manual_seed(0)
        made = method.make_policy(2, 2, generator=generator, members=2, hidden=(8,))
        rows = data()
        if method.outer is None:
            rows = FitData(rows.x, rows.y, rows.folds.without_outer())
        result = fit(
            made,
            method.make_loss(made, rows),
            rows,
            generator=generator,
            outer=method.outer,
            criterion=method.criterion,
            schedule=Schedule(steps=300, learning_rate=0.01),
        )
        assert all(math.isfinite(value) for value in result.criterion)
        assert OneStepMSE()(made, rows.sample(rows.folds.stop)).max().item() < 0.5


class _Recorder:
    """A solver that keeps which inner rows it saw, and hands on a solution if ``warm``."""

    def __init__(self, warm: bool) -> None:
        self.warm, self.seen = warm, list[Tensor]()

    def check(self, problem: Problem) -> None: ...

    def hypergradient(
        self, problem: Problem, warm: Warm, generator: torch.Generator
    ) -> Hypergradient:
        self.seen.append(problem.train.x)
        solution = torch.ones(2, 1) if self.warm else None
        return Hypergradient((torch.zeros(2),), {}, Warm(solution))


@pytest.mark.parametrize("warm", [True, False])
def test_inner_rows_are_kept_while_a_linear_solution_is_handed_on(warm: bool) -> None:
    recorder = _Recorder(warm)
    outer = Outer(recorder, every=1, refresh=3)
    run(policy(), PolicyGradient(Mahalanobis(2)), outer, steps=7)
    same = [torch.equal(a, b) for a, b in pairwise(recorder.seen)]
    assert same == ([True, True, False, True, True, False] if warm else [False] * 6)


def test_phi_comes_to_rest_with_theta() -> None:
    """A φ at full speed would walk away in the end from a θ whose learning rate is zero."""

    class Push(_Recorder):
        def hypergradient(
            self, problem: Problem, warm: Warm, generator: torch.Generator
        ) -> Hypergradient:
            assert isinstance(problem.loss, PolicyGradient)
            assert isinstance(problem.loss.reward, Mahalanobis)
            self.seen.append(problem.loss.reward.log_u.detach().clone())
            return Hypergradient((torch.ones(2),), {})

    push = Push(False)
    outer = Outer(push, optimiser=partial(torch.optim.SGD, lr=0.1), every=3, warmup=6)
    run(policy(), PolicyGradient(Mahalanobis(2)), outer, steps=66)
    steps = torch.stack(push.seen).diff(dim=0).abs()[:, 0]
    assert len(steps) == 19
    assert steps[0].item() == pytest.approx(0.1)
    assert bool((steps.diff() < 0.0).all())
    assert steps[-1].item() < 0.03 * 0.1
