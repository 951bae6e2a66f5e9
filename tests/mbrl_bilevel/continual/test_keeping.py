"""The ways of keeping against closed forms of a policy that is one Gaussian, or one distribution of classes."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.continual.keeping import (
    Draws,
    Elastic,
    Keep,
    Near,
    Nothing,
    Recalled,
    Replay,
)
from mbrl_bilevel.continual.memory import Memory
from mbrl_bilevel.data.splits import FitData, cross_fit
from mbrl_bilevel.inner.losses import NLL, Loss, PolicyGradient
from mbrl_bilevel.inner.penalties import diagonal_fisher
from mbrl_bilevel.inner.rewards import Mahalanobis, RewardMatrix
from mbrl_bilevel.outer.implicit import FisherImplicit
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.linear_solvers import conjugate_gradient
from mbrl_bilevel.outer.objectives import OneStepNLL
from mbrl_bilevel.policies.policies import GaussianPolicy, Policy
from mbrl_bilevel.policies.tempered import TemperedPolicy
from mbrl_bilevel.training.method import Method
from mbrl_bilevel.training.settings import Schedule

U = 2.0  # of the reward: alone it asks for the variance 1/(2U)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Latest:
    """A criterion that is always better than before: the last state is kept."""

    def __init__(self) -> None:
        self.reading = 0.0

    def __call__(self, policy: Policy, batch: Batch) -> Tensor:
        self.reading -= 1.0
        return torch.full((policy.members,), self.reading)


def rewarded(outer: Outer | None = None) -> Method:
    """A fixed quadratic reward, entropy at λ = 1."""

    def loss(policy: GaussianPolicy, data: FitData) -> Loss:
        return PolicyGradient(Mahalanobis(policy.outputs, "diagonal", U).requires_grad_(False))

    return Method(GaussianPolicy, loss, Latest(), outer=outer)


def likely() -> Method:
    return Method(GaussianPolicy, lambda policy, data: NLL(), Latest())


def at(mean: float, std: float, members: int = 1) -> GaussianPolicy:
    """N(mean, std²) at x = 0."""
    policy = GaussianPolicy(1, 1, generator=seeded(), members=members, hidden=())
    with torch.no_grad():
        policy.network.last.weight.fill_(1.0)
        policy.network.last.bias.fill_(mean)
    policy.set_std(torch.tensor([std]))
    return policy


def rows(y: Tensor | float, count: int = 40, members: int = 1) -> FitData:
    """Targets ``y`` at x = 0."""
    target = torch.as_tensor(y, dtype=torch.float32).expand(count).reshape(-1, 1).clone()
    folds = cross_fit(np.arange(count), members, np.random.default_rng(0))
    return FitData(torch.zeros(count, 1), target, folds)


def learned(
    keep: Keep, method: Method, policy: GaussianPolicy, new: FitData, steps: int = 250
) -> None:
    slow = Schedule(steps=steps, batch_size=64, learning_rate=0.08, patience=steps)
    made = keep.method(method)
    made.fit(policy, keep.data(new, seeded(7)), generator=seeded(1), schedule=slow)


def moments(policy: GaussianPolicy) -> tuple[float, float]:
    """Mean and variance at x = 0."""
    dist = policy.dist(torch.zeros(policy.members, 1, 1))
    return dist.mean[0].item(), dist.std[0].item() ** 2


@pytest.mark.parametrize("strength", [0.5, 3.0])
def test_near_lands_on_the_regularised_optimum(strength: float) -> None:
    """P = (λ_K/S₀ + 2U)/(1 + λ_K), mean P⁻¹(λ_K m₀/S₀ + 2U·E[y])/(1 + λ_K)."""
    previous, policy = at(-1.0, 0.8), at(0.0, 1.0)
    keep = Near(strength).after(previous, rows(-1.0), seeded())
    learned(keep, rewarded(), policy, rows(1.5))
    precision = (strength / 0.64 + 2.0 * U) / (1.0 + strength)
    mean = (strength * -1.0 / 0.64 + 2.0 * U * 1.5) / (1.0 + strength) / precision
    assert moments(policy) == pytest.approx((mean, 1.0 / precision), abs=0.01)
    assert moments(previous) == pytest.approx((-1.0, 0.64), abs=1e-5)


def test_near_is_a_penalty_on_a_likelihood() -> None:
    """NLL + λ_K·KL(p ‖ N(m₀, S₀)): the mean weighs what was seen by 1/s² and the reference by λ_K/S₀; the
    variance solves (1 − λ_K)/s² = E[(y − m)²]/s⁴ − λ_K/S₀."""
    policy, spread = at(0.0, 1.0), 0.6
    keep = Near(2.0).after(at(-1.0, 0.8), rows(-1.0), seeded())
    new = rows(torch.tensor([1.5 - spread, 1.5 + spread]).repeat(20))
    learned(keep, likely(), policy, new, steps=500)
    mean, variance = moments(policy)
    assert mean == pytest.approx(
        (1.5 / variance - 2.0 / 0.64) / (1.0 / variance + 2.0 / 0.64), abs=0.05
    )
    moment = spread**2 + (1.5 - mean) ** 2
    assert -1.0 / variance == pytest.approx(moment / variance**2 - 2.0 / 0.64, abs=0.1)


def test_near_of_classes_is_the_product_of_reference_and_reward() -> None:
    """p* ∝ p_ref^{λ_K/Λ}·exp(r̄/Λ), and it is the reference at the temperature of training that counts."""
    matrix = torch.tensor([[1.0, -0.5, 0.2], [0.0, 2.0, 0.4], [0.3, 0.1, 0.5]])
    method = Method(
        TemperedPolicy, lambda policy, data: PolicyGradient(RewardMatrix(matrix.clone()))
    )
    new = rows(1.0)
    policy = method.make_policy(1, 3, generator=seeded(), members=1, hidden=())
    previous = method.make_policy(1, 3, generator=seeded(5), members=1, hidden=())
    with torch.no_grad():
        previous.network.last.bias.copy_(torch.tensor([2.0, -1.0, 0.0]))
    keep = Near(0.7).after(previous, new, seeded())
    with torch.no_grad():  # once more, as if the answers were then made twice as sure
        previous.temper.fill_(0.7)
    sharp = Near(0.7).after(previous, new, seeded())
    expected = (0.7 * torch.tensor([2.0, -1.0, 0.0]) + matrix[:, 1]).div(1.7).softmax(-1)
    for kept in (keep, sharp):
        made = kept.method(method)
        slow = Schedule(steps=250, batch_size=16, learning_rate=0.08)
        made.fit(policy, new, generator=seeded(1), schedule=slow)
        found = policy.dist(torch.zeros(1, 1, 1)).probs[0, 0]
        torch.testing.assert_close(found, expected, atol=0.01, rtol=0.0)


def strength_found(keep: Near, method: Method, new: FitData) -> float:
    made = keep.method(method)
    slow = Schedule(steps=1200, batch_size=16, learning_rate=0.02, patience=1200)
    result = made.fit(at(0.0, 0.6), new, generator=seeded(1), schedule=slow)
    return result.outer["kl_strength"]


def best_strength(new: FitData, past: Tensor, reference: float) -> float:
    """Where NLL(held-out new rows) + NLL(``past``) at the inner optimum is least, near N(0, reference²)."""
    train, held_out = new.y[new.folds.train[0]], new.y[new.folds.outer[0]]

    def total(log_strength: float) -> float:
        k = float(np.exp(log_strength))
        precision = (k / reference**2 + 2.0 * U) / (1.0 + k)
        centre = 2.0 * U * train.mean() / (1.0 + k) / precision
        dist = torch.distributions.Normal(centre, precision**-0.5)
        return float(-dist.log_prob(held_out).mean() - dist.log_prob(past).mean())

    return float(np.exp(minimize_scalar(total, bounds=(-6.0, 4.0), method="bounded").x))


def test_the_inferred_strength_rises_where_the_past_is_right_and_falls_where_tasks_contradict() -> (
    None
):
    """Against the minimum of ½·NLL(new) + ½·NLL(draws of the previous policy) over λ_K at the inner optimum."""
    exact = FisherImplicit(partial(conjugate_gradient, tolerance=1e-6), damping=0.01)
    outer = Outer(exact, optimiser=partial(torch.optim.Adam, lr=0.15), every=20, warmup=200)
    start, spread = 2.0, 0.2  # the reward alone asks for the std .5
    draws = spread * torch.randn(400, generator=seeded(2))
    found = {}
    for name, mean in (("same", 0.0), ("contradicting", 1.0)):
        new = rows(mean + draws, 400)
        keep = Near(start, inferred=True).after(at(0.0, spread), rows(0.0, 400), seeded(3))
        found[name] = strength_found(keep, rewarded(outer), new)
        if name == "contradicting":
            assert keep.earlier is not None
            best = best_strength(new, keep.earlier.y, spread)
            assert found[name] == pytest.approx(best, rel=0.25)
    assert found["contradicting"] < 0.5 * start
    assert found["same"] > 1.5 * start


def test_replay_gives_the_past_its_share_of_tasks() -> None:
    keep = Replay(Memory(30))
    policy = at(0.0, 1.0)
    for task in range(2):
        keep = keep.after(policy, rows(float(task + 1), 100), seeded(task))
    data = keep.data(rows(9.0, 100), seeded())
    old = [(data.y[part[0]] != 9.0).float().mean().item() for part in
           (data.folds.train, data.folds.stop, data.folds.outer)]  # fmt: skip
    assert old[0] == pytest.approx(2.0 / 3.0, abs=0.05)
    assert set(data.y.unique().tolist()) == {1.0, 2.0, 9.0}


def test_dark_targets_are_half_of_what_the_model_said() -> None:
    keep = Replay(Memory(10_000), dark=True).after(at(50.0, 0.01), rows(1.0, 4000), seeded())
    assert keep.memory.rows is not None
    said = keep.memory.rows.y > 25.0
    assert said.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert (keep.memory.rows.y[~said] == 1.0).all()


def test_learning_without_forgetting_trains_on_the_previous_policys_targets() -> None:
    keep = Draws("new").after(at(-3.0, 0.5), rows(0.0), seeded())
    new = rows(5.0, 2000)
    data = keep.data(new, seeded(4))
    drawn = data.y[2000:]
    assert (drawn.mean().item(), drawn.std().item()) == pytest.approx((-3.0, 0.5), abs=0.05)
    torch.testing.assert_close(data.x, torch.cat([new.x, new.x]))
    train = data.folds.train[0]
    assert (train >= 2000).mean() == pytest.approx(0.5, abs=0.02)


def test_generative_replay_weighs_tasks_by_their_number() -> None:
    keep = Draws("seen")
    for centre in (10.0, 20.0):
        shifted = FitData(rows(0.0).x + centre, rows(0.0).y, rows(0.0).folds)
        keep = keep.after(at(-3.0, 0.5), shifted, seeded())
    data = keep.data(rows(5.0, 1000), seeded(4))
    assert (data.folds.train[0] >= 1000).mean() == pytest.approx(2.0 / 3.0, abs=0.02)
    x = data.x[1000:, 0]
    assert sorted(x.round().unique().tolist()) == [10.0, 20.0]
    torch.testing.assert_close(data.y[1000:].mean(), x.mean() - 3.0, atol=0.1, rtol=0.0)


def test_elastic_weights_balance_the_tasks_in_a_fit() -> None:
    """σ = 1 and x = 0: the Fisher information of the mean is one, so (m − 1)² + s·Σ_k (m − m_k)² is least."""
    for decay, strength in ((None, 2.0), (0.5, 2.0)):
        keep: Elastic = Elastic(strength, decay, rows=16)
        for centre in (-1.0, -2.0):
            keep = keep.after(at(centre, 1.0), rows(centre), seeded())
        assert len(keep.anchors) == (2 if decay is None else 1)
        policy = at(0.0, 1.0)
        policy.raw_scale.requires_grad_(False)
        learned(keep, likely(), policy, rows(1.0))
        if decay is None:
            expected = (1.0 + strength * (-1.0 - 2.0)) / (1.0 + 2.0 * strength)
        else:  # one anchor where the last task ended, with 1 + decay of information
            expected = (1.0 - strength * 1.5 * 2.0) / (1.0 + strength * 1.5)
        # The scale is held as well, by rows of its own, so only the mean is free.
        assert moments(policy)[0] == pytest.approx(expected, abs=0.02)


def test_elastic_weights_are_measured_on_rows_of_the_task() -> None:
    new = rows(0.0)
    policy = at(0.0, 0.5)
    keep = Elastic(1.0).after(policy, new, seeded())
    fisher = diagonal_fisher(policy, new.sample(new.folds.train))
    for name, value in keep.anchors[0].fisher.items():
        torch.testing.assert_close(value, fisher[name])


def test_nothing_is_kept_by_nothing() -> None:
    new, method = rows(1.0), likely()
    assert Nothing().data(new, seeded()) is new
    assert Nothing().method(method) is method
    assert Nothing().after(at(0.0, 1.0), new, seeded()) == Nothing()


@pytest.mark.parametrize(
    "keep",
    [Near(1.0), Near(1.0, inferred=True), Near(1.0, inferred=True, memory=Memory(10)),
     Recalled(1.0), Draws("new"), Draws("seen"), Replay(Memory(10)), Replay(Memory(10), dark=True), Elastic(1.0)],
    ids=lambda keep: type(keep).__name__,
)  # fmt: skip
def test_before_the_first_task_it_is_as_if_nothing_were_kept(keep: Keep) -> None:
    new, method = rows(1.0), rewarded(Outer(FisherImplicit(), OneStepNLL()))
    assert keep.data(new, seeded()) is new
    assert keep.method(method) is method
    # And what is kept afterwards is no part of what was kept before.
    policy = at(0.0, 1.0)
    after = keep.after(policy, new, seeded())
    assert keep.data(new, seeded()) is new
    with torch.no_grad():
        policy.network.last.bias.fill_(100.0)
    previous = getattr(after, "previous", None)
    if previous is not None:
        assert moments(previous)[0] == 0.0
    for anchor in getattr(after, "anchors", ()):
        assert anchor.centre["network.layers.0.bias"].item() == 0.0


def test_a_tempered_reference_is_left_as_it_was() -> None:
    policy = TemperedPolicy(1, 2, generator=seeded(), hidden=())
    policy.temper.fill_(0.5)
    plain = policy.untempered()
    assert float(policy.temper.abs().sum()) > 0.0
    torch.testing.assert_close(
        plain.dist(torch.ones(1, 1, 1)).logits, policy.logits(torch.ones(1, 1, 1))
    )
