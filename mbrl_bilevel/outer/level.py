"""The outer level: infer the reward that makes held-out data likely under the inner optimum.

*What* is wanted is the objective, *how* to differentiate it the solver; this file steps φ
(a ``DirectSolver``, as the method ``bilevel`` has one, sets φ itself: ``held_out_spread.py``).
max_φ F(φ) = E_{(x,y)~held out}[log p_{θ*(φ)}(y|x)] (arXiv 2510.07624).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import nn

from mbrl_bilevel.base.errors import DivergedError, InvalidInputError
from mbrl_bilevel.inner.dimension_weights import weights_in
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.inner.regularisers import KL
from mbrl_bilevel.outer.implicit import FisherImplicit
from mbrl_bilevel.outer.objectives import Objective, OneStepNLL
from mbrl_bilevel.outer.problem import (
    DirectSolver,
    GradientSolver,
    Problem,
    Report,
    Solver,
    Warm,
    outer_parameters,
    require_objective,
    reward_loss,
)

#: φ -> its optimiser, such as ``partial(torch.optim.Adam, lr=0.25)``.
MakeOptimiser = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

_ADAM: MakeOptimiser = partial(torch.optim.Adam, lr=0.25)


@dataclass(frozen=True)
class OuterState:
    """What one update leaves to the next: φ's optimiser (with its moments), the last linear
    solution, and how many ``updates`` were made."""

    optimiser: torch.optim.Optimizer | None = None
    warm: Warm = field(default_factory=Warm)
    updates: int = 0


@dataclass(frozen=True)
class Outer:
    """The outer level: which ``solver``, for which ``objective``, and how often.

    It runs ``every`` inner steps after ``warmup`` of them. ``optimiser`` steps φ along the
    hypergradient, which is never clipped per element; it is made once and kept in the state. The
    inner level must be able to follow: with a smaller ``every`` goes a smaller learning rate.
    ``batch_size`` inner rows a member are drawn for each update, or every ``refresh`` updates by a
    solver that starts from its last linear solution (on HalfCheetah it then takes a fifth fewer
    iterations; on rows drawn each time the old solution saves none). The report says
    ``inner_converged`` where every member's inner gradient norm is at most ``tol``. ``alongside`` is a
    solver that knows its optimum, runs after each update, or every ``alongside_every`` updates, and has the last word
    on the policy that is kept: on its scale, where φ is of something else. φ is inferred in the first part ``until``
    of the steps; then it rests, and members whose rewards were apart are drawn together. ``with_stop``: the rows of early stopping are scored as well
    by what runs alongside, or by a solver that sets φ itself: these must set nothing they stop, σ alone.

    Raises InvalidInputError for numbers out of range.
    """

    solver: Solver = field(default_factory=FisherImplicit)
    objective: Objective = field(default_factory=OneStepNLL)
    optimiser: MakeOptimiser = _ADAM
    every: int = 75
    warmup: int = 0
    tol: float = 1e-2
    batch_size: int = 256
    refresh: int = 8
    alongside: DirectSolver | None = None
    with_stop: bool = False
    alongside_every: int = 1
    until: float = 1.0

    def __post_init__(self) -> None:
        least = {"every": 1, "warmup": 0, "batch_size": 1, "refresh": 1, "alongside_every": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise InvalidInputError(
                    f"Outer: {name} must be at least {low}; got {getattr(self, name)}"
                )
        if not callable(self.objective):
            raise InvalidInputError(
                "Outer: objective must be a function objective(policy, batch) -> one number a member [E], to be "
                f"minimised; got {self.objective!r}"
            )
        if not self.tol > 0.0:
            raise InvalidInputError(f"Outer: tol must be positive; got {self.tol}")
        if not 0.0 < self.until <= 1.0:
            raise InvalidInputError(
                f"Outer: until must lie above 0, at most 1, a part of the steps; got {self.until}"
            )

    def due(self, step: int) -> bool:
        """Whether the outer level runs before inner step ``step``."""
        return step >= self.warmup and (step - self.warmup) % self.every == 0

    def start(self, problem: Problem) -> OuterState:
        """The first state. Raises UnsupportedCombinationError for a problem the solver is wrong for."""
        self.solver.check(problem)
        if isinstance(self.solver, GradientSolver):
            require_objective(problem)
        if self.alongside is not None:
            self.alongside.check(problem)
        if isinstance(self.solver, DirectSolver):
            return OuterState()
        name = type(self.solver).__name__
        return OuterState(self.optimiser(outer_parameters(reward_loss(problem, name), name)))

    def update(
        self,
        problem: Problem,
        state: OuterState,
        generator: torch.Generator,
        *,
        resting: bool = False,
    ) -> tuple[OuterState, Report]:
        """One step on φ of ``problem``, in place; the next state and a report of named numbers. Draws are made by
        ``generator``. Where φ is ``resting``, only what runs alongside has its turn.

        The optimiser in ``state`` is the same object in the next one, moved on by a step.
        Raises DivergedError if a gradient is not finite; φ is then as before.
        """
        if isinstance(self.solver, DirectSolver):
            set_by_solver = self.solver.step(problem.with_lent())
            return OuterState(None, state.warm, state.updates + 1), self._judged(set_by_solver)
        report: Report = {}
        if resting:
            weights = weights_in(problem.loss)
            if weights is not None:
                weights.apart = None
        else:
            state, report = self._stepped(self.solver, problem, state, generator)
        if self.alongside is not None and state.updates % self.alongside_every == 0:
            report = {**report, **self.alongside.step(problem.with_lent())}
        return replace(state, updates=state.updates + 1), self._judged(report)

    def _stepped(
        self,
        solver: GradientSolver,
        problem: Problem,
        state: OuterState,
        generator: torch.Generator,
    ) -> tuple[OuterState, Report]:
        """A step of the optimiser along the hypergradient."""
        name = type(solver).__name__
        phi = outer_parameters(reward_loss(problem, name), name)
        result = solver.hypergradient(problem, state.warm, generator)
        norm = torch.stack([g.norm() for g in result.gradient]).norm()
        if not bool(norm.isfinite()):
            raise DivergedError(
                f"the hypergradient is not finite ({dict(result.report)}): the inner problem "
                "diverged; lower learning_rate, or the outer optimiser's lr"
            )
        optimiser = state.optimiser or self.optimiser(phi)
        for parameter, gradient in zip(phi, result.gradient, strict=True):
            parameter.grad = gradient
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        report = {"hypergradient_norm": norm.item(), **result.report, **_named(problem)}
        return OuterState(optimiser, result.warm, state.updates), report

    def finish(self, problem: Problem) -> Report:
        """Bring what the solver sets by itself up to date with the policy that is kept."""
        lent = problem.with_lent()
        report = self.solver.finish(lent) if isinstance(self.solver, DirectSolver) else {}
        if self.alongside is not None:
            report = {**report, **self.alongside.finish(lent)}
        return {**report, **_strengths(problem), **_named(problem)}

    def _judged(self, report: Report) -> Report:
        if "inner_gradient_norm" not in report:
            return report
        return {**report, "inner_converged": float(report["inner_gradient_norm"] <= self.tol)}


def _named(problem: Problem) -> Report:
    """What parts of the reward say of what is inferred of them: weight/0, weight/1 … of DimensionWeights, share of
    a SharedSpread."""
    loss = problem.loss
    parts = loss.modules() if isinstance(loss, nn.Module) else ()
    found: Report = {}
    for part in parts:
        report = getattr(part, "report", None)
        found = found if report is None else {**found, **report()}
    return found


def _strengths(problem: Problem) -> Report:
    """λ_K of a KL in the inner problem, under the name kl_strength."""
    if not isinstance(problem.loss, PolicyGradient):
        return {}
    found = [part.strength for part in problem.loss.modules() if isinstance(part, KL)]
    return {"kl_strength": found[0]} if found and found[0] is not None else {}
