"""The shallow model that is solved before a network is trained, held against scikit-learn's."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import Ridge

from mbrl_bilevel.data.splits import FitData, cross_fit
from mbrl_bilevel.outer.shallow import PENALTIES, Features, Shallow, ridge


def rows(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(400, 3, generator=g, dtype=torch.float64)
    noise = torch.randn(400, 2, generator=g, dtype=torch.float64)
    return x, torch.stack([x[:, 0] * x[:, 1], torch.sin(x[:, 2])], 1) + 0.1 * noise


def test_with_one_penalty_it_is_scikit_learns_ridge() -> None:
    x, y = rows()
    features = Features.drawn(3, 20, torch.Generator().manual_seed(1))(x)
    for penalty in PENALTIES:
        ours = ridge(features, y, (penalty,))
        theirs = Ridge(alpha=penalty, fit_intercept=False).fit(features.numpy(), y.numpy()).coef_.T
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-6, atol=1e-8)


def test_each_target_gets_the_penalty_of_the_least_cross_validated_error() -> None:
    x, y = rows()
    features = Features.drawn(3, 200, torch.Generator().manual_seed(1))(x)
    targets = torch.cat([y, torch.randn(400, 1, dtype=torch.float64)], 1)

    def gcv(penalty: float) -> torch.Tensor:
        gram = features.T @ features
        inverse = torch.linalg.inv(gram + penalty * torch.eye(len(gram), dtype=torch.float64))
        hat = features @ inverse @ features.T
        residual = targets - hat @ targets
        return residual.square().sum(0) / (1.0 - hat.trace() / len(x)) ** 2

    best = torch.stack([gcv(p) for p in PENALTIES]).argmin(0).tolist()
    assert len(set(best)) > 1
    chosen = ridge(features, targets)
    for column, which in enumerate(best):
        alone = ridge(features, targets[:, [column]], (PENALTIES[which],))
        torch.testing.assert_close(chosen[:, [column]], alone)


def test_members_are_judged_on_rows_that_they_have_not_seen() -> None:
    x, y = rows()
    folds = cross_fit(np.arange(400) // 10, 2, np.random.default_rng(0))
    data = FitData(x, y, folds)
    shallow = Shallow.fitted(data, y, count=50, most=1000, judged=1000)
    for member, residual in enumerate(shallow.residuals()):
        unseen = folds.with_stop_as_outer().outer[member]
        assert not set(unseen) & set(folds.train[member])
        torch.testing.assert_close(shallow.y[member], y[unseen])
        assert (residual.square().mean(0) < 0.2 * y.var(0)).all()
    g = torch.Generator().manual_seed(0)
    moved = shallow.shuffled([2], g)
    for before, after in zip(shallow.residuals(), moved, strict=True):
        # The first target knows nothing of the third input, the second nothing else.
        rise = after.square().mean(0) - before.square().mean(0)
        assert abs(rise[0]) < 0.05
        assert rise[1] > 0.5
