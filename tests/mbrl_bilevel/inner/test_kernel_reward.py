"""Kernels with a tail: their means by quadrature, and a mixture that they teach two modes and outliers."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.data.splits import FitData, cross_fit
from mbrl_bilevel.evaluation.dynamics import evaluate_one_step
from mbrl_bilevel.imagination.particles import imagined_trajectories
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.inner.kernel_reward import KernelReward
from mbrl_bilevel.models.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.policies.distributions import DiagonalGaussian
from mbrl_bilevel.policies.mixture import GaussianMixture
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule

ROWS = 1500


def reward() -> KernelReward:
    made = KernelReward(2, height=3.0, precision=4.0, tail=0.1).double()
    with torch.no_grad():
        for i, parameter in enumerate(made.parameters()):
            parameter += 0.3 * torch.randn(2, generator=torch.Generator().manual_seed(i)).double()
    return made


def grid(mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of Gauss-Hermite quadrature in two dimensions."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    z, w = torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())
    pairs = torch.cartesian_prod(z, z).reshape(-1, 1, 1, 2)
    return mean + std * pairs, (w[:, None] * w).reshape(-1, 1, 1)


def test_by_hand() -> None:
    made = KernelReward(1, height=2.0, precision=4.0, tail=0.5)
    found = made(torch.tensor([[[[1.0]]]]), torch.tensor([[[0.5]]]), torch.zeros(1, 1, 1))
    assert found.item() == pytest.approx(2.0 * math.exp(-0.5) - 0.125)
    two = KernelReward(2, height=2.0, precision=4.0, tail=0.5)
    found = two(torch.tensor([[[[1.0, 2.0]]]]), torch.tensor([[[0.5, 3.0]]]), torch.zeros(1, 1, 1))
    assert found.item() == pytest.approx(4.0 * math.exp(-0.25 * (4 * 0.25 + 4 * 1.0)) - 0.625)


def test_the_mean_is_that_of_quadrature() -> None:
    g = torch.Generator().manual_seed(5)
    mean, y, x = (torch.randn(2, 3, 2, generator=g).double() for _ in range(3))
    log_std = 0.3 * torch.randn(2, 3, 2, generator=g).double() - 0.7
    made = reward()
    draws, weights = grid(mean, log_std.exp())
    gaussian = DiagonalGaussian(mean, log_std)
    found = made.expected(gaussian, y, x)
    torch.testing.assert_close(found, (weights * made(draws, y, x)).sum(0))
    other = DiagonalGaussian(mean + 1.0, log_std - 0.3)
    logits = torch.randn(2, 3, 2, generator=g).double()
    mixture = GaussianMixture(
        logits, torch.stack([mean, other.mean], -2), torch.stack([log_std, other.log_std], -2)
    )
    both = torch.stack([found, made.expected(other, y, x)], -1)
    torch.testing.assert_close(made.expected(mixture, y, x), (logits.softmax(-1) * both).sum(-1))


def test_what_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="tail positive"):
        KernelReward(2, tail=0.0)
    full = DiagonalGaussian(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2)).as_full()
    with pytest.raises(UnsupportedCombinationError, match="FullGaussian"):
        KernelReward(2).expected(full, torch.zeros(1, 1, 2), torch.zeros(1, 1, 1))


def drawn(kind: str, rows: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two modes at .3 sin 2x ± 1, or 5 % of outliers of σ = 3 about sin 2x; σ = .2 otherwise."""
    g = torch.Generator().manual_seed(seed)
    x = 2.0 * torch.rand(rows, 1, generator=g) - 1.0
    z, u, far = torch.randn(rows, 1, generator=g), torch.rand(rows, 1, generator=g), 3.0
    f = torch.sin(2.0 * x)
    if kind == "modes":
        return x, 0.3 * f + torch.where(u < 0.5, -1.0, 1.0) + 0.2 * z
    return x, f + torch.where(u < 0.05, far, 0.2) * z


def true_nll(kind: str, x: Tensor, y: Tensor) -> float:
    f = torch.sin(2.0 * x)
    if kind == "modes":
        parts, shares = [(0.3 * f - 1.0, 0.2), (0.3 * f + 1.0, 0.2)], [0.5, 0.5]
    else:
        parts, shares = [(f, 0.2), (f, 3.0)], [0.95, 0.05]
    logs = [
        torch.distributions.Normal(m, s).log_prob(y) + math.log(share)
        for (m, s), share in zip(parts, shares, strict=True)
    ]
    return -torch.stack(logs).logsumexp(0).mean().item()


