"""How far data lies from the mean at each x, found on held-out residuals, and how that weighs rewards.

With the reward −Σ_d u_d(x)(ŷ_d − y_d)² and a temperature λ_d(x) the inner optimum is
N(E[y|x], λ(x)/2u(x)) (arXiv 2510.07624): one-step likelihood fixes λ_d(x)/u_d(x) = 2σ_d²(x) alone.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from mbrl_bilevel.base.errors import InvalidInputError, UnsupportedCombinationError
from mbrl_bilevel.inner.dimension_weights import DimensionWeights
from mbrl_bilevel.outer.closed_form import held_out_second_moment
from mbrl_bilevel.outer.held_out_rows import CrossFitted, Recollection, bound_scale
from mbrl_bilevel.outer.problem import Problem, Report
from mbrl_bilevel.policies.distributions import DiagonalGaussian, Distribution
from mbrl_bilevel.policies.networks import EnsembleLinear
from mbrl_bilevel.policies.policies import GaussianPolicy

#: log σ(x) counts for a reward within this of the constant's: no row may weigh e³ times another.
_REACH = 1.5
#: The least share of its variance that an ensemble member keeps for itself.
_LEAST_OWN = 0.1


class SharedSpread(nn.Module):
    """r = −Σ_d u_d(x)(ŷ_d − y_d)² with u_d(x) = ½σ_d(x)^(−2a): the reward takes a ``share`` a of the
    spread that ``policy`` has at x, the temperature λ_d(x) = σ_d(x)^(2−2a) the rest.

    How the two share it is a gauge: the inner optimum is the same for each a. But a mean that cannot
    be right everywhere is pulled by u(x): a = 0 is squared error, a = 1 likelihood; in between,
    the gradient of the mean is that of β-NLL at β = 1 − a (Seitzer 2022, eq. 5), with the held-out σ
    for the fitted one. σ is data here: no gradient flows through it.

    ``weights`` w multiply both, reward and temperature, dimension by dimension: a gauge as well, which says how
    hard each dimension pulls on what the network shares.

    With ``infer_share`` a is one of φ, from ``share`` on, and u(x) has the mean ½ in each batch: a larger reward would
    otherwise look like a longer step.
    """

    def __init__(
        self,
        policy: GaussianPolicy,
        share: float = 0.5,
        weights: DimensionWeights | None = None,
        infer_share: bool = False,
    ) -> None:
        super().__init__()
        if not 0.0 <= share <= 1.0 or (infer_share and share in (0.0, 1.0)):
            raise InvalidInputError(
                f"share must lie between 0 and 1, within them where it is inferred; got {share}"
            )
        # In a tuple, so that θ is not among this module's own parameters, which are φ.
        self._policy, self.share, self.weights = (policy,), share, weights
        self.share_logit: nn.Parameter | None = None
        if infer_share:
            self.share_logit = nn.Parameter(torch.tensor(math.log(share / (1.0 - share))))

    def forward(self, y_hat: Tensor, y: Tensor, x: Tensor) -> Tensor:
        weight = self.weight(self._policy[0].dist(x).log_std)
        return -(weight * (y_hat - y).square()).sum(-1)

    def expected(self, dist: Distribution, y: Tensor, x: Tensor) -> Tensor:
        """−Σ_d u_d(x)((m_d − y_d)² + s_d²) for mean m and std s of ``dist``, which must be the
        policy's own at x, [E, B]. Raises UnsupportedCombinationError for one that is not Gaussian."""
        if not isinstance(dist, DiagonalGaussian):
            raise UnsupportedCombinationError(
                f"SharedSpread needs a GaussianPolicy; got a {type(dist).__name__}"
            )
        square = (dist.mean - y).square() + dist.std.square()
        return -(self.weight(dist.log_std) * square).sum(-1)

    def weight(self, log_std: Tensor) -> Tensor:
        """w_d·u_d(x) for log σ_d(x), [E, B, D]."""
        policy = self._policy[0]
        with torch.no_grad():
            constant = policy.bounded_log_std(policy.raw_scale)
            near = constant + (log_std - constant).clamp(-_REACH, _REACH)
        if self.share_logit is None:
            u = 0.5 * torch.exp(-2.0 * self.share * near)
        else:
            u = torch.exp(-2.0 * self.share_logit.sigmoid() * near)
            u = 0.5 * u / u.mean()
        return u if self.weights is None else self.weights() * u

    def report(self) -> dict[str, float]:
        """a under the name share, where it is inferred."""
        return (
            {}
            if self.share_logit is None
            else {"share": float(self.share_logit.detach().sigmoid())}
        )


