"""Iterative solution of A x = b for E independent symmetric systems, one row of [E, P] each.

A solver is a callable ``(matvec, b, x0, ...) -> (x, info)``: A is only ever multiplied with.
Sources: Hestenes & Stiefel 1952 (conjugate gradient); Lorraine et al. 2020, arXiv 1911.02590 (Neumann).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError

#: v [E, P] -> A v [E, P], each member's row times its own symmetric matrix.
MatVec = Callable[[Tensor], Tensor]

#: A solve whose residual grows to this many times its start has diverged.
_DIVERGED = 1e3


@dataclass(frozen=True)
class LinearSolveInfo:
    """``residual`` [E] is ‖b − A x‖ / ‖b‖ of the solution returned; ``converged`` [E] whether that
    is within the tolerance; ``iterations`` the most any member took."""

    iterations: int
    residual: Tensor
    converged: Tensor

    def report(self) -> dict[str, float]:
        """For the log: the worst member's residual, and the share of members that converged."""
        return {
            "linear_iterations": float(self.iterations),
            "linear_residual": self.residual.max().item(),
            "linear_converged": self.converged.double().mean().item(),
        }


class LinearSolver(Protocol):
    """The slot: solves (A + damping·I) x = b from ``x0`` (zero if None), all [E, P]."""

    def __call__(
        self,
        matvec: MatVec,
        b: Tensor,
        x0: Tensor | None = None,
        *,
        damping: Tensor | float = 0.0,
    ) -> tuple[Tensor, LinearSolveInfo]: ...


@torch.no_grad()
def conjugate_gradient(
    matvec: MatVec,
    b: Tensor,
    x0: Tensor | None = None,
    *,
    damping: Tensor | float = 0.0,
    tolerance: float = 1e-2,
    max_iterations: int = 100,
) -> tuple[Tensor, LinearSolveInfo]:
    """Conjugate gradient, for positive (semi-)definite A.

    ``damping`` is a number or [E, 1]. Each member has its own step sizes; one that has converged, or met a
    direction of no positive curvature, stands still. A start ``x0`` worse than zero is replaced by zero.

    Raises InvalidInputError for shapes that disagree, a negative damping or an empty budget.
    """
    _check(b, x0, damping, tolerance, max_iterations)
    product = _damped(matvec, damping)
    scale = _norm(b)
    x, residual = _start(product, b, x0, scale)
    direction, rho = residual, (residual * residual).sum(-1, keepdim=True)
    active = _norm(residual) > tolerance * scale
    iterations = 0
    while iterations < max_iterations and bool(active.any()):
        image = product(direction)
        curvature = (direction * image).sum(-1, keepdim=True)
        active = active & (curvature > 0.0)
        step = torch.where(active, rho / curvature, 0.0)
        x = x + step * direction
        residual = residual - step * image
        following = (residual * residual).sum(-1, keepdim=True)
        direction = residual + torch.where(active, following / rho, 0.0) * direction
        rho = following
        active = active & (_norm(residual) > tolerance * scale)
        iterations += 1
    # The recursion's residual drifts from the true one in low precision: report the true one.
    return x, _info(product, x, b, scale, iterations, tolerance)


