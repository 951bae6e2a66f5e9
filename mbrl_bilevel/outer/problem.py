"""The bilevel problem as the outer solvers see it, and the derivatives they share.

max_φ F(φ) = E_{(x,y)~held out}[log p_{θ*(φ)}(y|x)] with θ*(φ) = argmax_θ G(θ, φ)
(arXiv 2510.07624); θ is handled as one row [P] per ensemble member, φ is shared by the members.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import DivergedError, InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.inner.losses import Loss, PolicyGradient
from mbrl_bilevel.inner.rewards import LogTangent
from mbrl_bilevel.outer.linear_solvers import MatVec
from mbrl_bilevel.outer.objectives import Objective, OneStepNLL
from mbrl_bilevel.policies.policies import Policy

Report = Mapping[str, float]


@dataclass(frozen=True)
class Problem:
    """The inner policy (θ) and loss (it holds φ), a ``train`` sample of the inner rows, the
    ``held_out`` rows of the outer level, and its ``objective`` (to be minimised). ``lent`` are the held-out
    rows with those of early stopping, for what sets nothing that they stop; None: the same rows."""

    policy: Policy
    loss: Loss
    train: Batch
    held_out: Batch
    objective: Objective = field(default_factory=OneStepNLL)
    lent: Batch | None = None

    def with_lent(self) -> Problem:
        """The same, with the rows of early stopping among those held out."""
        return self if self.lent is None else replace(self, held_out=self.lent, lent=None)


@dataclass(frozen=True)
class Warm:
    """What a linear solve leaves to the next one: its ``solution`` [E, P], or None."""

    solution: Tensor | None = None


@dataclass(frozen=True)
class Hypergradient:
    """d objective / dφ, one tensor per parameter of φ, summed over the members."""

    gradient: tuple[Tensor, ...]
    report: Report
    warm: Warm = field(default_factory=Warm)


@runtime_checkable
class GradientSolver(Protocol):
    """The slot for solvers that give a hypergradient; ``Outer`` takes the step on φ."""

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError for a problem this solver is wrong for."""
        ...

    def hypergradient(
        self, problem: Problem, warm: Warm, generator: torch.Generator
    ) -> Hypergradient: ...


@runtime_checkable
class DirectSolver(Protocol):
    """The slot for solvers that know the optimum: they set φ (or the policy's scale) themselves."""

    def check(self, problem: Problem) -> None: ...

    def step(self, problem: Problem) -> Report: ...

    def finish(self, problem: Problem) -> Report:
        """Once more, at the state of the policy that is kept."""
        ...


Solver = GradientSolver | DirectSolver


def reward_loss(problem: Problem, solver: str) -> PolicyGradient:
    """The problem's loss if it has a φ and an inner optimum that is the one of G.

    Raises UnsupportedCombinationError otherwise, in the name of ``solver``.
    """
    loss = problem.loss
    if not isinstance(loss, PolicyGradient):
        raise UnsupportedCombinationError(
            f"{solver} infers the reward of a PolicyGradient loss; {type(loss).__name__} has none: "
            "use outer=None, or PolicyGradient"
        )
    if not loss.unbiased:
        raise UnsupportedCombinationError(
            f"{solver} needs an unbiased estimator; {type(loss.estimator).__name__} moves the inner "
            "optimum, so no formula for its derivative holds: use LeaveOneOut or Analytic"
        )
    if isinstance(loss.reward, LogTangent):
        raise UnsupportedCombinationError(
            f"{solver} differentiates the inner optimum of a reward that stays as it is, and LogTangent follows "
            "the policy: use HeldOutClassTemperature, or RewardMatrix (the method bilevel-bounded)"
        )
    return loss


def outer_parameters(loss: PolicyGradient, solver: str) -> list[nn.Parameter]:
    """φ: what the outer level moves. Raises UnsupportedCombinationError if there is nothing."""
    phi = [p for p in loss.parameters() if p.requires_grad]
    if not phi:
        raise UnsupportedCombinationError(
            f"{solver} has nothing to infer: neither the reward nor the regulariser has trainable "
            "parameters; use a reward module such as Mahalanobis, or outer=None"
        )
    return phi


def needs_second_derivative(loss: PolicyGradient, solver: str) -> None:
    """Raises UnsupportedCombinationError for an estimator that is right in its gradient only."""
    if not loss.second_derivative:
        raise UnsupportedCombinationError(
            f"{solver} differentiates the inner loss twice, and the second derivative of "
            f"{type(loss.estimator).__name__} is not the Hessian (even its sign can be wrong): use "
            "the estimator Analytic, or the solver FisherImplicit, which needs first derivatives only"
        )


@dataclass(frozen=True)
class Theta:
    """The policy's trainable parameters as rows of one matrix [E, P]; members come first in each.

    Raises InvalidInputError for a parameter that is not stacked by member.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    members: int

    @staticmethod
    def of(policy: Policy) -> Theta:
        named = [(n, p) for n, p in policy.named_parameters() if p.requires_grad]
        for name, parameter in named:
            if parameter.ndim == 0 or parameter.shape[0] != policy.members:
                raise InvalidInputError(
                    f"policy parameter {name} must have the {policy.members} members as its first "
                    f"dimension; got shape {tuple(parameter.shape)}"
                )
        return Theta(tuple(n for n, _ in named), tuple(p for _, p in named), policy.members)

    def flat(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors like the parameters -> [E, P]."""
        return torch.cat([t.reshape(self.members, -1) for t in tensors], dim=1)

    def unflat(self, rows: Tensor) -> tuple[Tensor, ...]:
        """[E, P] -> tensors like the parameters."""
        parts = torch.split(rows, [t[0].numel() for t in self.tensors], dim=1)
        return tuple(p.reshape(t.shape) for p, t in zip(parts, self.tensors, strict=True))

    def grad(self, scalar: Tensor, *, create_graph: bool = False) -> Tensor:
        """∇_θ of ``scalar`` at the policy's own parameters, [E, P]."""
        gradients = torch.autograd.grad(
            scalar, self.tensors, create_graph=create_graph, materialize_grads=True
        )
        return self.flat(gradients)


