"""The shallow model against batch ridge regression in NumPy, on the rows of all tasks, whatever their order."""

from __future__ import annotations

from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.stats import norm

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.continual.learner import Learner
from mbrl_bilevel.continual.least_squares import (
    LOSSE,
    Followed,
    LeastSquares,
    SparsePolicy,
    known_of,
)
from mbrl_bilevel.continual.recipes import Recipe, get_recipe
from mbrl_bilevel.data.splits import FitData, cross_fit
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.models.regression import Regression
from mbrl_bilevel.training.method import Method

GRIDS, BINS, RIDGE = 6, 4, 0.1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def policy(members: int = 2) -> SparsePolicy:
    return SparsePolicy(3, 2, generator=seeded(), members=members, grids=GRIDS, bins=BINS)


def task(shift: float, rows: int = 120) -> FitData:
    """Inputs around ``shift``, of one function of them with noise of .1 and .3."""
    random = np.random.default_rng(abs(int(10 * shift)) + 5)
    x = shift + random.standard_normal((rows, 3))
    y = np.stack([np.sin(x[:, 0] + x[:, 1]), x[:, 2] ** 2 / 3], 1)
    y = y + random.standard_normal(y.shape) * [0.1, 0.3]
    tensors = (torch.from_numpy(part).float() for part in (x, y))
    return FitData(*tensors, cross_fit(np.arange(rows), 2, random))


def dense(made: SparsePolicy, x: torch.Tensor, member: int) -> npt.NDArray[np.float64]:
    """φ(x) [N, F] written out, knot by knot, with weights max(0, 1 − distance)."""
    u = norm.cdf(x.double().numpy() @ made.directions[member].double().numpy()) * (BINS - 1)
    knots = np.arange(BINS)
    near = np.maximum(0.0, 1.0 - np.abs(u[:, :, None] - knots))
    first, second = near[:, 0::2], near[:, 1::2]
    return np.einsum("ngi,ngj->ngij", first, second).reshape(len(x), -1)


def learned(order: list[FitData], ridges: tuple[float, ...] = (RIDGE,)) -> SparsePolicy:
    made, keep = policy(), Followed()
    method = Method(policy, LOSSE.make_loss, trainer=LeastSquares(ridges))
    for data in order:
        keep.method(method).fit(made, data, generator=seeded())
        keep = keep.after(made, data, seeded())
    return made


def test_the_code_is_bilinear_and_adds_up_to_one_a_grid() -> None:
    made, x = policy(), torch.randn(2, 50, 3, generator=seeded(1)) * 2.0
    place, value = made.code(x)
    assert place.shape == value.shape == (2, 50, 4 * GRIDS)
    np.testing.assert_allclose(value.unflatten(-1, (GRIDS, 4)).sum(-1), 1.0, atol=1e-6)
    assert (value >= 0.0).all()
    for member in (0, 1):
        found = torch.zeros(50, made.features).scatter_(1, place[member], value[member])
        np.testing.assert_allclose(found, dense(made, x[member], member), atol=2e-6)


def test_the_fit_is_ridge_regression_on_all_rows_whatever_the_order() -> None:
    tasks = [task(0.0), task(1.5), task(-1.0)]
    made = learned(tasks)
    for member in (0, 1):
        # All that the member sees: in training, and held out (then trained on as well).
        seen = [data.folds.without_outer() for data in tasks]
        rows = [np.concatenate([s.train[member], s.stop[member]]) for s in seen]
        phi = np.concatenate(
            [dense(made, d.x[r], member) for d, r in zip(tasks, rows, strict=True)]
        )
        y = np.concatenate([d.y[r].numpy() for d, r in zip(tasks, rows, strict=True)])
        ridge = np.linalg.solve(phi.T @ phi + RIDGE * np.eye(phi.shape[1]), phi.T @ y)
        np.testing.assert_allclose(
            phi @ made.weight[member].detach().numpy(), phi @ ridge, atol=1e-5
        )
    other = learned([tasks[2], tasks[0], tasks[1]])
    x = torch.randn(2, 40, 3, generator=seeded(2))
    for a, b in zip(made.dist(x).params, other.dist(x).params, strict=True):
        np.testing.assert_allclose(a.detach(), b.detach(), atol=1e-6)


