"""Two modes, of which the new data shows one: likelihood loses the other, a reward that still pays for it keeps it.

Gaussian mixtures in one dimension as in arXiv 2603.12163: components stay, their masses are learned. Likelihood
of new data is a forward KL, policy gradient with entropy a reverse KL to p* ∝ exp(r/λ); each by our own loss,
against quadrature and closed forms.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.estimators import LeaveOneOut
from mbrl_bilevel.inner.losses import NLL, Loss, PolicyGradient
from mbrl_bilevel.inner.regularisers import Entropy
from mbrl_bilevel.policies.policies import MixturePolicy

#: The modes stand at −FAR (old) and FAR (new), with σ = 1.
FAR = 3.0
GRID = np.linspace(-12.0, 12.0, 4001)
OLD, NEW = norm.pdf(GRID, -FAR), norm.pdf(GRID, FAR)


def integral(values: npt.NDArray[np.float64]) -> float:
    return float(np.trapezoid(values, GRID))


def mixture(mass: float) -> MixturePolicy:
    """``mass`` on the old mode."""
    policy = MixturePolicy(1, 1, generator=torch.Generator(), components=2, members=1, hidden=())
    policy = policy.double()
    with torch.no_grad():
        policy.network.last.weight.zero_()
        policy.network.last.bias.copy_(
            torch.tensor([[[math.log(mass), math.log(1.0 - mass), -FAR, FAR]]])
        )
    return policy


def old_mass(policy: MixturePolicy) -> float:
    return float(policy.dist(torch.zeros(1, 1, 1).double()).weights[0, 0, 0].detach())


def new_data() -> Batch:
    """N(FAR, 1) as the nodes and weights of a quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    y = torch.from_numpy(nodes + FAR).reshape(1, -1, 1)
    return Batch(torch.zeros_like(y), y, torch.from_numpy(weights).reshape(1, -1))


def rows(count: int = 8) -> Batch:
    return Batch(torch.zeros(1, count, 1).double(), torch.zeros(1, count, 1).double())


def slope(policy: MixturePolicy, loss: Loss, batch: Batch, generator: torch.Generator) -> Tensor:
    """d loss / d(logit of the old mode, of the new one), [2]."""
    value, _ = loss(policy, batch, generator)
    (found,) = torch.autograd.grad(value.sum(), policy.network.last.bias)
    return found[0, 0, :2]


def descend(mass: float, loss: Loss, batch: Batch, steps: int, rate: float) -> float:
    """The old mode's mass after so many steps of gradient descent on the logits."""
    policy, generator = mixture(mass), torch.Generator().manual_seed(0)
    for _ in range(steps):
        found = slope(policy, loss, batch, generator)
        with torch.no_grad():
            policy.network.last.bias[0, 0, :2] -= rate * found
    return old_mass(policy)


def paid_for(share: float) -> PolicyGradient:
    """λ = 1 and the reward log p*, whose inner optimum is p*, with ``share`` on the old mode."""

    def reward(y_hat: Tensor, y: Tensor, x: Tensor) -> Tensor:
        log_old, log_new = (-0.5 * (y_hat[..., 0] - at).square() for at in (-FAR, FAR))
        weights = torch.tensor([share, 1.0 - share]).double().log()
        both = torch.stack([log_old + weights[0], log_new + weights[1]])
        return both.logsumexp(0) - 0.5 * math.log(2.0 * math.pi)

    return PolicyGradient(reward, LeaveOneOut(4096), Entropy(1.0), bonus_samples=4096)


@pytest.mark.parametrize("mass", [0.9, 0.5, 0.05])
def test_likelihood_of_new_data_lowers_the_old_modes_mass_wherever_it_is(mass: float) -> None:
    found = slope(mixture(mass), NLL(), new_data(), torch.Generator())
    responsible = integral(NEW * mass * OLD / (mass * OLD + (1.0 - mass) * NEW))
    assert float(found[0]) == pytest.approx(mass - responsible, rel=1e-3)
    assert float(found[0]) > 0.0


def test_likelihood_drives_it_to_zero_at_the_rate_of_the_closed_form() -> None:
    # Far apart dw/dt = −2w²(1 − w), so −1/w + log(w/(1 − w)) falls by 2t: to w ≈ 1/(2t).
    def left(w: float) -> float:
        return -1.0 / w + math.log(w / (1.0 - w))

    steps, rate = 400, 0.25
    predicted = brentq(lambda w: left(w) - left(0.5) + 2.0 * steps * rate, 1e-4, 0.5)
    found = descend(0.5, NLL(), new_data(), steps, rate)
    assert found == pytest.approx(predicted, rel=0.05)
    assert found < 0.006


@pytest.mark.parametrize("mass", [0.9, 0.5, 0.05])
def test_policy_gradient_is_the_reverse_kl_to_what_the_reward_holds(mass: float) -> None:
    share = 0.3
    density, target = mass * OLD + (1.0 - mass) * NEW, share * OLD + (1.0 - share) * NEW
    # d KL(p ‖ p*)/dw = ∫(old − new) log(p/p*), and dw/d logit = w(1 − w).
    by_mass = integral((OLD - NEW) * np.log(density / target))
    found = slope(mixture(mass), paid_for(share), rows(), torch.Generator().manual_seed(1))
    assert float(found[0]) == pytest.approx(mass * (1.0 - mass) * by_mass, abs=0.01)


@pytest.mark.parametrize("mass", [0.9, 0.05])
def test_it_ends_with_the_mass_that_the_reward_holds(mass: float) -> None:
    assert descend(mass, paid_for(0.3), rows(1), 50, 1.5) == pytest.approx(0.3, abs=0.03)


def test_where_the_reward_no_longer_holds_it_policy_gradient_loses_it_too_and_faster() -> None:
    by_reward = descend(0.5, paid_for(1e-12), rows(1), 12, 0.25)
    by_likelihood = descend(0.5, NLL(), new_data(), 12, 0.25)
    assert by_reward < 0.02 < 0.1 < by_likelihood
