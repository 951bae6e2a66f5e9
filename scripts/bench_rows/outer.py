"""Rows of bench about the outer level: a Fisher-vector product, a linear solve, a whole training.

On HalfCheetah's own transitions: how many iterations a solve takes depends on the data.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from agents.common.experience import RandomBehaviour, collect
from bench_rows.pair import TARGETS, Pair, Sizes, make_policy
from envs.tasks.make import make_env
from mbrl_bilevel.base.records import FitResult
from mbrl_bilevel.data.splits import (
    FitData,
    Minibatches,
    cross_fit,
    group_by_episode,
    groups_needed,
    regression_rows,
)
from mbrl_bilevel.inner.losses import NLL, PolicyGradient
from mbrl_bilevel.inner.rewards import Mahalanobis
from mbrl_bilevel.outer.implicit import FisherImplicit
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.linear_solvers import LinearSolveInfo, MatVec
from mbrl_bilevel.outer.objectives import ProfileNLL
from mbrl_bilevel.outer.problem import Hypergradient, Problem, Warm
from mbrl_bilevel.training.fit import fit
from mbrl_bilevel.training.settings import Schedule


def fisher_vector_product(sizes: Sizes, seed: int) -> Pair:
    """One product with the curvature, on as many rows as one inner step: the peer.

    ``default_rows_seconds`` is a product on the rows that FisherImplicit takes by default.
    """
    problem, inner_step = _problem(sizes, seed)
    whole, part = _product(problem, None), _product(problem, FisherImplicit.rows)
    generator = torch.Generator().manual_seed(seed)
    like = torch.cat([p.flatten(1) for p in problem.policy.parameters()], dim=1)
    v, w = (torch.randn(like.shape, generator=generator) for _ in range(2))

    def check() -> None:
        # A Fisher matrix is symmetric and has no negative direction.
        left, right = (v * whole(w)).sum(-1), (w * whole(v)).sum(-1)
        scale = whole(v).norm(dim=-1) * w.norm(dim=-1)
        torch.testing.assert_close(left / scale, right / scale, rtol=0.0, atol=1e-4)
        assert bool(((v * whole(v)).sum(-1) >= 0.0).all())

    return Pair(
        lambda: whole(v),
        inner_step,
        check,
        peer_name="one inner step (forward, backward, Adam) on the same rows",
        amount=float(sizes.batch_size * sizes.members),
        unit="rows/s",
        facts=lambda: {"default_rows_seconds": _seconds(lambda: part(v))},
    )


def outer_solve(sizes: Sizes, seed: int) -> Pair:
    """A hypergradient after ``every`` more inner steps, started from the last solution or from zero.

    The facts are the iterations either takes to a residual of 1e-2, and the residuals reached.
    """
    problem, inner_step = _problem(sizes, seed)
    solver, generator = FisherImplicit(), torch.Generator().manual_seed(seed)
    for _ in range(sizes.steps // 4):
        inner_step()
    warm = solver.hypergradient(problem, Warm(), generator).warm
    for _ in range(Outer.every):
        inner_step()

    def ours() -> Hypergradient:
        return solver.hypergradient(problem, warm, generator)

    def peer() -> Hypergradient:
        return solver.hypergradient(problem, Warm(), generator)

    def check() -> None:
        one, other = (torch.cat([g.flatten() for g in f().gradient]) for f in (ours, peer))
        assert float((one - other).norm() / other.norm()) < 0.1

    def facts() -> dict[str, float]:
        found = {"warm": ours().report, "cold": peer().report}
        return {
            f"{side}_{name}": report[f"linear_{name}"]
            for side, report in found.items()
            for name in ("iterations", "residual")
        }

    return Pair(
        ours,
        peer,
        check,
        peer_name="the same solve from zero",
        amount=1.0,
        unit="solves/s",
        facts=facts,
    )


def train_bilevel_fisher(sizes: Sizes, seed: int) -> Pair:
    """``fit`` with the default outer level, FisherImplicit; the peer is our own likelihood.

    1 / ratio is the time of bilevel in units of that of maximum likelihood.
    """
    data = _transitions(sizes, seed)
    schedule = Schedule(sizes.steps, sizes.batch_size, patience=sizes.steps)

    def ours() -> FitResult:
        generator = torch.Generator().manual_seed(seed)
        policy = make_policy(sizes, generator, "constant")
        loss = PolicyGradient(Mahalanobis(TARGETS))
        return fit(
            policy,
            loss,
            data,
            generator=generator,
            outer=Outer(),
            criterion=ProfileNLL(),
            schedule=schedule,
        )

    def peer() -> FitResult:
        generator = torch.Generator().manual_seed(seed)
        policy = make_policy(sizes, generator, "network")
        return fit(policy, NLL(), data, generator=generator, schedule=schedule)

    return Pair(
        ours,
        peer,
        check=lambda: None,  # two methods: they are not to agree
        peer_name="fit() by likelihood, same network and steps",
        amount=float(sizes.steps * sizes.batch_size * sizes.members),
        unit="training samples/s",
        slow=True,
    )


def _problem(sizes: Sizes, seed: int) -> tuple[Problem, Callable[[], None]]:
    """A bilevel problem on one minibatch, and an inner step on it."""
    data = _transitions(sizes, seed)
    generator = torch.Generator().manual_seed(seed)
    policy = make_policy(sizes, generator, "constant")
    loss = PolicyGradient(Mahalanobis(TARGETS))
    batches = Minibatches(data, sizes.batch_size)
    problem = Problem(policy, loss, batches.draw(generator), data.sample(data.folds.outer))
    parameters = list(policy.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=Schedule.learning_rate, fused=True)

    def inner_step() -> None:
        value, _ = loss(policy, batches.draw(generator), generator)
        gradients = torch.autograd.grad(value.sum(), parameters)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()

    return problem, inner_step


@dataclass
class _Keep:
    """A linear solver that solves nothing: it keeps the product it is given."""

    products: list[MatVec] = field(default_factory=list)

    def __call__(
        self,
        matvec: MatVec,
        b: Tensor,
        x0: Tensor | None = None,
        *,
        damping: Tensor | float = 0.0,
    ) -> tuple[Tensor, LinearSolveInfo]:
        self.products.append(matvec)
        return b, LinearSolveInfo(0, torch.ones(len(b)), torch.zeros(len(b), dtype=torch.bool))


def _product(problem: Problem, rows: int | None) -> MatVec:
    """The very product that FisherImplicit hands to its linear solver."""
    keep = _Keep()
    FisherImplicit(keep, rows=rows).hypergradient(problem, Warm(), torch.Generator())
    return keep.products[0]


def _seconds(call: Callable[[], object], repeats: int = 20) -> float:
    """The median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _transitions(sizes: Sizes, seed: int) -> FitData:
    """Normalised transitions of HalfCheetah-v5 under random actions, cross-fitted."""
    env = make_env("HalfCheetah-v5")
    random = np.random.default_rng(seed)
    behaviour = RandomBehaviour(env.action_space, random)  # type: ignore[arg-type]
    found = collect(env, behaviour, sizes.rows, seed=seed)
    env.close()
    x, y = regression_rows(found)
    x, y = ((columns - columns.mean(0)) / columns.std(0, correction=0) for columns in (x, y))
    groups = group_by_episode(found.episode, found.t, groups_needed(sizes.members))
    folds = cross_fit(groups, sizes.members, random)
    return FitData(x, y, folds)
