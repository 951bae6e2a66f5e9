"""Thousands of outer steps leave nothing behind: neither tensors, nor Python objects, nor pages."""

from __future__ import annotations

import gc
import os
import resource
import sys
from functools import partial

import torch

from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.inner.rewards import Mahalanobis
from mbrl_bilevel.outer.implicit import FisherImplicit
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.linear_solvers import conjugate_gradient
from mbrl_bilevel.outer.problem import Problem
from mbrl_bilevel.policies.policies import GaussianPolicy

#: ``make faults`` takes all of them. What a step may leave is the same in either case.
STEPS = 10_000 if "FAULTS" in os.environ else 1000


def tiny_problem(generator: torch.Generator) -> Problem:
    policy = GaussianPolicy(1, 1, generator=generator, members=1, hidden=())
    x = torch.randn(2, 1, 4, 1, generator=generator)
    y = x + 0.5 * torch.randn(2, 1, 4, 1, generator=generator)
    loss = PolicyGradient(Mahalanobis(1))
    return Problem(policy, loss, Batch(x[0], y[0]), Batch(x[1], y[1]))


def census() -> tuple[int, int]:
    """Live tensors, and all objects the collector sees."""
    gc.collect()
    objects = gc.get_objects()
    return sum(type(o) is torch.Tensor for o in objects), len(objects)


def peak_bytes() -> int:
    """The most memory this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def test_no_memory_is_kept_over_thousands_of_outer_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    problem = tiny_problem(generator)
    solver = FisherImplicit(partial(conjugate_gradient, max_iterations=1))
    outer = Outer(solver, optimiser=partial(torch.optim.Adam, lr=1e-3))
    state = outer.start(problem)
    for _ in range(200):
        state, _ = outer.update(problem, state, generator)
    tensors, objects = census()
    peak = peak_bytes()
    for _ in range(STEPS):
        state, _ = outer.update(problem, state, generator)
    assert state.updates == STEPS + 200
    tensors_after, objects_after = census()
    assert tensors_after <= tensors + 2
    # The same slopes whatever the length.
    assert objects_after <= objects + STEPS // 20
    # A thousand numbers kept in each step would be 4000 bytes of each.
    assert peak_bytes() - peak < STEPS * 1000