@torch.no_grad()
def neumann_series(
    matvec: MatVec,
    b: Tensor,
    x0: Tensor | None = None,
    *,
    damping: Tensor | float = 0.0,
    step: float | None = None,
    tolerance: float = 1e-2,
    max_iterations: int = 200,
) -> tuple[Tensor, LinearSolveInfo]:
    """x ← x + step·(b − A x): from zero, the partial sums step·Σ_i (I − step·A)^i b.

    Converges for 0 < step < 2/λ_max(A); ``step=None``
    takes 1/λ_max per member, found by power iteration. A member whose residual grows a thousandfold
    has diverged: it stops at its best iterate and is reported as not converged.

    Raises InvalidInputError as ``conjugate_gradient``, and for a step that is not positive.
    """
    _check(b, x0, damping, tolerance, max_iterations)
    if step is not None and not step > 0.0:
        raise InvalidInputError(f"step must be positive, or None to choose it; got {step}")
    product = _damped(matvec, damping)
    scale = _norm(b)
    x, residual = _start(product, b, x0, scale)
    if step is None:
        # 5 % below 1/λ: power iteration comes to λ_max from below.
        length = 0.95 / largest_eigenvalue(product, b)
    else:
        length = b.new_full((len(b), 1), step)
    best, best_norm = x, _norm(residual)
    limit = _DIVERGED * torch.maximum(best_norm, scale)
    active = best_norm > tolerance * scale
    iterations = 0
    while iterations < max_iterations and bool(active.any()):
        x = torch.where(active, x + length * residual, x)
        residual = torch.where(active, b - product(x), residual)
        norm = _norm(residual)
        better = norm < best_norm
        best, best_norm = torch.where(better, x, best), torch.where(better, norm, best_norm)
        active = active & (norm > tolerance * scale) & (norm < limit)
        iterations += 1
    return best, _info(product, best, b, scale, iterations, tolerance)


@torch.no_grad()
def largest_eigenvalue(matvec: MatVec, like: Tensor, iterations: int = 30) -> Tensor:
    """|λ|_max of each member's matrix, [E, 1], by power iteration from a fixed start.

    ``like`` [E, P] gives shape, dtype and half of the start; at least the smallest normal number.
    """
    # A fixed draw beside it, so that no eigenvector is orthogonal to the start by symmetry.
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
    vector = noise / _norm(noise) + like / _norm(like).clamp_min(torch.finfo(like.dtype).tiny)
    tiny = torch.finfo(like.dtype).tiny
    value = torch.ones_like(vector[:, :1])
    for _ in range(iterations):
        vector = vector / _norm(vector).clamp_min(tiny)
        vector = matvec(vector)
        value = _norm(vector)
    return value.clamp_min(tiny)


def _check(
    b: Tensor,
    x0: Tensor | None,
    damping: Tensor | float,
    tolerance: float,
    max_iterations: int,
) -> None:
    if b.ndim != 2:
        raise InvalidInputError(f"b must be [E, P]; got {tuple(b.shape)}")
    if x0 is not None and x0.shape != b.shape:
        raise InvalidInputError(
            f"x0 must have the shape of b, {tuple(b.shape)}; got {tuple(x0.shape)}"
        )
    if not bool((torch.as_tensor(damping) >= 0.0).all()):
        raise InvalidInputError(f"damping must be zero or more; got {damping}")
    if not tolerance >= 0.0 or max_iterations < 1:
        raise InvalidInputError(
            f"tolerance must be >= 0 and max_iterations >= 1; "
            f"got tolerance={tolerance}, max_iterations={max_iterations}"
        )


def _damped(matvec: MatVec, damping: Tensor | float) -> MatVec:
    return lambda v: matvec(v) + damping * v


def _start(product: MatVec, b: Tensor, x0: Tensor | None, scale: Tensor) -> tuple[Tensor, Tensor]:
    """The start and its residual, zero for the members whose ``x0`` is worse than zero."""
    if x0 is None:
        return torch.zeros_like(b), b
    residual = b - product(x0)
    good = _norm(residual) < scale  # False for NaN as well
    return torch.where(good, x0, 0.0), torch.where(good, residual, b)


def _info(
    product: MatVec, x: Tensor, b: Tensor, scale: Tensor, iterations: int, tolerance: float
) -> LinearSolveInfo:
    residual = _norm(b - product(x)) / scale
    # b = 0 is solved by x = 0 exactly.
    relative = torch.where(scale == 0.0, 0.0, residual).squeeze(-1)
    # The recursion stops at the tolerance; the true residual may stand a hair above it.
    return LinearSolveInfo(iterations, relative, relative <= 1.1 * tolerance)


def _norm(v: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    return norm
