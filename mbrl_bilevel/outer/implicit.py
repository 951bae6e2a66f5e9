"""Hypergradients by the implicit function theorem: dF/dφ = −(∂²L/∂φ∂θ) H⁻¹ ∇_θF at the inner optimum.

With L = −G/D, H its curvature. FisherImplicit takes H = E_x[Λ(x)·Fisher_x]/D (exact where the
policy can represent the inner optimum), the others the Hessian. Source: arXiv 2510.07624.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.outer.linear_solvers import (
    LinearSolveInfo,
    LinearSolver,
    MatVec,
    conjugate_gradient,
    neumann_series,
)
from mbrl_bilevel.outer.problem import (
    Hypergradient,
    Linearised,
    Problem,
    Theta,
    Warm,
    has_closed_form,
    hessian_product,
    inner_loss,
    needs_second_derivative,
    objective_gradient,
    outer_parameters,
    reward_loss,
    worst_norm,
)

_CONJUGATE_GRADIENT: LinearSolver = partial(conjugate_gradient, tolerance=1e-2, max_iterations=100)
_NEUMANN_SERIES: LinearSolver = partial(neumann_series, tolerance=1e-2, max_iterations=200)


@dataclass(frozen=True)
class FisherImplicit:
    """The default: Fisher-vector products only, one J v and one Jᵀu each, and first-order draws.

    At an inner optimum that the policy can represent, −∇²_θθ G = E_x[Λ(x)·Fisher_x(θ)] (the inner
    problem is a reverse KL; Amari 1998 for the Fisher metric), positive semi-definite, so damped
    conjugate gradient is safe. The cross term E[∇_θ log p(ŷ)·∇_φ r(ŷ)ᵀ] is exact where the reward has
    a closed-form mean, else a leave-one-out mean over ``samples`` draws.

    ``solve`` is the linear solver. ``damping`` is in units of Fisher information (it is multiplied
    by the mean of Λ/D, so it respects the gauge (U, λ) → c·(U, λ)); a network has more parameters
    than rows, and what damping is left small enough to let through in its flat directions is noise:
    take 1 to 3 for networks (2 is the default), 0.1 or less for small well-conditioned models.
    ``fisher="sampled"`` takes E[∇log p ∇log pᵀ] over draws, for distributions without a closed form.
    ``rows`` of the train sample make up the curvature (None: all).
    """

    solve: LinearSolver = _CONJUGATE_GRADIENT
    damping: float = 2.0
    fisher: Literal["exact", "sampled"] = "exact"
    samples: int = 64
    rows: int | None = 64

    def __post_init__(self) -> None:
        if not self.damping >= 0.0 or self.samples < 2:
            raise InvalidInputError(
                f"FisherImplicit needs damping >= 0 and samples >= 2; got damping={self.damping}, "
                f"samples={self.samples}"
            )
        if self.fisher not in ("exact", "sampled") or (self.rows is not None and self.rows < 1):
            raise InvalidInputError(
                f'fisher must be "exact" or "sampled" and rows >= 1 or None; '
                f"got fisher={self.fisher!r}, rows={self.rows}"
            )

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError for a biased estimator, nothing to infer, no Λ(x), or
        a distribution without Fisher product when ``fisher="exact"``."""
        loss = reward_loss(problem, "FisherImplicit")
        outer_parameters(loss, "FisherImplicit")
        Theta.of(problem.policy)
        batch = problem.train
        dist = problem.policy.dist(batch.x)
        if not bool((loss.regulariser.weight(batch.x) > 0.0).all()):
            raise UnsupportedCombinationError(
                "FisherImplicit needs Λ(x) > 0 everywhere: without entropy or KL the inner optimum "
                "is a point mass and its Fisher information infinite; use Entropy(temperature)"
            )
        if self.fisher == "sampled":
            return
        try:
            dist.fisher_product(tuple(torch.zeros_like(p) for p in dist.params))
        except UnsupportedCombinationError as error:
            raise UnsupportedCombinationError(
                f"FisherImplicit: {type(dist).__name__} has no closed-form Fisher information: use "
                'FisherImplicit(fisher="sampled")'
            ) from error

    def hypergradient(
        self, problem: Problem, warm: Warm, generator: torch.Generator
    ) -> Hypergradient:
        """One linear solve, then one cross term; all draws are made once."""
        loss = reward_loss(problem, "FisherImplicit")
        phi, theta = outer_parameters(loss, "FisherImplicit"), Theta.of(problem.policy)
        batch = problem.train.take(slice(self.rows))
        share = batch.share * loss.regulariser.weight(batch.x).detach() / batch.y.shape[-1]
        damping = self.damping * share.sum(-1, keepdim=True)
        product = self.curvature(problem, theta, batch, share, generator)
        solution, info = self.solve(
            product,
            objective_gradient(problem, theta),
            warm.solution,
            damping=damping,
        )
        cross, gradient = cross_term(problem, theta, phi, solution, self.samples, generator)
        return _result(cross, gradient, info, Warm(solution))

    def curvature(
        self,
        problem: Problem,
        theta: Theta,
        batch: Batch,
        share: Tensor,
        generator: torch.Generator,
    ) -> MatVec:
        """v [E, P] -> Σ_b share_b·J_bᵀ F_b J_b v."""
        dist = problem.policy.dist(batch.x)
        if self.fisher == "sampled":
            scores = Linearised((dist.log_prob(dist.sample(self.samples, generator)),), theta)
            return lambda v: scores.pull((share / self.samples * scores.push(v)[0],))
        outputs = Linearised(dist.params, theta)
        fixed = dist.from_params(tuple(p.detach() for p in dist.params))

        def product(v: Tensor) -> Tensor:
            images = fixed.fisher_product(outputs.push(v))
            return outputs.pull(
                tuple(share.reshape(*share.shape, *[1] * (u.ndim - 2)) * u for u in images)
            )

        return product