def test_weights_in_float64_are_those_of_numpy() -> None:
    data = task(0.0)
    made = policy()
    known = known_of(made, data)
    for member, rows in enumerate(data.folds.without_outer().train):
        place, value = (part[member, rows].double() for part in made.code(data.x.expand(2, -1, -1)))
        phi = torch.zeros(len(rows), made.features, dtype=torch.float64)
        phi = phi.scatter_(1, place.long(), value).numpy()
        y = data.y[rows].double().numpy()
        ridge = np.linalg.solve(phi.T @ phi + RIDGE * np.eye(phi.shape[1]), phi.T @ y)
        np.testing.assert_allclose(known.train.solve(RIDGE)[member], ridge, atol=1e-6)
        left = known.train.residual(torch.from_numpy(ridge).expand(2, -1, -1))[member]
        np.testing.assert_allclose(left, ((y - phi @ ridge) ** 2).sum(0), rtol=1e-8)


def test_the_variance_is_the_held_out_one_of_all_tasks_and_the_best_ridge_is_chosen() -> None:
    tasks = [task(0.0), task(1.5)]
    squares: dict[float, list[npt.NDArray[np.float64]]] = {}
    for ridge in (1e-6, 1.0):
        for member in (0, 1):
            seen = [(d, d.folds.without_outer()) for d in tasks]
            train, held = (
                [
                    np.concatenate(parts)
                    for parts in zip(
                        *((dense(policy(), d.x[r], member), d.y[r].numpy()) for d, r in pairs),
                        strict=True,
                    )
                ]
                for pairs in (
                    [(d, s.train[member]) for d, s in seen],
                    [(d, s.stop[member]) for d, s in seen],
                )
            )
            gram = train[0].T @ train[0] + ridge * np.eye(train[0].shape[1])
            weight = np.linalg.solve(gram, train[0].T @ train[1])
            squares.setdefault(ridge, []).append((held[1] - held[0] @ weight) ** 2)
    variance = {r: np.concatenate(parts).mean(0) for r, parts in squares.items()}
    assert variance[1.0].sum() < variance[1e-6].sum()
    made = learned(tasks, (1e-6, 1.0))
    np.testing.assert_allclose(made.log_std[0, 0].detach().exp() ** 2, variance[1.0], rtol=1e-4)


def test_memory_is_flat_and_none_keeps_the_last_task_only() -> None:
    first, second = task(0.0), task(1.5)
    keep = Followed().after(policy(), first, seeded())
    more = keep.after(policy(), second, seeded())
    assert keep.known is not None
    assert more.known is not None
    assert more.known.train.gram.shape == keep.known.train.gram.shape
    alone, both = learned([second]), learned([first, second])
    fresh = policy()
    Method(policy, LOSSE.make_loss, trainer=LeastSquares((RIDGE,))).fit(
        fresh, second, generator=seeded()
    )
    np.testing.assert_array_equal(fresh.weight.detach(), alone.weight.detach())
    assert not torch.allclose(both.weight, alone.weight, atol=0.1)


def test_it_learns_as_a_learner_and_steps_as_a_dynamics_model() -> None:
    random = np.random.default_rng(0)
    x = torch.from_numpy(random.standard_normal((300, 3))).float()
    y = torch.stack([0.1 * x[:, 2], -0.1 * x[:, 0], x[:, 0]], 1)
    method = Method(partial(SparsePolicy, grids=8), LOSSE.make_loss, trainer=LeastSquares((0.1,)))
    start = Learner.start(Recipe(method, Followed()), x, y, generator=seeded(), members=2)
    after = start.learn(x, y, generator=seeded())
    assert isinstance(after.model, Regression)
    model = DynamicsModel(after.model, 2)
    obs, action = x[:50, :2].expand(2, -1, -1), x[:50, 2:].expand(2, -1, -1)
    step, frozen = (m.step(obs, action) for m in (model, model.frozen()))
    np.testing.assert_allclose(step.next_obs.detach(), frozen.next_obs, atol=1e-6)
    error = (step.next_obs - obs - y[:50, :2]).square().mean().sqrt()
    assert float(error.detach()) < 0.3 * float(y[:, :2].std())
    assert model.only([1]).step(obs[1:], action[1:]).reward.shape == (1, 50)


def test_what_it_does_not_go_with() -> None:
    assert get_recipe("losse+ftl").keep == Followed()
    for kept in ("kl", "kl-seen", "ewc", "packnet", "slow"):
        with pytest.raises(UnsupportedCombinationError, match="fits by a formula"):
            get_recipe(f"losse+{kept}")
    with pytest.raises(UnsupportedCombinationError, match="write losse\\+ftl"):
        get_recipe("nll+ftl")
    with pytest.raises(InvalidInputError, match="bins at least 2"):
        SparsePolicy(1, 1, generator=seeded(), bins=1)
