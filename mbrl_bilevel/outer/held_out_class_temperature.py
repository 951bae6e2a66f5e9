"""Outer solvers for classifiers that know the inner optimum: λ(x) by its power, β by the paper's formula.

p*_{λ'}(·|x) ∝ p*_λ(·|x)^{λ/λ'} (with a KL beside the entropy both weights are divided by s = λ/λ' and
the reference, too, is raised to the power s: arXiv 2510.07624's inner optimum with p_ref^{λ_K/Λ}); of a
LogTangent the fixed point is such a power to first order in λ_H. β* = λ·C/(2·tr Σ), Σ the held-out second
moment of the residual onehot(y) − p(x) (arXiv 2510.07624, whose formula for a Gaussian it is).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.inner.class_losses import categorical
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.inner.regularisers import KL, Entropy, Regulariser, Sum
from mbrl_bilevel.inner.rewards import RewardMatrix
from mbrl_bilevel.outer.problem import Problem, Report, reward_loss
from mbrl_bilevel.policies.tempered import TemperedPolicy, tempered

#: Residuals of a classifier that is right about everything are not taken for less than this.
_LEAST_BRIER = 1e-2


@dataclass(frozen=True)
class HeldOutClassTemperature:
    """λ(x) on the kept policy, from all members' held-out rows; the same for all members.

    Members that hold out the same rows answer together there, by the mean of their probabilities, as
    the ensemble will: an average is less sure than its members, and a temperature fitted to single
    ones would leave it too unsure. (a, b) of TemperedPolicy minimise the sum over held-out rows of −log p
    plus ½·``ridge``·(a − ``start``)² + ½·``bend_ridge``·b²: a Gaussian prior, which fades with the
    number of rows. ``bend_ridge=None`` keeps b = 0, which is temperature scaling (Guo et al. 2017).

    Raises InvalidInputError for ridges below zero.
    """

    ridge: float = 4.0
    start: float = 1.2
    bend_ridge: float | None = 8.0

    def __post_init__(self) -> None:
        if not self.ridge >= 0.0 or not (self.bend_ridge is None or self.bend_ridge >= 0.0):
            raise InvalidInputError(
                "HeldOutClassTemperature needs ridge >= 0 and bend_ridge >= 0 or None; "
                f"got {self.ridge} and {self.bend_ridge}"
            )

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError for a policy without a temperature to set, or a reward
        whose optimum at another temperature is no power: one without entropy."""
        if not isinstance(problem.policy, TemperedPolicy):
            raise UnsupportedCombinationError(
                "HeldOutClassTemperature needs a TemperedPolicy, whose λ(x) it sets; "
                f"got a {type(problem.policy).__name__}"
            )
        loss = problem.loss
        if isinstance(loss, PolicyGradient) and not _has_entropy(loss.regulariser):
            raise UnsupportedCombinationError(
                f"with {type(loss.regulariser).__name__} the inner optimum at another temperature is "
                "no power of this one: use Entropy, alone or beside KL by Sum, or FisherImplicit"
            )

    def step(self, problem: Problem) -> Report:
        """Nothing: λ is the one of training while θ is on its way."""
        return {}

    def finish(self, problem: Problem) -> Report:
        """Set λ(x) at the kept θ."""
        policy = problem.policy
        assert isinstance(policy, TemperedPolicy)
        rows = _rows(problem, policy)
        kept = torch.tensor([self.start, 0.0], dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.LBFGS([kept], max_iter=100, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimiser.zero_grad()
            bend = self.bend_ridge or 0.0
            prior = self.ridge * (kept[0] - self.start).square() + bend * kept[1].square()
            value = _nll(rows, self._free(kept), policy.reach) + 0.5 * prior
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimiser.step(closure)  # type: ignore[no-untyped-call]
        with torch.no_grad():
            found = self._free(kept)
            policy.temper.copy_(found)
            count = sum(float(weight.sum()) for _, _, weight in rows)
            gain = _nll(rows, torch.zeros_like(found), policy.reach) - _nll(
                rows, found, policy.reach
            )
        return {
            "log_sharpness": found[0].item(),
            "bend": found[1].item(),
            "temperature_gain": gain.item() / max(count, 1.0),
        }

    def _free(self, temper: Tensor) -> Tensor:
        return temper if self.bend_ridge is not None else temper * temper.new_tensor([1.0, 0.0])


def _has_entropy(regulariser: Regulariser) -> bool:
    """Entropy, alone or beside KL: both scale with the temperature."""
    parts = regulariser.parts if isinstance(regulariser, Sum) else (regulariser,)
    kinds = {type(part) for part in parts}
    return Entropy in kinds and kinds <= {Entropy, KL}


#: Logits of the members that answer together [K, R, C], the class of each row, its weight.
_Rows = list[tuple[Tensor, Tensor, Tensor]]


@torch.no_grad()
def _rows(problem: Problem, policy: TemperedPolicy) -> _Rows:
    """The held-out rows of each set of members that hold out the same ones."""
    held_out = problem.held_out
    logits = policy.logits(held_out.x).double()
    weight = held_out.weights.double()
    together: list[list[int]] = []
    for member in range(policy.members):
        for others in together:
            if torch.equal(held_out.x[others[0]], held_out.x[member]):
                others.append(member)
                break
        else:
            together.append([member])
    return [(logits[them], held_out.y[them[0], :, 0].long(), weight[them[0]]) for them in together]


def _nll(rows: _Rows, temper: Tensor, reach: float) -> Tensor:
    """The sum over all rows of −log of the mean probability of the true class."""
    total = temper.new_zeros(())
    for logits, true, weight in rows:
        log_probs = tempered(logits, temper, reach).log_softmax(-1)
        each = log_probs.gather(-1, true.expand(len(logits), -1).unsqueeze(-1)).squeeze(-1)
        total = total - (weight * (each.logsumexp(0) - torch.tensor(len(each)).log())).sum()
    return total


@dataclass(frozen=True)
class ClosedFormBeta:
    """R from U = β*·I on one-hot classes, β* = λ·C/(2·tr Σ): the paper's formula for a Gaussian.

    On classes it is a rule of thumb, not the optimum: that has no closed form where labels are noisy.
    Σ is the second moment of the held-out residual, pooled over the members.
    """

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError for another reward than RewardMatrix, another
        regulariser than Entropy with one number, or a policy that is not over classes."""
        loss = reward_loss(problem, "ClosedFormBeta")
        categorical(problem.policy.dist(problem.train.x), "ClosedFormBeta")
        if not isinstance(loss.reward, RewardMatrix) or not isinstance(loss.regulariser, Entropy):
            raise UnsupportedCombinationError(
                "ClosedFormBeta sets a RewardMatrix under Entropy; got "
                f"{type(loss.reward).__name__} under {type(loss.regulariser).__name__}: use "
                "FisherImplicit"
            )
        _ = loss.regulariser.temperature

    @torch.no_grad()
    def step(self, problem: Problem) -> Report:
        """Set β at the present θ."""
        loss, held_out = reward_loss(problem, "ClosedFormBeta"), problem.held_out
        assert isinstance(loss.reward, RewardMatrix)
        assert isinstance(loss.regulariser, Entropy)
        probs = categorical(problem.policy.dist(held_out.x), "ClosedFormBeta").probs
        classes = probs.shape[-1]
        true = functional.one_hot(held_out.y[..., 0].long(), classes)
        brier = held_out.mean((probs - true).square().sum(-1)).mean().clamp_min(_LEAST_BRIER)
        beta = loss.regulariser.temperature * classes / (2.0 * brier)
        matrix = RewardMatrix.one_hot(beta * torch.eye(classes, dtype=beta.dtype)).matrix
        loss.reward.matrix.copy_(matrix)
        return {"beta": beta.item(), "held_out_brier": brier.item()}

    def finish(self, problem: Problem) -> Report:
        """The same at the kept θ."""
        return self.step(problem)
