"""examples/shares.py: each share is what its name says, and the inferred one is reported."""

from __future__ import annotations

import numpy as np
import torch

from examples import shares
from mbrl_bilevel.data.splits import FitData, cross_fit
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule

#: What the example registers, which other tests are not to find.
NAMES = ("share-0", "share-25", "share-75", "share-100", "share-inferred")
SHARES = {name: METHODS.pop(name) for name in NAMES}


def test_its_methods_fit() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(200, 2, generator=g)
    data = FitData(
        x,
        torch.sin(x) + 0.1 * x[:, :1] * torch.randn(200, 2, generator=g),
        cross_fit(np.arange(200), 2, np.random.default_rng(0)),
    )
    for name, share in (("share-0", 0.0), ("share-75", 0.75), ("share-inferred", 0.5)):
        method = SHARES[name]
        policy = method.make_policy(2, 2, generator=g, members=2, hidden=(8,))
        reward = method.make_loss(policy, data).reward  # type: ignore[attr-defined]
        assert reward.share == share
        result = method.fit(policy, data, generator=g, schedule=Schedule(steps=260, batch_size=32))
        assert ("share" in result.outer) is (name == "share-inferred")
    assert shares.OURS is METHODS["bilevel"]
