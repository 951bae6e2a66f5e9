"""The named ways to train a model: the values of the slots, side by side.

``bilevel`` and its baselines differ in these lines alone; network, data and steps are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.optim import Adam

from mbrl_bilevel.base.errors import InvalidInputError, look_up
from mbrl_bilevel.base.records import FitResult
from mbrl_bilevel.data.rows import FitData
from mbrl_bilevel.inner.estimators import REINFORCE
from mbrl_bilevel.inner.kernel_reward import KernelReward
from mbrl_bilevel.inner.losses import MSE, NLL, BetaNLL, Faithful, KStep, Loss, PolicyGradient
from mbrl_bilevel.inner.regularisers import Entropy
from mbrl_bilevel.inner.reward_transforms import Exponential, MinShift, Transform
from mbrl_bilevel.inner.rewards import Mahalanobis
from mbrl_bilevel.inner.shifted_reward import AffineShift, Shifted
from mbrl_bilevel.outer.closed_form import ClosedForm, HeldOutVariance
from mbrl_bilevel.outer.held_out_shift import HeldOutShift
from mbrl_bilevel.outer.held_out_spread import HeldOutSpread, SharedSpread
from mbrl_bilevel.outer.held_out_temperature import HeldOutTemperature
from mbrl_bilevel.outer.implicit import FisherImplicit
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.linear_solvers import conjugate_gradient
from mbrl_bilevel.outer.objectives import (
    KStepMSE,
    Objective,
    OneStepMSE,
    OneStepNLL,
    ProfileNLL,
    Total,
)
from mbrl_bilevel.policies.policies import GaussianPolicy, MixturePolicy
from mbrl_bilevel.policies.scales import Scale
from mbrl_bilevel.training.fit import Log, Schedule, fit


@dataclass(frozen=True)
class Method:
    """One row of the comparison. ``loss(D)`` builds the loss for D target dimensions afresh.

    Losses and objectives that look ahead get segments of ``horizon`` rows. Where ``shifted``, the
    reward asks for y + b_φ(x), b affine (``Shifted``). The policy is a mixture of
    ``components`` Gaussians where there are several. With a ``share`` the reward is the policy's
    ``SharedSpread``. An outer level that sets nothing but σ ``lends_stop``: it sees the rows of early
    stopping as well. The first ``by_likelihood`` part of the steps is by likelihood: a start for a reward with
    more than one optimum.
    """

    scale: Scale
    loss: Callable[[int], Loss]
    outer: Outer | None
    criterion: Objective
    summary: str
    share: float | None = None
    lends_stop: bool = False
    horizon: int = 1
    shifted: bool = False
    components: int = 1
    by_likelihood: float = 0.0
    wrap: Callable[[Loss], Loss] | None = None

    def __post_init__(self) -> None:
        if not 0.0 <= self.by_likelihood < 1.0:
            raise InvalidInputError(
                f"by_likelihood must be a part below 1 of the steps; got {self.by_likelihood}"
            )

    def around(self, wrap: Callable[[Loss], Loss]) -> Method:
        """The same with ``wrap`` put around the loss, once that is built: a penalty, say."""
        return replace(self, wrap=wrap)

    def policy(
        self,
        inputs: int,
        outputs: int,
        *,
        generator: torch.Generator,
        members: int,
        hidden: Sequence[int],
    ) -> GaussianPolicy | MixturePolicy:
        """The policy to fit: a Gaussian, or a mixture of ``components`` of them."""
        size = (inputs, outputs)
        if self.components == 1:
            return GaussianPolicy(
                *size, generator=generator, members=members, hidden=hidden, scale=self.scale
            )
        return MixturePolicy(
            *size,
            generator=generator,
            components=self.components,
            members=members,
            hidden=hidden,
            scale=self.scale,
        )

    def fit(
        self,
        policy: GaussianPolicy | MixturePolicy,
        data: FitData,
        *,
        generator: torch.Generator,
        schedule: Schedule | None = None,
        progress: bool = False,
        log: Log | None = None,
    ) -> FitResult:
        """Fit ``policy`` in place. Raises as ``mbrl_bilevel.training.fit.fit`` does."""
        loss = self.loss(data.y.shape[-1])
        if self.shifted:
            assert isinstance(loss, PolicyGradient)
            loss.reward = Shifted(loss.reward, AffineShift(data.x.shape[-1], data.y.shape[-1]))
        if self.share is not None:
            assert isinstance(loss, PolicyGradient)
            assert isinstance(policy, GaussianPolicy)
            loss.reward = SharedSpread(policy, self.share)
        if self.wrap is not None:
            loss = self.wrap(loss)
        if self.lends_stop:
            data = replace(data, folds=data.folds.with_stop_as_outer())
        schedule = schedule or Schedule()
        first = round(self.by_likelihood * schedule.steps)
        if first:
            start = replace(schedule, steps=first)
            fit(policy, NLL(), data, generator=generator, schedule=start, progress=progress)
            schedule = replace(schedule, steps=schedule.steps - first)
        return fit(
            policy,
            loss,
            data,
            generator=generator,
            outer=self.outer,
            criterion=self.criterion,
            schedule=schedule,
            progress=progress,
            log=log,
        )


#: Enough for a cross term that is itself an average of a few draws.
_ROUGH_SOLVE = partial(conjugate_gradient, tolerance=0.1, max_iterations=20)


def _published(u: float, temperature: float, transform: Transform) -> Callable[[int], Loss]:
    """The loss of arXiv 2510.07624's own code: a fixed U = u·I, REINFORCE without baseline, 5 draws
    and a transform of the rewards."""
    return lambda dim: PolicyGradient(
        Mahalanobis(dim, "scaled_identity", u).requires_grad_(False),
        REINFORCE(5, (transform,)),
        Entropy(temperature),
    )


METHODS: dict[str, Method] = {
    "bilevel": Method(
        scale="separate",
        loss=lambda dim: PolicyGradient(Mahalanobis(dim)),
        outer=Outer(HeldOutSpread(), every=200, warmup=200),
        criterion=ProfileNLL(),
        summary="policy gradient on a quadratic reward; its weights u(x) and the temperature λ(x), which "
        "share the spread, inferred on held-out data again and again",
        share=0.5,
        lends_stop=True,
    ),
    "bilevel-temperature": Method(
        scale="tempered",
        loss=lambda dim: PolicyGradient(Mahalanobis(dim, "diagonal")),
        outer=Outer(HeldOutTemperature()),
        criterion=ProfileNLL(),
        summary="the same with a constant U: the temperature λ(x) has all of the spread",
    ),
    "bilevel-constant": Method(
        scale="constant",
        loss=lambda dim: PolicyGradient(Mahalanobis(dim, "diagonal")),
        outer=Outer(ClosedForm()),
        criterion=ProfileNLL(),
        summary="the same with constants U and λ, in closed form",
    ),
    "nll": Method(
        scale="network",
        loss=lambda dim: NLL(),
        outer=None,
        criterion=OneStepNLL(),
        summary="maximum likelihood with a variance head, early stopping",
    ),
    "nll-mixture": Method(
        scale="network",
        loss=lambda dim: NLL(),
        outer=None,
        criterion=OneStepNLL(),
        summary="maximum likelihood of a mixture of 3 Gaussians (Bishop 1994), early stopping",
        components=3,
    ),
    "bilevel-mixture": Method(
        scale="network",
        loss=lambda dim: PolicyGradient(KernelReward(dim)),
        outer=Outer(
            FisherImplicit(_ROUGH_SOLVE, fisher="sampled", samples=16),
            optimiser=partial(Adam, lr=0.2),
            every=50,
            warmup=100,
        ),
        criterion=OneStepNLL(),
        summary="policy gradient for a mixture of 3 Gaussians on kernels that keep modes apart and shrug "
        "off outliers; their heights, widths and tails inferred on held-out data, after a start by likelihood",
        components=3,
        by_likelihood=0.25,
    ),
    "mse": Method(
        scale="constant",
        loss=lambda dim: MSE(),
        outer=Outer(HeldOutVariance()),
        criterion=OneStepMSE(),
        summary="mean squared error, a constant variance fitted on held-out residuals",
    ),
    "mse-network": Method(
        scale="separate",
        loss=lambda dim: MSE(),
        outer=Outer(HeldOutSpread(refit=0, ensemble=False)),
        criterion=OneStepMSE(),
        lends_stop=True,
        summary="mean squared error, a variance network fitted on held-out residuals",
    ),
    "beta-nll": Method(
        scale="network",
        loss=lambda dim: BetaNLL(0.5),
        outer=None,
        criterion=OneStepNLL(),
        summary="likelihood weighed by the variance to the power 0.5 (Seitzer 2022)",
    ),
    "beta-nll-1": Method(
        scale="network",
        loss=lambda dim: BetaNLL(1.0),
        outer=None,
        criterion=OneStepNLL(),
        summary="likelihood weighed by the variance: the mean sees squared error (Seitzer 2022)",
    ),
    "faithful": Method(
        scale="detached",
        loss=lambda dim: Faithful(),
        outer=None,
        criterion=Total((OneStepMSE(), OneStepNLL())),
        summary="squared error for the mean, likelihood for a detached variance head (Stirn 2023)",
    ),
    "k-step": Method(
        scale="constant",
        loss=lambda dim: KStep(),
        outer=Outer(HeldOutVariance()),
        criterion=KStepMSE(),
        summary="squared error of open-loop rollouts of 5 steps, a constant variance as for mse",
        horizon=5,
    ),
    "bilevel-k-step": Method(
        scale="constant",
        loss=lambda dim: PolicyGradient(Mahalanobis(dim).requires_grad_(False)),
        outer=Outer(HeldOutShift(), KStepMSE(), every=100, warmup=200, alongside=HeldOutVariance()),
        criterion=KStepMSE(),
        summary="policy gradient on a one-step reward that asks for y + b(x), b inferred so that "
        "held-out open-loop rollouts of 5 steps are right",
        horizon=5,
        shifted=True,
    ),
    # U = λ D/(2 tr Σ)·I with the marginal Σ of the targets, which are normalised: ½·I at λ = 1.
    "paper": Method(
        scale="network",
        loss=_published(0.5, 1.0, MinShift()),
        outer=None,
        criterion=OneStepNLL(),
        summary="arXiv 2510.07624 as published: U from the marginal Σ, min-shifted rewards (biased)",
    ),
    "paper-exponential": Method(
        scale="network",
        loss=_published(1.0, 0.1, Exponential()),
        outer=None,
        criterion=OneStepNLL(),
        summary="the same with U = I and exponential rewards (biased)",
    ),
}


def get_method(name: str) -> Method:
    """The method of that name. Raises InvalidInputError with the nearest name."""
    return look_up(METHODS, name, "unknown method")
