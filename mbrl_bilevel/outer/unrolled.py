"""Hypergradient through k steps of gradient descent on the inner loss, from the present θ.

Sources: Maclaurin et al. 2015, Franceschi et al. 2017 (reverse mode); at a stationary θ it equals k
terms of the Neumann series (Lorraine et al. 2020, arXiv 1911.02590, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.outer.linear_solvers import LinearSolveInfo, largest_eigenvalue
from mbrl_bilevel.outer.problem import (
    Hypergradient,
    Problem,
    Theta,
    Warm,
    at,
    has_closed_form,
    hessian_product,
    inner_loss,
    needs_second_derivative,
    outer_parameters,
    reward_loss,
    worst_norm,
)


@dataclass(frozen=True)
class Unrolled:
    """``steps`` of gradient descent, differentiated as a whole; memory grows with ``steps``.

    ``step_size`` is one number, or None for 1/λ_max of each member's Hessian at the start. The
    policy itself is not moved. The reported residual is ‖∂F/∂θ_0‖/‖∂F/∂θ_k‖: what an adjoint of
    infinitely many steps would still have to gain; above ``tolerance`` the truncation is felt.
    """

    steps: int = 10
    step_size: float | None = None
    tolerance: float = 1e-2

    def __post_init__(self) -> None:
        if self.steps < 1 or (self.step_size is not None and not self.step_size > 0.0):
            raise InvalidInputError(
                f"Unrolled needs steps >= 1 and step_size > 0 or None; "
                f"got steps={self.steps}, step_size={self.step_size}"
            )

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError for a biased estimator, one whose second derivative is
        wrong, or nothing to infer."""
        loss = reward_loss(problem, "Unrolled")
        needs_second_derivative(loss, "Unrolled")
        outer_parameters(loss, "Unrolled")
        Theta.of(problem.policy)

    def hypergradient(
        self, problem: Problem, warm: Warm, generator: torch.Generator
    ) -> Hypergradient:
        """Every inner step uses the same rows and the same draws."""
        loss = reward_loss(problem, "Unrolled")
        phi, theta = outer_parameters(loss, "Unrolled"), Theta.of(problem.policy)
        exact = has_closed_form(problem)
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device).item())

        def inner(tensors: tuple[Tensor, ...]) -> Tensor:
            draws = torch.Generator(generator.device).manual_seed(seed)
            return at(
                problem.policy,
                theta,
                tensors,
                lambda policy: inner_loss(loss, policy, problem.train, draws, exact),
            ).sum()

        length = self._step_size(theta, inner(theta.tensors))
        start = tuple(t.detach().requires_grad_() for t in theta.tensors)
        here = start
        for _ in range(self.steps):
            gradients = torch.autograd.grad(
                inner(here), here, create_graph=True, materialize_grads=True
            )
            here = theta.unflat(theta.flat(here) - length * theta.flat(gradients))
        outer = at(
            problem.policy, theta, here, lambda policy: problem.objective(policy, problem.held_out)
        ).sum()
        wanted = torch.autograd.grad(
            outer, (*phi, *start, *here), retain_graph=True, materialize_grads=True
        )
        first, last = (
            theta.flat(part).norm(dim=-1)
            for part in (wanted[len(phi) : -len(here)], wanted[-len(here) :])
        )
        residual = torch.where(last > 0.0, first / last, 0.0)
        info = LinearSolveInfo(self.steps, residual, residual <= self.tolerance)
        stationarity = theta.flat(torch.autograd.grad(inner(here), here, materialize_grads=True))
        report = {"inner_gradient_norm": worst_norm(stationarity), **info.report()}
        return Hypergradient(tuple(wanted[: len(phi)]), report)

    def _step_size(self, theta: Theta, value: Tensor) -> Tensor:
        if self.step_size is not None:
            return value.new_full((theta.members, 1), self.step_size)
        gradient = theta.grad(value, create_graph=True)
        return 0.95 / largest_eigenvalue(hessian_product(gradient, theta), gradient.detach())
