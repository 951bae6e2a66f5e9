"""An outer solver for a temperature that depends on x: where is the policy allowed to be unsure?

With constant U and λ(x) the inner optimum is N(E[y|x], (λ(x)/2) U⁻¹): the mean is that of a constant
reward, and λ_d(x) = 2 u_d σ_d²(x) is what makes held-out residuals likely (arXiv 2510.07624).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.outer.closed_form import ClosedForm
from mbrl_bilevel.outer.held_out_rows import CrossFitted, bound_scale
from mbrl_bilevel.outer.problem import Problem, Report
from mbrl_bilevel.policies.policies import GaussianPolicy

#: How much more a dimension's own map is held back than the shared one.
_OWN_RIDGE = 5.0
#: The mean squared norm that features are scaled to, about what a trained layer of 200 has.
_SIZE = 40.0


@dataclass(frozen=True)
class HeldOutTemperature:
    """ClosedForm for U while the mean is trained; then λ(x), cross-fitted, on the kept policy.

    log σ(x) is linear in the detached features of each member's last hidden layer: a map that all
    dimensions share plus a map of each one's own, both with a ``ridge`` penalty on the size of what
    they add, which fades with the number of rows as a Gaussian prior does. A member's map is fitted to
    the residuals of the *other* members at their own held-out rows, and judged at its own held-out
    rows, which nobody's fit of it has seen. All members stop at one step and are shrunk
    towards the constant by one factor, those that make the pooled judging rows most likely: factor
    zero, the constant, is among them, so short data falls back to it. A single member fits on the
    first half of its held-out rows, by order, and judges on the second. σ(x) stays within what was
    found on these rows, wherever x lies.

    ``steps`` of Adam at ``learning_rate`` on at most ``rows`` held-out rows.
    """

    steps: int = 300
    learning_rate: float = 3e-3
    ridge: float = 1.0
    rows: int = 20_000
    shrinkage: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    closed_form: ClosedForm = field(default_factory=ClosedForm)

    def __post_init__(self) -> None:
        if self.steps < 1 or self.rows < 2 or not self.learning_rate > 0.0:
            raise InvalidInputError(
                "HeldOutTemperature needs steps >= 1, rows >= 2 and learning_rate > 0; got "
                f"{self.steps}, {self.rows} and {self.learning_rate}"
            )
        if 0.0 not in self.shrinkage or max(self.shrinkage) <= 0.0:
            raise InvalidInputError(
                f"shrinkage must hold 0 (the constant) and a positive factor; got {self.shrinkage}"
            )

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError as ClosedForm, and for a policy without λ(x)."""
        policy = problem.policy
        if not isinstance(policy, GaussianPolicy) or policy.scale != "tempered":
            raise UnsupportedCombinationError(
                'HeldOutTemperature needs a GaussianPolicy(scale="tempered"), whose σ(x) it sets'
            )
        self.closed_form.check(problem)

    def step(self, problem: Problem) -> Report:
        """A constant U at its optimum at the present θ; λ stays constant while the mean is on its
        way."""
        return self.closed_form.step(problem)

    def finish(self, problem: Problem) -> Report:
        """U and the constant σ at the kept θ, then σ(x)."""
        policy = problem.policy
        assert isinstance(policy, GaussianPolicy)
        report = self.closed_form.finish(problem)
        rows = _Rows.of(problem, policy, self.rows)
        own = torch.zeros_like(policy.temper_weight, requires_grad=True)
        shared = torch.zeros_like(own[..., :1], requires_grad=True)
        bias = torch.zeros_like(policy.raw_scale, requires_grad=True)
        ridge = self.ridge * _SIZE * policy.members / rows.fits.sum().clamp(min=1.0)
        optimiser = torch.optim.Adam([own, shared, bias], lr=self.learning_rate)
        constant = rows.judge(own, bias, 0.0)
        best, kept, factor = constant, (own.detach().clone(), bias.detach().clone()), 0.0
        for step in range(self.steps):
            optimiser.zero_grad(set_to_none=True)
            penalty = shared.square().sum() + _OWN_RIDGE * own.square().sum()
            loss = rows.fit_loss(own + shared, bias) + ridge * penalty
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if (step + 1) % 20:
                continue
            for shrunk in self.shrinkage:
                found = rows.judge(own + shared, bias, shrunk)
                if found < best:
                    best, factor = found, shrunk
                    kept = ((own + shared).detach(), bias.detach().clone())
        with torch.no_grad():
            policy.temper_weight.copy_(factor * rows.unit * kept[0])
            policy.raw_scale.add_(factor * kept[1])
            rows.bound(factor * kept[0])
        gain = constant - best
        return {**report, "temperature_factor": factor, "temperature_gain": gain}


@dataclass(frozen=True)
class _Rows:
    """R held-out rows of all members: each member's features [E, R, F] times its ``unit`` [E, 1, 1],
    which brings them to one size, the squared residual [1, R, D] of the member that held the row out,
    and who fits and who judges on it, [E, R]."""

    policy: GaussianPolicy
    features: Tensor
    unit: Tensor
    squared: Tensor
    fits: Tensor
    judges: Tensor

    @staticmethod
    @torch.no_grad()
    def of(problem: Problem, policy: GaussianPolicy, limit: int) -> _Rows:
        found = CrossFitted.of(problem, policy, limit)
        features, judges = found.features, found.judges
        size = features.square().sum(-1).mean(1).clamp(min=1e-8)
        unit = (_SIZE / size).sqrt().reshape(-1, 1, 1)
        fits = (~judges).to(features.dtype)
        return _Rows(policy, unit * features, unit, found.squared, fits, judges.to(features.dtype))

    def bound(self, weight: Tensor) -> None:
        """Keep the policy's σ(x) within what its map says of the middle 98 % of these rows."""
        bound_scale(self.policy, torch.baddbmm(self.policy.raw_scale, self.features, weight))

    def fit_loss(self, weight: Tensor, bias: Tensor) -> Tensor:
        nll = self._nll(weight, bias)
        return ((nll * self.fits).sum(1) / self.fits.sum(1).clamp(min=1.0)).sum()

    @torch.no_grad()
    def judge(self, weight: Tensor, bias: Tensor, factor: float) -> float:
        nll = self._nll(factor * weight, factor * bias)
        return ((nll * self.judges).sum() / self.judges.sum()).item()

    def _nll(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Of the residuals, per dimension and up to a constant, [E, R]."""
        raw = torch.baddbmm(self.policy.raw_scale.detach() + bias, self.features, weight)
        log_std = self.policy.bounded_log_std(raw)
        return (0.5 * self.squared * torch.exp(-2.0 * log_std) + log_std).mean(-1)
