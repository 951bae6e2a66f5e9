"""The setting in which everything is known: y = A x + b + ε, ε ~ N(0, Σ), a linear-Gaussian policy.

The inner optimum is N(least squares, ½U⁻¹) at λ = 1 and U* = ½Σ⁻¹, Σ the held-out second moment of
the residual (arXiv 2510.07624); the outer level's rate of convergence follows from Σ too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.inner.positive import Form
from mbrl_bilevel.inner.rewards import Mahalanobis
from mbrl_bilevel.outer.closed_form import held_out_second_moment
from mbrl_bilevel.outer.problem import Problem
from mbrl_bilevel.policies.policies import FullGaussianPolicy, GaussianPolicy
from mbrl_bilevel.theory.brute_force import solve_inner

_INPUTS = 2


@dataclass(frozen=True)
class Setting:
    """A bilevel problem with its answers: U* of this held-out sample and U* of the truth, [D, D],
    the outer objective at the former, and the descent that suits the curvature there."""

    problem: Problem
    reward: Mahalanobis
    optimum: Tensor
    truth: Tensor
    best_objective: float
    descent: Descent

    def objective(self) -> float:
        """The outer objective at the present θ."""
        with torch.no_grad():
            return float(self.problem.objective(self.problem.policy, self.problem.held_out).sum())


@dataclass(frozen=True)
class Descent:
    """Gradient descent with ``momentum``, and the factor its error shrinks by a step near U*."""

    learning_rate: float
    momentum: float
    rate: float


def linear_gaussian(n: int, dim: int, seed: int) -> tuple[Batch, Batch, Tensor, Tensor]:
    """Train and held-out rows, n each, the noiseless targets of the latter, and Σ, all float64."""
    generator = torch.Generator().manual_seed(seed)
    slope = torch.randn(_INPUTS, dim, generator=generator, dtype=torch.float64)
    shift = torch.randn(dim, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 1, n, _INPUTS, generator=generator, dtype=torch.float64)
    noise = torch.randn(2, 1, n, dim, generator=generator, dtype=torch.float64)
    covariance = true_covariance(dim)
    mean = x @ slope + shift
    y = mean + noise @ torch.linalg.cholesky(covariance).mT
    return Batch(x[0], y[0]), Batch(x[1], y[1]), mean[1], covariance


def true_covariance(dim: int) -> Tensor:
    """Σ with standard deviations from .3 to .7 (.5 alone) and every correlation one half."""
    std = torch.linspace(0.3, 0.7, dim, dtype=torch.float64) if dim > 1 else torch.tensor([0.5])
    correlation = 0.5 + 0.5 * torch.eye(dim, dtype=torch.float64)
    return (std.unsqueeze(1) * correlation * std).double()


def build(dim: int, form: Form, n: int, seed: int) -> Setting:
    """The setting with U of that form; a full U with a full covariance, else a diagonal one."""
    train, held_out, _, covariance = linear_gaussian(n, dim, seed)
    kind = FullGaussianPolicy if form == "full" else GaussianPolicy
    generator = torch.Generator().manual_seed(seed)
    policy = kind(_INPUTS, dim, generator=generator, members=1, hidden=()).double()
    reward = Mahalanobis(dim, form)
    loss = PolicyGradient(reward).double()
    problem = Problem(policy, loss, condensed(train), condensed(held_out))
    solve_inner(problem)
    moment = held_out_second_moment(policy, problem.held_out, floor=0.0)
    optimum, start = optimal(form, moment), reward.matrix.detach()
    reward.set_matrix(optimum)
    settle(problem)
    with torch.no_grad():
        best = float(problem.objective(policy, problem.held_out).sum())
    reward.set_matrix(start)
    return Setting(problem, reward, optimum, optimal(form, covariance), best, descent(form, moment))


def condensed(batch: Batch) -> Batch:
    """A few rows with the same second moments of (1, x, y) as all of ``batch`` (one member).

    G and F are quadratic in (1, x, y) here, so both are exactly the same on these rows. With
    Z = (1, x, y) = Q·R the rows are those of a rotation of R that makes its first column constant.
    """
    z = torch.cat([torch.ones_like(batch.x[0, :, :1]), batch.x[0], batch.y[0]], dim=1)
    size = z.shape[1]
    triangle = torch.linalg.qr(z, mode="r").R
    # A reflection that takes the first unit vector to ±(1, …, 1)/√size.
    normal = torch.full((size, 1), -1.0 / math.sqrt(size), dtype=z.dtype)
    normal[0] += 1.0
    rotated = triangle - 2.0 * normal @ (normal.mT @ triangle) / normal.square().sum()
    rows = rotated / rotated[:, :1]
    return Batch(rows[None, :, 1 : 1 + _INPUTS], rows[None, :, 1 + _INPUTS :])


def optimal(form: Form, moment: Tensor) -> Tensor:
    """U* [D, D] of that form at λ = 1 for Σ = ``moment``."""
    if form == "full":
        inverse: Tensor = torch.linalg.inv(moment)
        return 0.25 * (inverse + inverse.mT)
    diagonal = moment.diagonal()
    if form == "scaled_identity":
        diagonal = diagonal.mean().expand_as(diagonal)
    return torch.diag(0.5 / diagonal)


def settle(problem: Problem) -> float:
    """Bring θ to the inner optimum by its formula, which is then checked; the gradient norm left.

    The mean is the least-squares fit under every constant U, so it stays where it is.
    """
    loss, policy = problem.loss, problem.policy
    assert isinstance(loss, PolicyGradient)
    assert isinstance(loss.reward, Mahalanobis)
    with torch.no_grad():
        if isinstance(policy, FullGaussianPolicy):
            inverse: Tensor = torch.linalg.inv(loss.reward.matrix)
            policy.set_covariance(0.25 * (inverse + inverse.mT))
        elif isinstance(policy, GaussianPolicy):
            policy.set_std((0.5 / loss.reward.u).sqrt())
    return solve_inner(problem)


def descent(form: Form, moment: Tensor) -> Descent:
    """The step that halves the error, or for a full U heavy ball (Polyak 1964).

    −F/D as a function of φ is (1/D)(−½ log|U| + tr(UΣ)) + const, whose Hessian at U* is known. Where
    all its eigenvalues are one number h, a step of 1/(2h) makes the factor 1 − h/(2h) = ½. Between
    h and H, heavy ball has the factor (√H − √h)/(√H + √h), the root of its momentum; H is doubled,
    because the curvature on the way to U* is greater than there.
    """
    values = torch.linalg.eigvalsh(outer_hessian(form, moment))
    low, high = math.sqrt(values.min()), math.sqrt(2.0 * values.max())
    if form != "full":
        return Descent(0.5 / low**2, 0.0, 0.5)
    rate = (high - low) / (high + low)
    return Descent((2.0 / (high + low)) ** 2, rate**2, rate)


def outer_hessian(form: Form, moment: Tensor) -> Tensor:
    """∇²_φ(−F/D) at U* (λ = 1), for φ = log u, or (log L_jj, L_ij) column by column for U = LLᵀ.

    Diagonal: −½ log u_d + u_d Σ_dd has second derivative ½ in log u_d; over D. Full: column j of L,
    c, contributes −log c_j + cᵀΣc with Σ from row j on; in (log c_j, rest) its Hessian is 2·JᵀΣJ with
    J = diag(c_j, 1, …), plus one for log c_j, since 2(Σc)_j·c_j = 1 at the optimum.
    """
    dim = len(moment)
    if form == "scaled_identity":
        return torch.full((1, 1), 0.5, dtype=moment.dtype)
    if form == "diagonal":
        return 0.5 / dim * torch.eye(dim, dtype=moment.dtype)
    lower = torch.linalg.cholesky(optimal("full", moment))
    blocks = []
    for j in range(dim):
        block = 2.0 * moment[j:, j:].clone()
        block[0, :] *= lower[j, j]
        block[:, 0] *= lower[j, j]
        block[0, 0] += 1.0
        blocks.append(block)
    hessian: Tensor = torch.block_diag(*blocks)  # type: ignore[no-untyped-call]
    return hessian / dim
