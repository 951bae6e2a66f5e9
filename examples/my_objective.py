"""An outer objective of your own: the reward is inferred so that a gambler's profit on held-out rows is the best.

    python examples/my_objective.py

An objective is a function of the policy and of a batch of held-out rows: one number a member [E], to be minimised,
with a gradient in the policy. ``batch.mean`` is the weighted mean over a member's rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbrl_bilevel import BilevelClassifier
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.policies.policies import Policy

Array = npt.NDArray[Any]

#: What a won bet on each class pays, per unit staked.
ODDS = (0.2, 3.0)


def loss_of_bets(policy: Policy, batch: Batch) -> Tensor:
    """−E[profit] of betting one unit on a class that is drawn from the policy: −(p(y)·(odds of y + 1) − 1)."""
    chance = policy.dist(batch.x).log_prob(batch.y).exp()  # [E, B]
    pays = torch.tensor(ODDS, dtype=chance.dtype)[batch.y[..., 0].long()] + 1.0
    return -batch.mean(chance * pays - 1.0)


def profit(answers: Array, y: Array) -> float:
    """The mean profit of betting on ``answers`` where ``y`` came."""
    return float(np.where(answers == y, np.array(ODDS)[answers], -1.0).mean())


def races(rows: int, seed: int) -> tuple[Array, Array]:
    """The second class comes seldom, P = sigmoid(2·x₀ − 2), and pays well."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 3))
    return x, (random.random(rows) < 1.0 / (1.0 + np.exp(2.0 - 2.0 * x[:, 0]))).astype(int)


def profits(rows: int = 1500, steps: int = 400) -> dict[str, float]:
    """The profit on unseen rows: with a reward for likelihood, and with one for the profit itself."""
    (x, y), (unseen, truth) = races(rows, 0), races(4000, 1)
    found = {}
    wanted: dict[str, Any] = {"likelihood": "nll", "profit": loss_of_bets}
    for name, objective in wanted.items():
        model = BilevelClassifier(objective=objective, members=5, steps=steps, random_state=0)
        found[name] = profit(model.fit(x, y).predict(unseen), truth)
    return found


if __name__ == "__main__":
    print(profits())
