"""A variance that depends on x, fitted once the mean is there: the classical baseline of two stages.

min over a network s of mean ½ (y − μ(x))²·e^(−2s(x)) + s(x) on residuals of rows that no mean was
trained on, from the constant that suits them, stopped early (Nix & Weigend 1994, held out).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_bilevel.bilevel import Problem, Report
from mbrl_bilevel.closed_form import held_out_second_moment
from mbrl_bilevel.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.policies import GaussianPolicy


@dataclass(frozen=True)
class HeldOutVarianceNetwork:
    """No reward to infer: fit a small network on detached features, log σ(x), to held-out residuals.

    Cross-fitted as ``HeldOutTemperature`` is, so that the two see the same rows: a member's network is
    fitted to the residuals of the *other* members at their own held-out rows, and judged at its own
    held-out rows; a single member fits on the first half of its rows and judges on the second. All
    members stop at the step at which the pooled judging rows are most likely; step zero, the
    constant of ``HeldOutVariance``, is among them. σ(x) stays within what was found on these rows.

    At most ``steps`` of AdamW at ``learning_rate`` on ``batch_size`` of at most ``rows`` held-out rows,
    read every ``judge_every``; ``patience`` readings without improvement end it.
    """

    steps: int = 1000
    learning_rate: float = 1e-3
    batch_size: int = 256
    weight_decay: float = 1e-2
    rows: int = 20_000
    judge_every: int = 25
    patience: int = 12

    def __post_init__(self) -> None:
        counts = min(self.steps, self.batch_size, self.judge_every, self.patience, self.rows - 1)
        if counts < 1 or not self.learning_rate > 0.0:
            raise InvalidInputError(
                "HeldOutVarianceNetwork needs steps, batch_size, judge_every and patience >= 1, "
                f"rows >= 2 and learning_rate > 0; got {self}"
            )

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError for a policy without a scale network of its own."""
        policy = problem.policy
        if not isinstance(policy, GaussianPolicy) or policy.scale != "separate":
            raise UnsupportedCombinationError(
                'HeldOutVarianceNetwork needs a GaussianPolicy(scale="separate"), whose network it fits'
            )

    def step(self, problem: Problem) -> Report:
        """Nothing to do during training."""
        return {}

    def finish(self, problem: Problem) -> Report:
        """σ at its held-out constant, then σ(x)."""
        policy = problem.policy
        assert isinstance(policy, GaussianPolicy)
        policy.set_std(held_out_second_moment(policy, problem.held_out).diagonal().sqrt())
        rows = _Rows.of(problem, policy, self.rows)
        network = policy.scale_network.requires_grad_(True)
        # Draws of its own: the inner level's are the same with and without this fit.
        generator = torch.Generator().manual_seed(0)
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        constant = best = rows.judge()
        kept, kept_step = copy.deepcopy(network.state_dict()), 0
        for step in range(1, self.steps + 1):
            optimiser.zero_grad(set_to_none=True)
            rows.loss(self.batch_size, generator).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if step % self.judge_every == 0 and (found := rows.judge()) < best:
                best, kept, kept_step = found, copy.deepcopy(network.state_dict()), step
            if step - kept_step >= self.patience * self.judge_every:
                break
        network.load_state_dict(kept)
        network.requires_grad_(False)
        rows.bound()
        return {"variance_steps": float(kept_step), "variance_gain": constant - best}


@dataclass(frozen=True)
class _Rows:
    """R held-out rows of all members: each member's ``features`` [E, R, F], the ``squared`` residual
    [R, D] of the member that held the row out, who ``fits`` and who ``judges`` on it, [E, R]."""

    policy: GaussianPolicy
    features: Tensor
    squared: Tensor
    fits: Tensor
    judges: Tensor

    @staticmethod
    @torch.no_grad()
    def of(problem: Problem, policy: GaussianPolicy, most: int) -> _Rows:
        held_out, members = problem.held_out, policy.members
        squared = (held_out.y - policy.dist(held_out.x).mean).square()
        there = torch.ones_like(held_out.x[..., 0], dtype=torch.bool)
        if held_out.weight is not None:
            there = held_out.weight > 0
        owner = torch.arange(members).unsqueeze(1).expand_as(there)[there]
        thinned = torch.linspace(0, len(owner) - 1, min(most, len(owner))).long()
        x, squared, owner = held_out.x[there][thinned], squared[there][thinned], owner[thinned]
        if members == 1:
            judges = (torch.arange(len(x)) >= len(x) // 2).unsqueeze(0)
        else:
            judges = owner == torch.arange(members).unsqueeze(1)
        features = policy.network.features(x.expand(members, -1, -1))
        return _Rows(policy, features, squared, (~judges).to(x.dtype), judges.to(x.dtype))

    def loss(self, batch_size: int, generator: torch.Generator) -> Tensor:
        """The likelihood loss of a minibatch of each member's fitting rows, summed over members."""
        index = torch.multinomial(self.fits, batch_size, replacement=True, generator=generator)
        member = torch.arange(len(index)).unsqueeze(1)
        return self._nll(member, index).mean(1).sum()

    @torch.no_grad()
    def judge(self) -> float:
        nll = self._nll(slice(None), slice(None))
        return ((nll * self.judges).sum() / self.judges.sum()).item()

    @torch.no_grad()
    def bound(self) -> None:
        """Keep the policy's σ(x) within what its network says of the middle 98 % of these rows."""
        ordered = self.policy.raw_scale_at(self.features).sort(dim=1).values
        last = ordered.shape[1] - 1
        self.policy.temper_low.copy_(ordered[:, [round(0.01 * last)]])
        self.policy.temper_high.copy_(ordered[:, [round(0.99 * last)]])

    def _nll(self, member: Tensor | slice, row: Tensor | slice) -> Tensor:
        """Of the residuals, per dimension and up to a constant, [E, rows]."""
        raw = self.policy.raw_scale_at(self.features[member, row])
        log_std = self.policy.bounded_log_std(raw)
        return (0.5 * self.squared[row] * torch.exp(-2.0 * log_std) + log_std).mean(-1)