@dataclass(frozen=True)
class HeldOutSpread:
    """σ(x): a small network of each member on its own detached features, fitted to held-out residuals.

    Cross-fitted: a member's network is fitted to the residuals of the *other* members at their own
    held-out rows, and judged at its own held-out rows; a single member fits on the first half of its
    rows and judges on the second. All members stop at one step and are shrunk towards the constant by
    one factor of ``shrinkage``, those that make the pooled judging rows most likely; the factor zero,
    the constant, is among them, so short data falls back to it. σ(x) stays within what was
    found on these rows, wherever x lies.

    ``refit`` steps of AdamW on ``refit_rows`` each time that the outer level runs (0: never), so that
    the reward knows the spread while the mean is trained, and ``steps`` on ``rows`` in the end. Then,
    where it is an ``ensemble``'s: the members' log σ(x) are averaged, by ``average`` steps of
    regression of each on their mean; and what the members' disagreement V already spreads
    is taken out of σ². A residual of a member on rows it has not seen is (y − μ̄)² + V on average, so
    that σ² counts V, and the mixture of the members would count it twice.

    With a ``recollection`` of earlier tasks, its rows are fitted and judged on beside the held-out ones.
    """

    refit: int = 50
    steps: int = 300
    average: int = 150
    ensemble: bool = True
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    batch_size: int = 256
    rows: int = 20_000
    refit_rows: int = 4000
    judge_every: int = 50
    shrinkage: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    recollection: Recollection | None = None

    def __post_init__(self) -> None:
        counts = min(self.steps, self.batch_size, self.judge_every, self.rows, self.refit_rows)
        if counts < 1 or min(self.refit, self.average) < 0 or not self.learning_rate > 0.0:
            raise InvalidInputError(
                "HeldOutSpread needs steps, batch_size, judge_every, rows and refit_rows >= 1, refit "
                f"and average >= 0 and learning_rate > 0; got {self}"
            )
        if 0.0 not in self.shrinkage or max(self.shrinkage) <= 0.0:
            raise InvalidInputError(
                f"shrinkage must hold 0 (the constant) and a positive factor; got {self.shrinkage}"
            )

    def check(self, problem: Problem) -> None:
        """Raises UnsupportedCombinationError for a policy without a scale network of its own."""
        policy = problem.policy
        if not isinstance(policy, GaussianPolicy) or policy.scale != "separate":
            raise UnsupportedCombinationError(
                'HeldOutSpread needs a GaussianPolicy(scale="separate"), whose network it fits'
            )

    def step(self, problem: Problem) -> Report:
        """σ(x) brought up to date with the mean, from where it was."""
        if not self.refit:
            return {}
        rows = _Rows.of(problem, self.refit_rows, self.recollection)
        with rows.standardised():
            return self._fitted(rows, self.refit, self.refit)

    def finish(self, problem: Problem) -> Report:
        """σ(x) of the mean that is kept."""
        rows = _Rows.of(problem, self.rows, self.recollection)
        policy = rows.policy
        together = self.ensemble and policy.members > 1
        with rows.standardised():
            report = self._fitted(rows, self.steps, self.judge_every)
            if together and self.average and report["spread_factor"] > 0.0:
                self._average(rows)
        with torch.no_grad():
            raw = policy.raw_scale_at(rows.held_out.features)
        if together:
            policy.dispersion.copy_(rows.own_share(raw).sqrt().log())
        bound_scale(policy, raw)
        return report

    def _fitted(self, rows: _Rows, steps: int, every: int) -> Report:
        """Set the policy's scale network to what it is after ``steps`` or fewer: where the judging rows
        are the most likely."""
        policy, network = rows.policy, rows.policy.scale_network
        start = copy.deepcopy(network.state_dict())
        policy.set_std(rows.constant)
        network.load_state_dict(start)

        (constant,) = rows.judge((0.0,))
        best, kept, factor, kept_step = constant, start, 0.0, 0

        def judge(step: int) -> None:
            nonlocal best, kept, factor, kept_step
            if step % every == 0 or step == steps:
                found, shrunk = min(zip(rows.judge(self.shrinkage), self.shrinkage, strict=True))
                if found < best:
                    best, factor, kept_step = found, shrunk, step
                    kept = copy.deepcopy(network.state_dict())

        # Draws of its own: the inner level's are the same with and without this fit.
        self._descend(rows, steps, rows.loss, judge)
        network.load_state_dict(kept)
        with torch.no_grad():
            network.last.weight.mul_(factor)
            network.last.bias.mul_(factor)
        found = {"factor": factor, "gain": constant - best, "steps": float(kept_step)}
        return {f"spread_{name}": value for name, value in found.items()}

    def _average(self, rows: _Rows) -> None:
        with torch.no_grad():
            mean = rows.excess().mean(0)

        def loss(output: Tensor, index: Tensor) -> Tensor:
            distance: Tensor = (output - mean[index]).square()
            return distance.mean((1, 2)).sum()

        self._descend(rows, self.average, loss, lambda step: None)

    def _descend(
        self,
        rows: _Rows,
        steps: int,
        loss: Callable[[Tensor, Tensor], Tensor],
        after: Callable[[int], None],
    ) -> None:
        """AdamW with a cosine on minibatches of each member's fitting rows."""
        generator = torch.Generator(rows.fits.device).manual_seed(0)
        network = rows.policy.scale_network.requires_grad_(True)
        optimiser = torch.optim.AdamW(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay, fused=True
        )
        cosine = CosineAnnealingLR(optimiser, steps)
        for step in range(1, steps + 1):
            index = rows.drawn(self.batch_size, generator)
            optimiser.zero_grad(set_to_none=True)
            value = loss(rows.excess(index), index)
            value.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            cosine.step()
            after(step)
        network.requires_grad_(False)


