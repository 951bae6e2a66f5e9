"""An outer solver for a shifted reward: what must be asked for so that open-loop rollouts come out right?

The inner optimum of r(ŷ, y + b_φ(x), x) has the mean E[y|x] + b_φ(x), so at the present mean μ_θ the
outer objective falls fastest where b changes by argmin_δ F(μ_θ + δ): no linear solve is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import DivergedError, InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.data.splits import evenly_spaced
from mbrl_bilevel.inner.shifted_reward import AffineShift, Shifted
from mbrl_bilevel.outer.problem import Problem, Report, reward_loss
from mbrl_bilevel.policies.distributions import DiagonalGaussian
from mbrl_bilevel.policies.policies import GaussianPolicy, Policy


@dataclass(frozen=True)
class HeldOutShift:
    """Moves b by the affine δ that minimises the outer objective of N(μ_θ(x) + δ(x), ·) plus
    ``ridge``/rows·‖δ‖², on at most ``rows`` held-out rows a member.

    In function space, as ClosedFormGradient: exact where the policy is free at each x, and where θ
    has followed the last move, so give it some hundred inner steps in between (``Outer.every``).
    ``iterations`` of L-BFGS each time.
    """

    iterations: int = 8
    rows: int = 512
    ridge: float = 1.0

    def __post_init__(self) -> None:
        if self.iterations < 1 or self.rows < 1 or not self.ridge >= 0.0:
            raise InvalidInputError(
                f"HeldOutShift needs iterations and rows >= 1 and ridge >= 0; got {self}"
            )

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError for a reward without an affine shift, or a policy that is
        no diagonal Gaussian."""
        _shift(problem)
        if not isinstance(problem.policy, GaussianPolicy):
            raise UnsupportedCombinationError(
                f"HeldOutShift needs a GaussianPolicy; got a {type(problem.policy).__name__}"
            )

    def step(self, problem: Problem) -> Report:
        """One move of b; the report says by how much the objective falls and how large W is."""
        shift, held_out = _shift(problem), problem.held_out
        batch = held_out.take(evenly_spaced(held_out.x.shape[1], self.rows))
        inputs, dim = shift.weight.shape
        change = AffineShift(inputs, dim, unit=1.0).to(shift.weight)
        parameters = list(change.parameters())
        moved = cast(Policy, _Moved(problem.policy, change))
        optimiser = torch.optim.LBFGS(
            parameters, max_iter=self.iterations, line_search_fn="strong_wolfe"
        )
        rows = batch.x.shape[0] * batch.x.shape[1]
        values = list[float]()

        def closure() -> Tensor:
            value = problem.objective(moved, batch).mean()
            values.append(value.item())
            total = value + self.ridge / rows * sum(p.square().sum() for p in parameters)
            gradients = torch.autograd.grad(total, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            return total

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        if not all(bool(p.isfinite().all()) for p in parameters):
            raise DivergedError(
                "the shift of the reward is not finite: open-loop rollouts of the model run away; "
                "lower learning_rate, or take a shorter horizon"
            )
        with torch.no_grad():
            shift.weight.add_(change.weight / shift.unit)
            shift.bias.add_(change.bias / shift.unit)
        size = shift.unit * shift.weight.detach().norm().item()
        return {"shift_gain": values[0] - min(values), "shift_size": size}

    def finish(self, problem: Problem) -> Report:
        """Nothing: b belongs to the θ that was trained on it."""
        return {}


@dataclass(frozen=True)
class _Moved:
    """The policy as if its mean had followed a change of b already."""

    policy: Policy
    change: AffineShift

    def dist(self, x: Tensor) -> DiagonalGaussian:
        dist = self.policy.dist(x)
        assert isinstance(dist, DiagonalGaussian)
        return DiagonalGaussian(dist.mean + self.change(x), dist.log_std)


def _shift(problem: Problem) -> AffineShift:
    reward = reward_loss(problem, "HeldOutShift").reward
    if not isinstance(reward, Shifted) or not isinstance(reward.shift, AffineShift):
        raise UnsupportedCombinationError(
            "HeldOutShift moves the AffineShift of a Shifted reward; got a "
            f"{type(reward).__name__}: use FisherImplicit"
        )
    return reward.shift
