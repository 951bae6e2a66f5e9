"""Returns in open loop: their objective, by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Batch, Step
from mbrl_bilevel.data.splits import Chain, FitData, Folds
from mbrl_bilevel.outer.objectives import OpenLoopReturn
from mbrl_bilevel.policies.policies import GaussianPolicy

ROWS = 40


def outcome(x: Tensor, y: Tensor) -> Step:
    """A state s and an action a; a step pays y₁ and ends where the next state is above 2."""
    next_obs = x[..., :1] + y[..., :1]
    return Step(next_obs, y[..., 1], (next_obs[..., 0] > 2.0).to(y))


def segments(horizon: int = 3) -> Batch:
    """Two members' rows of one long episode: s' = s + y₀ in units that are raw ones."""
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(ROWS, 2, generator=g), torch.randn(ROWS, 2, generator=g)
    successor = torch.arange(1, ROWS + 1)
    successor[-1] = -1
    chain = Chain(successor, torch.tensor([[1.0], [0.0]]), torch.zeros(1), horizon, outcome=outcome)
    rows = (np.arange(ROWS), np.arange(ROWS // 2))
    return FitData(x, y, Folds(rows, rows, rows), chain).sample(rows)


def policy() -> GaussianPolicy:
    return GaussianPolicy(2, 2, generator=torch.Generator().manual_seed(1), members=2, hidden=(8,))


def by_hand(policy: GaussianPolicy, batch: Batch, objective: OpenLoopReturn) -> Tensor:
    """The definition, in loops."""
    segment = batch.segment
    assert segment is not None
    every = [
        [_returns(policy, batch, objective, e, b) for b in range(batch.x.shape[1])]
        for e in range(2)
    ]
    found = torch.zeros(2)
    for h in range(segment.horizon):
        weight = batch.weights * segment.there[h]
        rows = [(e, b) for e in range(2) for b in range(ROWS) if weight[e, b] > 0]
        true = torch.tensor([every[e][b][1][h] for e, b in rows])
        for e in range(2):
            errors = [every[m][b][0][h] - every[m][b][1][h] for m, b in rows if m == e]
            found[e] += torch.tensor(errors).square().mean() / true.var(correction=0)
    return found / segment.horizon


def _returns(
    policy: GaussianPolicy, batch: Batch, objective: OpenLoopReturn, e: int, b: int
) -> tuple[list[float], list[float]]:
    segment = batch.segment
    assert segment is not None
    both = []
    for imagined in (True, False):
        state, paid, counts, found = segment.x[0, e, b, 0], 0.0, 1.0, []
        for h in range(segment.horizon):
            x, y = segment.x[h, e, b].clone(), segment.y[h, e, b]
            if imagined:
                x[0] = state
                y = policy.dist(x.expand(2, 1, -1)).mean[e, 0].detach()
            step = outcome(x, y)
            state = step.next_obs[0]
            paid += counts * step.reward.item()
            counts *= objective.discount * (1.0 - step.terminated.item())
            value = 0.0 if objective.value is None else objective.value(step.next_obs).item()
            found.append(paid + counts * value)
        both.append(found)
    return both[0], both[1]


@pytest.mark.parametrize(
    "objective", [OpenLoopReturn(), OpenLoopReturn(0.9, value=lambda obs: obs[..., 0].square())]
)
def test_is_its_definition(objective: OpenLoopReturn) -> None:
    batch, made = segments(), policy()
    torch.testing.assert_close(objective(made, batch), by_hand(made, batch, objective))


def test_its_gradient_is_that_of_finite_differences() -> None:
    made, batch = policy().double(), segments()
    assert batch.segment is not None
    wide = replace(
        batch.segment,
        **{n: getattr(batch.segment, n).double() for n in ("x", "y", "there", "gain", "drift")},
    )
    batch = Batch(batch.x.double(), batch.y.double(), batch.weights.double(), wide)
    weight = made.network.last.weight
    objective = OpenLoopReturn(value=lambda obs: obs[..., 0])
    (slope,) = torch.autograd.grad(objective(made, batch).sum(), weight)
    values = []
    for sign in (1.0, -1.0):
        with torch.no_grad():
            weight[0, 3, 0] += sign * 1e-5
            values.append(objective(made, batch).sum().item())
            weight[0, 3, 0] -= sign * 1e-5
    assert slope[0, 3, 0].item() == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)
    assert abs(slope[0, 3, 0].item()) > 1e-6  # it moves the state alone, and with it later returns


def test_refuses() -> None:
    with pytest.raises(InvalidInputError, match="discount must lie above 0"):
        OpenLoopReturn(0.0)
    batch = segments()
    with pytest.raises(InvalidInputError, match="segments whose steps have rewards"):
        OpenLoopReturn()(policy(), replace(batch, segment=None))