@dataclass(frozen=True)
class ExactImplicit:
    """The oracle for small problems: the Hessian in full, and its (pseudo-)inverse in float64.

    Directions flatter than ``cutoff`` times the steepest are left out: a softmax's common shift of
    the logits is one, and neither side of the formula has a part in it. Not converged means that
    the Hessian is not positive: θ is then no inner optimum.
    """

    max_parameters: int = 4000
    cutoff: float = 1e-10
    samples: int = 64

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError for a biased estimator, one whose second derivative is
        wrong, nothing to infer, or more than ``max_parameters`` parameters a member."""
        loss = reward_loss(problem, "ExactImplicit")
        needs_second_derivative(loss, "ExactImplicit")
        outer_parameters(loss, "ExactImplicit")
        size = sum(t[0].numel() for t in Theta.of(problem.policy).tensors)
        if size > self.max_parameters:
            raise UnsupportedCombinationError(
                f"ExactImplicit inverts a {size} x {size} Hessian per member, above max_parameters="
                f"{self.max_parameters}: use FisherImplicit, which only multiplies with it"
            )

    def hypergradient(
        self, problem: Problem, warm: Warm, generator: torch.Generator
    ) -> Hypergradient:
        """One dense solve per member, then one cross term."""
        loss = reward_loss(problem, "ExactImplicit")
        phi, theta = outer_parameters(loss, "ExactImplicit"), Theta.of(problem.policy)
        value = inner_loss(loss, problem.policy, problem.train, generator, has_closed_form(problem))
        product = hessian_product(theta.grad(value.sum(), create_graph=True), theta)
        b = objective_gradient(problem, theta)
        # Members do not mix, so one product gives a column of every member's Hessian.
        basis = torch.eye(b.shape[1], dtype=b.dtype, device=b.device)
        hessian = torch.stack([product(e.expand_as(b).contiguous()) for e in basis], dim=-1)
        solution, info = _pseudo_solve(hessian, b, self.cutoff)
        cross, gradient = cross_term(problem, theta, phi, solution, self.samples, generator)
        return _result(cross, gradient, info, Warm(solution))


@dataclass(frozen=True)
class Neumann:
    """Hessian-vector products (Pearlmutter 1994) summed in a Neumann series (Lorraine et al. 2020,
    arXiv 1911.02590). It diverges, and says so, where the Hessian is not positive."""

    solve: LinearSolver = _NEUMANN_SERIES
    samples: int = 64

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError for a biased estimator, one whose second derivative is
        wrong, or nothing to infer."""
        loss = reward_loss(problem, "Neumann")
        needs_second_derivative(loss, "Neumann")
        outer_parameters(loss, "Neumann")
        Theta.of(problem.policy)

    def hypergradient(
        self, problem: Problem, warm: Warm, generator: torch.Generator
    ) -> Hypergradient:
        """One series, then one cross term; an estimated loss is drawn once for all products."""
        loss = reward_loss(problem, "Neumann")
        phi, theta = outer_parameters(loss, "Neumann"), Theta.of(problem.policy)
        value = inner_loss(loss, problem.policy, problem.train, generator, has_closed_form(problem))
        product = hessian_product(theta.grad(value.sum(), create_graph=True), theta)
        solution, info = self.solve(product, objective_gradient(problem, theta), warm.solution)
        cross, gradient = cross_term(problem, theta, phi, solution, self.samples, generator)
        return _result(cross, gradient, info, Warm(solution))


