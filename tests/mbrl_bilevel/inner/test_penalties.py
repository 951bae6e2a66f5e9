"""EWC: the Fisher information against its closed form and against drawn scores; where it holds a fit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.data.splits import FitData, cross_fit
from mbrl_bilevel.inner.losses import MSE, NLL
from mbrl_bilevel.inner.penalties import Anchor, Penalised, diagonal_fisher
from mbrl_bilevel.policies.policies import CategoricalPolicy, GaussianPolicy, MixturePolicy
from mbrl_bilevel.training.fit import fit
from mbrl_bilevel.training.settings import Schedule


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(members: int, rows: int, inputs: int, outputs: int) -> Batch:
    g = seeded(1)
    return Batch(
        torch.randn(members, rows, inputs, generator=g),
        torch.randn(members, rows, outputs, generator=g),
    )


def test_fisher_of_a_linear_policy_is_the_closed_form() -> None:
    policy = GaussianPolicy(3, 2, generator=seeded(), members=2, hidden=())
    std = torch.tensor([[0.5, 2.0], [0.3, 0.7]])
    policy.set_std(std)
    data = batch(2, 40, 3, 2)
    found = diagonal_fisher(policy, data)
    squares = data.x.square().mean(1)
    weight = squares.unsqueeze(-1) / std.square().unsqueeze(1)
    torch.testing.assert_close(found["network.layers.0.weight"], weight)
    raw = policy.raw_scale.detach().requires_grad_()
    slope = torch.autograd.grad(policy.bounded_log_std(raw).sum(), raw)[0]
    torch.testing.assert_close(found["raw_scale"], 2.0 * slope.square())


def test_fisher_of_a_network_is_the_mean_square_of_drawn_scores() -> None:
    policy = GaussianPolicy(2, 1, generator=seeded(), members=1, hidden=(4,), scale="network")
    data, g = batch(1, 3, 2, 1), seeded(2)
    exact = diagonal_fisher(policy, data)
    parameters = dict(policy.named_parameters())
    drawn = {name: torch.zeros_like(p) for name, p in parameters.items()}
    draws = 1500
    for _ in range(draws):
        for row in range(3):
            dist = policy.dist(data.x[:, row : row + 1])
            score = torch.autograd.grad(
                dist.log_prob(dist.sample(1, g)[0]).sum(), list(parameters.values())
            )
            for name, s in zip(parameters, score, strict=True):
                drawn[name] += s.square() / (3 * draws)
    total = sum(float(v.sum()) for v in exact.values())
    for name, value in exact.items():
        assert float((drawn[name] - value).abs().max()) < 0.15 * total, (
            name
        )  # three standard errors
    assert sum(float(v.sum()) for v in drawn.values()) == pytest.approx(total, rel=0.15)


def test_fisher_of_a_linear_classifier_is_the_closed_form() -> None:
    """E_x[xxᵀ ⊗ (diag(p) − ppᵀ)], of which the diagonal: x_i²·p_c(1 − p_c)."""
    policy, data = (
        CategoricalPolicy(3, 4, generator=seeded(), members=2, hidden=()),
        batch(2, 30, 3, 1),
    )
    found = diagonal_fisher(policy, data)
    p = policy.dist(data.x).probs.detach()
    weight = data.x.square().unsqueeze(-1) * (p * (1.0 - p)).unsqueeze(-2)
    torch.testing.assert_close(found["network.layers.0.weight"], weight.mean(1))
    torch.testing.assert_close(
        found["network.layers.0.bias"], (p * (1.0 - p)).mean(1, keepdim=True)
    )


def test_the_penalty_is_half_the_fisher_square_and_online_adds_up() -> None:
    policy, data = (
        GaussianPolicy(2, 2, generator=seeded(), members=2, hidden=(3,)),
        batch(2, 8, 2, 2),
    )
    anchor = Anchor.at(policy, data)
    with torch.no_grad():
        for p in policy.parameters():
            p += 0.1
    wanted = 3.0 * sum(0.5 * f.flatten(1).sum(1) * 0.01 for f in anchor.fisher.values()) / 2
    value, metrics = Penalised(MSE(), (anchor,), 3.0)(policy, data, seeded())
    torch.testing.assert_close(metrics["penalty"], wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        value - MSE()(policy, data, seeded())[0], wanted, rtol=1e-3, atol=1e-5
    )
    online = anchor.after(policy, data, 0.5)
    for name, new in diagonal_fisher(policy, data).items():
        torch.testing.assert_close(online.fisher[name], 0.5 * anchor.fisher[name] + new)


def test_a_strong_penalty_holds_and_none_lets_go() -> None:
    """y = x at first, then y = −x: the optimum with a Fisher of equal rows is in closed form."""
    x = torch.randn(400, 1, generator=seeded(3))
    folds = cross_fit(np.arange(400), 1, np.random.default_rng(0)).without_outer()
    slopes = {}
    for strength in (0.0, 1.0, 100.0):
        policy = GaussianPolicy(1, 1, generator=seeded(), members=1, hidden=())
        weight = policy.network.last.weight
        with torch.no_grad():
            weight.fill_(1.0)
        policy.raw_scale.requires_grad_(False)
        loss = Penalised(NLL(), (Anchor.at(policy, Batch(x[None], x[None])),), strength)
        slow = Schedule(steps=400, learning_rate=0.05)
        fit(policy, loss, FitData(x, -x, folds), generator=seeded(4), schedule=slow)
        slopes[strength] = weight.item()
    # σ = 1: (w + 1)²/2 + s(w − 1)²/2 is least at (s − 1)/(s + 1).
    assert slopes[0.0] == pytest.approx(-1.0, abs=0.02)
    assert slopes[1.0] == pytest.approx(0.0, abs=0.1)
    assert slopes[100.0] == pytest.approx(99.0 / 101.0, abs=0.02)


def test_refusals() -> None:
    mixture = MixturePolicy(2, 1, generator=seeded(), members=1, hidden=())
    with pytest.raises(UnsupportedCombinationError, match="GaussianPolicy"):
        Anchor.at(mixture, batch(1, 4, 2, 1))
    with pytest.raises(InvalidInputError, match="strength"):
        Penalised(NLL(), (), -1.0)
    policy, data = GaussianPolicy(2, 1, generator=seeded(), members=1, hidden=()), batch(1, 4, 2, 1)
    with pytest.raises(InvalidInputError, match="decay"):
        Anchor.at(policy, data).after(policy, data, 2.0)
