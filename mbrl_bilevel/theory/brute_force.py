"""Hypergradients by brute force: the inner problem solved to rounding, then central differences.

The truth that every outer solver is held to; for small problems in float64 whose G has a closed form.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.problem import (
    Problem,
    Report,
    Theta,
    hessian_product,
    inner_loss,
    outer_parameters,
    reward_loss,
    worst_norm,
)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """‖value − truth‖/‖truth‖, Euclidean (Frobenius for matrices)."""
    return float((value - truth).norm() / truth.norm())


def finite_differences(problem: Problem, width: float = 3e-5) -> Tensor:
    """d objective/dφ by central differences, the inner problem solved anew at each point.

    The inner problem must be solved already; policy and φ are as before afterwards.
    """
    phi = _phi(problem)
    theta = Theta.of(problem.policy)
    kept = [t.detach().clone() for t in theta.tensors]
    slopes = []
    for parameter in phi:
        flat = parameter.data.view(-1)
        for index in range(len(flat)):
            centre = flat[index].item()
            values = []
            for sign in (1.0, -1.0):
                flat[index] = centre + sign * width
                solve_inner(problem)
                values.append(_outer_value(problem))
                _restore(theta, kept)
            flat[index] = centre
            slopes.append((values[0] - values[1]) / (2.0 * width))
    return torch.stack(slopes)


def solve_inner(problem: Problem, tolerance: float = 1e-11, max_iterations: int = 100) -> float:
    """Bring θ to the inner optimum, in place: quasi-Newton, then Newton to ``tolerance``.

    Returns the largest gradient norm of a member. Raises InvalidInputError if that stays above a
    thousand times the tolerance: the problem is then no use as a truth.
    """
    theta = Theta.of(problem.policy)
    norm = worst_norm(_gradient(problem, theta))
    if norm > 1e-2:
        _quasi_newton(problem, theta)
    for _ in range(max_iterations):
        gradient = _gradient(problem, theta)
        norm = worst_norm(gradient)
        if norm <= tolerance:
            break
        _newton_step(problem, theta, gradient)
    if not norm <= 1e3 * tolerance:
        raise InvalidInputError(
            f"the inner problem was not solved: its gradient norm is {norm:.1e}"
        )
    return norm


def learn(
    problem: Problem,
    outer: Outer,
    updates: int,
    generator: torch.Generator,
    *,
    inner: Problem | None = None,
) -> Report:
    """``updates`` of φ, the inner problem solved to rounding before each; the last report.

    ``inner`` is the problem that is solved, where that is not ``problem`` itself: the one with the
    closed form, where ``problem`` is its ``sampled`` twin (both hold the same θ and φ).
    """
    state = outer.start(problem)
    report: Report = {}
    for _ in range(updates):
        solve_inner(inner or problem)
        state, report = outer.update(problem, state, generator)
    solve_inner(inner or problem)
    return report


def _newton_step(problem: Problem, theta: Theta, gradient: Tensor) -> None:
    """Newton on |eigenvalues|, flat directions left alone, halved until the loss does not rise."""
    product = hessian_product(gradient, theta)
    basis = torch.eye(gradient.shape[1], dtype=gradient.dtype)
    hessian = torch.stack([product(e.expand_as(gradient).contiguous()) for e in basis], dim=-1)
    values, vectors = torch.linalg.eigh((hessian + hessian.mT) / 2.0)
    size = values.abs()
    inverse = torch.where(size > 1e-10 * size.amax(-1, keepdim=True), size.reciprocal(), 0.0)
    along = vectors.mT @ gradient.detach().unsqueeze(-1)
    step = (vectors @ (inverse.unsqueeze(-1) * along)).squeeze(-1)
    here = theta.flat([t.detach() for t in theta.tensors])
    before = _inner_values(problem)
    length = torch.ones_like(before)
    for _ in range(30):
        _restore(theta, theta.unflat(here - length.unsqueeze(-1) * step))
        # A rise within rounding is none: near the optimum the loss no longer resolves the step.
        worse = ~(_inner_values(problem) <= before + 1e-13 * (1.0 + before.abs()))
        if not bool(worse.any()):
            return
        length = torch.where(worse, 0.5 * length, length)


def _quasi_newton(problem: Problem, theta: Theta) -> None:
    optimiser = torch.optim.LBFGS(
        theta.tensors, max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimiser.zero_grad()
        loss = _inner(problem).sum()
        gradients = torch.autograd.grad(loss, theta.tensors, materialize_grads=True)
        for tensor, gradient in zip(theta.tensors, gradients, strict=True):
            tensor.grad = gradient
        return loss.item()

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    optimiser.zero_grad(set_to_none=True)


def _inner(problem: Problem) -> Tensor:
    loss = reward_loss(problem, "solve_inner")
    return inner_loss(loss, problem.policy, problem.train, torch.Generator(), exact=True)


@torch.no_grad()
def _inner_values(problem: Problem) -> Tensor:
    return _inner(problem)


def _gradient(problem: Problem, theta: Theta) -> Tensor:
    return theta.grad(_inner(problem).sum(), create_graph=True)


@torch.no_grad()
def _outer_value(problem: Problem) -> Tensor:
    return problem.objective(problem.policy, problem.held_out).sum()


@torch.no_grad()
def _restore(theta: Theta, tensors: list[Tensor] | tuple[Tensor, ...]) -> None:
    for tensor, value in zip(theta.tensors, tensors, strict=True):
        tensor.copy_(value)


def _phi(problem: Problem) -> list[nn.Parameter]:
    return outer_parameters(reward_loss(problem, "finite_differences"), "finite_differences")