def test_it_knows_which_modes_go_together() -> None:
    """Targets at (1, 1) and (−1, −1): the corner (1, −1), right in each dimension by itself, is worth
    no more than the middle."""
    y = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]])
    made = KernelReward(2, height=8.0, precision=16.0, tail=0.1)

    def worth(a: float, b: float) -> float:
        return made(torch.tensor([a, b]).expand(1, 1, 2, 2), y, torch.zeros(1, 2, 1)).mean().item()

    assert worth(1.0, 1.0) > 6.0
    assert worth(1.0, -1.0) < 0.0
    assert worth(0.0, 0.0) < 1.0


@cache
def held_out_nll(kind: str, name: str) -> float:
    x, y = drawn(kind, ROWS, 0)
    method, g = METHODS[name], torch.Generator().manual_seed(0)
    folds = cross_fit(np.arange(ROWS) // 10, 2, np.random.default_rng(0))
    data = FitData(x, y, folds if method.outer is not None else folds.without_outer())
    policy = method.make_policy(1, 1, generator=g, members=2, hidden=(32, 32))
    schedule = Schedule(steps=800, learning_rate=5e-3, patience=100)
    method.fit(policy, data, generator=g, schedule=schedule)
    x, y = drawn(kind, 4000, 1)
    with torch.no_grad():
        log_prob = policy.dist(x.expand(2, -1, -1)).log_prob(y.expand(2, -1, -1))
    return -log_prob.mean().item()


@pytest.mark.parametrize("kind", ["modes", "outliers"])
def test_a_mixture_learns_by_reward_what_no_gaussian_can(kind: str) -> None:
    found = held_out_nll(kind, "bilevel-mixture")
    assert found < held_out_nll(kind, "nll") - 0.5
    assert found < held_out_nll(kind, "bilevel-constant") - 0.5
    x, y = drawn(kind, 4000, 1)
    assert found < true_nll(kind, x, y) + 0.12
    assert found < held_out_nll(kind, "nll-mixture") + 0.1


def two_way(episodes: int, seed: int) -> Transitions:
    """A walk that goes one to the left or one to the right, as a coin falls."""
    g = np.random.default_rng(seed)
    length = 10
    step = g.choice([-1.0, 1.0], size=(episodes, length)) + 0.1 * g.normal(size=(episodes, length))
    path = np.concatenate([np.zeros((episodes, 1)), step.cumsum(1)], 1).astype(np.float32)
    rows = episodes * length
    off = np.zeros(rows, dtype=np.bool_)
    return Transitions(
        path[:, :-1].reshape(rows, 1),
        g.uniform(-1.0, 1.0, size=(rows, 1)).astype(np.float32),
        np.zeros(rows, dtype=np.float32),
        path[:, 1:].reshape(rows, 1),
        off,
        off,
        np.repeat(np.arange(episodes), length),
        np.tile(np.arange(length), episodes),
    )


def test_a_dynamics_model_keeps_the_modes_in_imagination() -> None:
    model: DynamicsModel
    model, _ = fit_dynamics(
        two_way(60, 0),
        METHODS["nll-mixture"],
        generator=torch.Generator().manual_seed(0),
        members=2,
        hidden=(16,),
        schedule=Schedule(steps=500, learning_rate=1e-2),
    )
    test = two_way(40, 1)
    # ½ (N(−1, .1²) + N(1, .1²)) has log 2 + log(.1 √(2πe)) = −.19 nats; a Gaussian at best 1.42.
    found = evaluate_one_step(model, test)
    assert found.nll < 0.1
    assert found.nrmse == pytest.approx(1.0, abs=0.1)
    obs, action = torch.zeros(1, 1), torch.zeros(1, 1)
    said = model.predict(obs, action)
    assert abs(said.mean[0, 0].item()) < 0.3
    assert said.std[0, 0].item() == pytest.approx(1.0, abs=0.15)
    particles, _ = imagined_trajectories(
        model,
        obs,
        torch.zeros(1, 1, 1),
        Imagination(particles=400),
        torch.Generator().manual_seed(0),
    )
    moved = particles[:, 0, 0, 0].abs()
    assert ((moved > 0.6) & (moved < 1.4)).float().mean() > 0.97
    assert 0.3 < (particles[:, 0, 0, 0] > 0).float().mean() < 0.7