def cross_term(
    problem: Problem,
    theta: Theta,
    phi: list[nn.Parameter],
    direction: Tensor,
    samples: int,
    generator: torch.Generator,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """∂/∂φ of ⟨direction, ∇_θL⟩ for ``direction`` [E, P], and ∇_θL itself [E, P].

    Where G has a closed form it is differentiated once in θ and once in φ. Else
    −E[⟨direction, ∇_θ log p(ŷ)⟩·∇_φ r(ŷ)]/D over ``samples`` draws, first order only, with the mean
    over the draws taken off each factor (both have a baseline free choice: E[∇ log p] = 0).
    A λ(x) in φ enters through ∇_θ of the bonus, which is always in closed form.
    """
    loss, batch = problem.loss, problem.train
    assert isinstance(loss, PolicyGradient)
    if has_closed_form(problem):
        value = inner_loss(loss, problem.policy, batch, generator, exact=True)
        gradient = theta.grad(value.sum(), create_graph=True)
        return _mixed(gradient, direction, phi), gradient.detach()
    dist = problem.policy.dist(batch.x)
    draws = dist.sample(samples, generator)
    slopes = Linearised((dist.log_prob(draws),), theta)
    (along,) = slopes.push(direction)  # ⟨direction, ∇_θ log p(ŷ_k)⟩, [K, E, B]
    reward = loss.reward(draws, batch.y, batch.x)
    scale = 1.0 / (batch.y.shape[-1] * (samples - 1))
    centred = (along - along.mean(0)).detach()
    first = -scale * batch.mean((centred * reward).sum(0)).sum()
    bonus = loss.regulariser.bonus(problem.policy.dist(batch.x), batch.x)
    bonus_gradient = theta.grad(-batch.mean(bonus).sum() / batch.y.shape[-1], create_graph=True)
    parts = zip(
        torch.autograd.grad(first, phi, materialize_grads=True)
        if first.requires_grad
        else [torch.zeros_like(p) for p in phi],
        _mixed(bonus_gradient, direction, phi),
        strict=True,
    )
    advantage = (reward - reward.mean(0)).detach()
    gradient = slopes.pull((-scale * advantage * batch.share,)) + bonus_gradient.detach()
    return tuple(a + b for a, b in parts), gradient


def _mixed(gradient: Tensor, direction: Tensor, phi: list[nn.Parameter]) -> tuple[Tensor, ...]:
    along = (gradient * direction).sum()
    if not along.requires_grad:
        return tuple(torch.zeros_like(p) for p in phi)
    return torch.autograd.grad(along, phi, materialize_grads=True)


def _result(
    cross: tuple[Tensor, ...], inner_gradient: Tensor, info: LinearSolveInfo, warm: Warm
) -> Hypergradient:
    report = {"inner_gradient_norm": worst_norm(inner_gradient), **info.report()}
    return Hypergradient(tuple(-c for c in cross), report, warm)


def _pseudo_solve(hessian: Tensor, b: Tensor, cutoff: float) -> tuple[Tensor, LinearSolveInfo]:
    symmetric = (hessian + hessian.mT).double() / 2.0
    values, vectors = torch.linalg.eigh(symmetric)
    floor = cutoff * values.abs().amax(-1, keepdim=True)
    inverse = torch.where(values.abs() > floor, values.reciprocal(), 0.0)
    right = b.double().unsqueeze(-1)
    solution = vectors @ (inverse.unsqueeze(-1) * (vectors.mT @ right))
    norm = torch.linalg.vector_norm(right, dim=(1, 2))
    residual = torch.linalg.vector_norm(symmetric @ solution - right, dim=(1, 2))
    relative = torch.where(norm > 0.0, residual / norm, 0.0)
    minimum = (values >= -floor).all(-1)
    # What the dense solve leaves is rounding, or a part of b in the flat directions.
    info = LinearSolveInfo(1, relative, minimum & (relative < 1e-4))
    return solution.squeeze(-1).to(b.dtype), info