class Linearised:
    """The Jacobian J = ∂outputs/∂θ at the present θ: J v and Jᵀu with one pass each.

    The graphs of both are built once and serve every product of a solve. J v is the derivative of
    Jᵀu in u (the double-backward form of a JVP), so no forward pass is repeated.
    """

    def __init__(self, outputs: tuple[Tensor, ...], theta: Theta) -> None:
        self._theta, self._all = theta, outputs
        # A policy's parameter that no output depends on has a zero column; an output that is not
        # trained (a scale that an outer solver sets) a zero row.
        self._outputs = tuple(o for o in outputs if o.requires_grad)
        self._cotangents = tuple(torch.zeros_like(o, requires_grad=True) for o in self._outputs)
        pulled = torch.autograd.grad(
            self._outputs,
            theta.tensors,
            self._cotangents,
            create_graph=True,
            materialize_grads=True,
        )
        self._live = tuple(i for i, p in enumerate(pulled) if p.requires_grad)
        self._pulled = tuple(pulled[i] for i in self._live)

    def push(self, v: Tensor) -> tuple[Tensor, ...]:
        """J v for ``v`` [E, P]: tangents like the outputs."""
        parts = self._theta.unflat(v)
        found = iter(
            torch.autograd.grad(
                self._pulled,
                self._cotangents,
                tuple(parts[i] for i in self._live),
                retain_graph=True,
                materialize_grads=True,
            )
        )
        return tuple(next(found) if o.requires_grad else torch.zeros_like(o) for o in self._all)

    def pull(self, u: tuple[Tensor, ...]) -> Tensor:
        """Jᵀu for cotangents ``u`` like the outputs: [E, P]."""
        trained = tuple(one for one, o in zip(u, self._all, strict=True) if o.requires_grad)
        gradients = torch.autograd.grad(
            self._outputs, self._theta.tensors, trained, retain_graph=True, materialize_grads=True
        )
        return self._theta.flat(gradients)


def worst_norm(rows: Tensor) -> float:
    """The largest norm of the rows [E, P]: of the members' gradients, say."""
    return float(torch.linalg.vector_norm(rows.detach(), dim=-1).max())


def has_closed_form(problem: Problem) -> bool:
    """Whether G itself, not only an estimate of its gradient, can be computed."""
    loss, batch = problem.loss, problem.train
    assert isinstance(loss, PolicyGradient)
    try:
        with torch.no_grad():
            loss.objective(problem.policy.dist(batch.x), batch.y, batch.x)
    except UnsupportedCombinationError:
        return False
    return True


def inner_loss(
    loss: PolicyGradient, policy: Policy, batch: Batch, generator: torch.Generator, exact: bool
) -> Tensor:
    """−G per target dimension, [E]: in closed form if ``exact``, else the loss's own estimate."""
    if exact:
        dist = policy.dist(batch.x)
        return -batch.mean(loss.objective(dist, batch.y, batch.x)) / batch.y.shape[-1]
    value: Tensor = loss(policy, batch, generator)[0]
    return value


def require_objective(problem: Problem) -> None:
    """Raises InvalidInputError for an objective that is not one number a member with a gradient in θ."""
    value, wanted = problem.objective(problem.policy, problem.held_out), (problem.policy.members,)
    if tuple(value.shape) != wanted or not value.requires_grad:
        found = f"shape {tuple(value.shape)}{'' if value.requires_grad else ' without a gradient'}"
        raise InvalidInputError(
            f"objective: it must return one number a member, of shape {wanted}, with a gradient in the policy; "
            f"got {found}: batch.mean(…) of [E, B] gives that"
        )


def objective_gradient(problem: Problem, theta: Theta) -> Tensor:
    """∇_θ of the outer objective at the present θ, [E, P].

    Raises DivergedError if it is not finite: no linear solve would show that in its solution.
    """
    gradient = theta.grad(problem.objective(problem.policy, problem.held_out).sum())
    if not gradient.isfinite().all():
        raise DivergedError(
            "the outer objective's gradient is not finite: the model diverged (lower learning_rate), "
            "or the held-out rows hold NaN"
        )
    return gradient


def hessian_product(gradient: Tensor, theta: Theta) -> MatVec:
    """v -> ∇²_θθ v (Pearlmutter 1994), from a ``gradient`` [E, P] made with create_graph."""

    def product(v: Tensor) -> Tensor:
        rows = torch.autograd.grad(
            gradient, theta.tensors, v, retain_graph=True, materialize_grads=True
        )
        return theta.flat(rows)

    return product


class _Bound(nn.Module):
    """Makes functions of a policy reachable by ``functional_call``, which calls ``forward`` only."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, function: Callable[[Policy], object]) -> object:
        return function(self.policy)


def at(
    policy: Policy, theta: Theta, tensors: Sequence[Tensor], function: Callable[[Policy], Tensor]
) -> Tensor:
    """``function(policy)`` with ``tensors`` in place of the policy's parameters, differentiable."""
    swapped = {f"policy.{n}": t for n, t in zip(theta.names, tensors, strict=True)}
    value: Tensor = torch.func.functional_call(_Bound(policy), swapped, (function,))
    return value
