"""Weights of target dimensions: what infers them, held against the inner problem fully solved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.dimension_weights import DimensionWeights
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.inner.rewards import Mahalanobis
from mbrl_bilevel.outer.held_out_spread import SharedSpread
from mbrl_bilevel.outer.implicit import ExactImplicit
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.look_ahead import LookAhead
from mbrl_bilevel.outer.population import Population
from mbrl_bilevel.outer.problem import GradientSolver, Problem, Warm
from mbrl_bilevel.outer.unrolled import Unrolled
from mbrl_bilevel.policies.distributions import DiagonalGaussian
from mbrl_bilevel.policies.policies import GaussianPolicy, Policy
from mbrl_bilevel.theory.brute_force import finite_differences, relative_error, solve_inner


def first_error(policy: Policy, batch: Batch) -> Tensor:
    """All that matters is the first target."""
    dist = policy.dist(batch.x)
    assert isinstance(policy, GaussianPolicy)
    mean, _ = dist.moments()  # type: ignore[union-attr]
    return batch.mean((mean[..., 0] - batch.y[..., 0]).square())


class Tied(GaussianPolicy):
    """One linear mean for all targets, so that each is learned at the cost of the others; σ stands still."""

    def dist(self, x: Tensor) -> DiagonalGaussian:
        """The first output, for every target."""
        each = super().dist(x)
        return DiagonalGaussian(each.mean[..., :1].expand_as(each.mean), each.log_std)


def misspecified(members: int = 1) -> Problem:
    """Three targets with slopes of their own, for a policy that is tied; members have the same data."""
    g = torch.Generator().manual_seed(3)
    x = torch.randn(1, 400, 2, generator=g, dtype=torch.float64)
    slopes = torch.tensor([[1.0, 0.3, -0.2], [0.0, 1.0, 0.9]], dtype=torch.float64)
    y = x @ slopes + 0.2 * torch.randn(1, 400, 3, generator=g, dtype=torch.float64)
    train, held_out = (
        Batch(*(v[:, rows].expand(members, -1, -1) for v in (x, y)))
        for rows in (slice(0, 200), slice(200, None))
    )
    policy = Tied(2, 3, generator=g, members=members, hidden=(), scale="separate").double()
    weights = DimensionWeights(3).double()
    with torch.no_grad():
        weights.log_w.copy_(torch.tensor([0.2, -0.3, 0.4]))
    loss = PolicyGradient(SharedSpread(policy, 0.0, weights))
    problem = Problem(policy, loss, train, held_out, first_error)
    solve_inner(problem)
    return problem


def gradient(solver: GradientSolver, problem: Problem) -> Tensor:
    solver.check(problem)
    (found,) = solver.hypergradient(problem, Warm(), torch.Generator().manual_seed(0)).gradient
    return found


def test_the_gradient_solvers_have_the_sign_and_some_the_size() -> None:
    problem = misspecified()
    truth = finite_differences(problem)
    assert truth[0] < -1e-3 < 0 < truth[2]  # more of the first target, less of the others
    assert truth.sum().abs() < 1e-6  # the gauge
    assert relative_error(gradient(ExactImplicit(), problem), truth) < 1e-4
    assert relative_error(gradient(Unrolled(steps=30), problem), truth) < 1e-4
    ahead = gradient(LookAhead(), problem)
    assert torch.cosine_similarity(ahead, truth, dim=0) > 0.99
    assert ahead.square().mean().item() == pytest.approx(1.0)  # its size means nothing


def test_the_populations_gradient_is_that_of_the_solved_inner_problem() -> None:
    alone = misspecified()
    truth = finite_differences(alone)
    members = 24
    problem, g = misspecified(members), torch.Generator().manual_seed(1)
    solver, warm, found, pairs = Population(0.1), Warm(), torch.zeros(3), 4
    solver.check(problem)
    for _ in range(1 + 2 * pairs):
        result = solver.hypergradient(problem, warm, g)
        found, warm = found + result.gradient[0] / (members * pairs), result.warm
        solve_inner(problem)
    assert relative_error(found.double(), truth) < 0.4
    assert (found.sign() == truth.sign()).all()


def test_scale_does_not_count_and_members_may_be_apart() -> None:
    weights = DimensionWeights(2)
    with torch.no_grad():
        weights.log_w.copy_(torch.tensor([3.0, 1.0]))
    torch.testing.assert_close(weights(), torch.tensor([1.0, -1.0]).exp())
    assert weights.report() == pytest.approx({"weight/0": 2.71828, "weight/1": 0.36788}, rel=1e-4)
    weights.apart = torch.tensor([[[0.0, 2.0]], [[0.0, 0.0]]])
    torch.testing.assert_close(weights()[0, 0], torch.ones(2))
    torch.testing.assert_close(weights()[1, 0], torch.tensor([1.0, -1.0]).exp())


def test_where_weights_rest_members_are_drawn_together() -> None:
    problem, g = misspecified(4), torch.Generator().manual_seed(0)
    outer = Outer(Population(0.1), first_error)
    state, _ = outer.update(problem, outer.start(problem), g)
    loss = problem.loss
    assert isinstance(loss, PolicyGradient)
    weights = loss.reward.weights  # type: ignore[attr-defined]
    before = weights.log_w.detach().clone()
    assert weights.apart is not None
    outer.update(problem, state, g, resting=True)
    assert weights.apart is None
    assert torch.equal(weights.log_w.detach(), before)


def test_refuses() -> None:
    with pytest.raises(InvalidInputError, match="spread must be positive"):
        Population(0.0)
    with pytest.raises(InvalidInputError, match="until must lie above 0"):
        Outer(LookAhead(), until=0.0)
    with pytest.raises(UnsupportedCombinationError, match="use more members"):
        Population().check(misspecified())
    problem = misspecified(2)
    other = replace(problem, loss=PolicyGradient(Mahalanobis(3, "diagonal")))
    with pytest.raises(UnsupportedCombinationError, match="infers the DimensionWeights"):
        Population().check(other)