@dataclass(frozen=True)
class _Rows:
    """The ``held_out`` rows of all members, the mean ``shift`` and standard deviation ``scale`` [E, 1, F]
    of their features, ``constant`` σ [D] of all held-out residuals, and the numbers of the rows that each
    member ``fits`` to [E, R'] and ``judges`` on [E, J]."""

    policy: GaussianPolicy
    held_out: CrossFitted
    shift: Tensor
    scale: Tensor
    constant: Tensor
    fits: Tensor
    judges: Tensor

    @staticmethod
    @torch.no_grad()
    def of(problem: Problem, most: int, recollection: Recollection | None) -> _Rows:
        policy = problem.policy
        assert isinstance(policy, GaussianPolicy)
        moment = held_out_second_moment(policy, problem.held_out).diagonal()
        if recollection is None:
            found = CrossFitted.of(problem, policy, most)
        else:
            share = recollection.share
            new = CrossFitted.of(problem, policy, max(1, round(most * (1.0 - share))))
            past = recollection.rows(policy, new.features.shape[1])
            moment = (1.0 - share) * moment + share * past.squared.mean((0, 1))
            found = new.beside(past)
        constant = moment.sqrt()
        judges, fits = _evenly(found.judges), _evenly(~found.judges)
        shift = found.features.mean(1, keepdim=True)
        scale = found.features.std(1, keepdim=True).clamp(min=1e-3)
        return _Rows(policy, found, shift, scale, constant, fits, judges)

    @contextmanager
    def standardised(self) -> Iterator[None]:
        """Write the scale network in terms of features of mean zero and variance one, in which AdamW
        finds its way, and back in the end. The function stays the same."""
        first = self.policy.scale_network.layers[0]
        assert isinstance(first, EnsembleLinear)
        with torch.no_grad():
            first.bias.add_(self.shift @ first.weight)
            first.weight.mul_(self.scale.mT)
        yield
        with torch.no_grad():
            first.weight.div_(self.scale.mT)
            first.bias.sub_(self.shift @ first.weight)

    def excess(self, index: Tensor | None = None) -> Tensor:
        """What the ``standardised`` scale network says at ``index`` [E, B], or at all rows, [E, B, D]."""
        features = self.held_out.features
        if index is not None:
            features = features[torch.arange(len(index), device=index.device).unsqueeze(1), index]
        found: Tensor = self.policy.scale_network((features - self.shift) / self.scale)
        return found

    def drawn(self, count: int, generator: torch.Generator) -> Tensor:
        """``count`` of each member's fitting rows, with replacement, [E, count]."""
        members, rows = self.fits.shape
        index = torch.randint(rows, (members, count), generator=generator, device=generator.device)
        return self.fits.gather(1, index)

    def loss(self, excess: Tensor, index: Tensor) -> Tensor:
        """What the residuals at ``index`` [E, B] cost if log σ exceeds the constant's by ``excess``
        [E, B, D]: nats per dimension up to a constant, summed over members."""
        log_std = self.policy.bounded_log_std(self.policy.raw_scale.detach() + excess)
        squared = self.held_out.squared.expand(len(index), -1, -1)
        squared = squared[torch.arange(len(index), device=index.device).unsqueeze(1), index]
        nll = 0.5 * squared * torch.exp(-2.0 * log_std) + log_std
        return nll.mean((1, 2)).sum()

    @torch.no_grad()
    def judge(self, factors: Sequence[float]) -> list[float]:
        """What the judging rows cost, shrunk by each of ``factors``."""
        excess, members = self.excess(self.judges), len(self.judges)
        return [self.loss(factor * excess, self.judges).item() / members for factor in factors]

    @torch.no_grad()
    def own_share(self, raw: Tensor) -> Tensor:
        """What of σ² is a member's own and not the members' disagreement, on average, [D]."""
        variance = torch.exp(2.0 * self.policy.bounded_log_std(raw)).mean(0)
        disagreement = self.held_out.mean.var(0, correction=0)
        return (1.0 - (disagreement / variance).mean(0)).clamp(min=_LEAST_OWN)


def _evenly(mask: Tensor) -> Tensor:
    """The row numbers of each member's True in ``mask`` [E, R], as many as the member with the fewest has."""
    fewest = int(mask.sum(1).min())
    return torch.stack([torch.nonzero(row).squeeze(1)[:fewest] for row in mask])
