"""The named ways to train a classifier: the values of the slots, side by side.

``bilevel`` and its baselines differ in these lines alone; network, rows and steps are the same, and
each stops by its own loss on held-out rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from mbrl_bilevel.base.errors import InvalidInputError, look_up
from mbrl_bilevel.base.records import FitResult
from mbrl_bilevel.data.rows import FitData
from mbrl_bilevel.inner.class_losses import Focal, LabelSmoothing
from mbrl_bilevel.inner.losses import NLL, Loss, PolicyGradient
from mbrl_bilevel.inner.positive import PositiveFunction
from mbrl_bilevel.inner.regularisers import Entropy
from mbrl_bilevel.inner.rewards import RewardMatrix
from mbrl_bilevel.outer.class_objectives import OwnLoss
from mbrl_bilevel.outer.held_out_class_temperature import ClosedFormBeta, HeldOutClassTemperature
from mbrl_bilevel.outer.implicit import FisherImplicit
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.objectives import Objective, OneStepNLL
from mbrl_bilevel.policies.tempered import TemperedPolicy
from mbrl_bilevel.training.fit import Log, Schedule, fit

#: How sure of a noiseless row the reward asks a policy to be, until the outer level moves it.
_CONFIDENCE = 0.85

_ADAM = partial(torch.optim.Adam, lr=0.1)
_FISHER = Outer(FisherImplicit(damping=0.1), optimiser=_ADAM, every=25)
#: Another objective than likelihood wants a reward far from the first one: larger steps, and more.
_FAR = Outer(FisherImplicit(damping=1.0), optimiser=partial(torch.optim.Adam, lr=0.3), every=10)


def reward_size(classes: int, confidence: float = _CONFIDENCE) -> float:
    """β at which softmax(β·onehot), the inner optimum of R = βI at λ = 1, gives ``confidence``."""
    return math.log(confidence / (1.0 - confidence) * (classes - 1))


@dataclass(frozen=True)
class ClassMethod:
    """One row of the comparison. ``loss(C, X)`` builds the loss for C classes and X features afresh.

    ``outer`` is for the likelihood, ``outer_other`` for other objectives (None: this method has no
    way to want anything else). Where φ moves during training the ``moving`` loss cannot be compared
    with itself: early stopping then watches the objective. ``wrap`` is put around the loss.
    """

    loss: Callable[[int, int], Loss]
    summary: str
    outer: Outer | None = None
    outer_other: Outer | None = None
    moving: bool = False
    wrap: Callable[[Loss], Loss] | None = None

    def around(self, wrap: Callable[[Loss], Loss]) -> ClassMethod:
        """The same with ``wrap`` put around the loss: a penalty, say."""
        return replace(self, wrap=wrap)

    def policy(
        self,
        inputs: int,
        outputs: int,
        *,
        generator: torch.Generator,
        members: int,
        hidden: Sequence[int],
    ) -> TemperedPolicy:
        """The policy to fit, over ``outputs`` classes."""
        return TemperedPolicy(
            inputs,
            outputs,
            generator=generator,
            members=members,
            hidden=hidden,
            reach=reward_size(outputs),
        )

    def fit(
        self,
        policy: TemperedPolicy,
        data: FitData,
        *,
        generator: torch.Generator,
        loss: Loss | None = None,
        objective: Objective | None = None,
        schedule: Schedule | None = None,
        progress: bool = False,
        log: Log | None = None,
    ) -> FitResult:
        """Fit ``policy`` in place, by this method's loss built afresh or by that ``loss`` itself, which
        then holds the φ that was inferred.

        A method without an outer level gets the outer rows for training. A temperature that was set
        before is for answers, not for training, which begins at λ again. Raises InvalidInputError
        for an ``objective`` other than likelihood that this method cannot want, and as
        ``mbrl_bilevel.training.fit.fit`` does.
        """
        outer, moving = self.outer, self.moving
        if objective is not None and not isinstance(objective, OneStepNLL):
            if self.outer_other is None:
                able = ", ".join(n for n, m in CLASS_METHODS.items() if m.outer_other is not None)
                raise InvalidInputError(
                    "objective: this method infers no reward, so it can want nothing but likelihood; "
                    f"use one of {able}"
                )
            outer, moving = replace(self.outer_other, objective=objective), True
        loss = loss or self.loss(policy.classes, policy.inputs)
        if self.wrap is not None:
            loss = self.wrap(loss)
        if outer is None:
            data = replace(data, folds=data.folds.without_outer())
        policy.temper.data.zero_()
        return fit(
            policy,
            loss,
            data,
            generator=generator,
            outer=outer,
            criterion=(objective or OneStepNLL()) if moving else OwnLoss(loss),
            schedule=schedule,
            progress=progress,
            log=log,
        )


def _pays_the_truth(classes: int, inputs: int) -> PolicyGradient:
    return PolicyGradient(RewardMatrix.identity(classes, reward_size(classes)))


def _temperature_of_x(classes: int, inputs: int) -> PolicyGradient:
    reward = RewardMatrix.identity(classes, reward_size(classes)).requires_grad_(False)
    return PolicyGradient(reward, regulariser=Entropy(PositiveFunction(inputs, span=10.0)))


def _paper(classes: int, inputs: int) -> PolicyGradient:
    """U = I on one-hot classes."""
    return PolicyGradient(RewardMatrix.one_hot(torch.ones(classes)))


CLASS_METHODS: dict[str, ClassMethod] = {
    "bilevel": ClassMethod(
        loss=_pays_the_truth,
        outer=Outer(HeldOutClassTemperature()),
        outer_other=_FAR,
        summary="policy gradient on a bounded reward, the temperature λ(x) inferred on the held-out "
        "rows of all members; for other objectives than likelihood, the reward matrix instead",
    ),
    "bilevel-matrix": ClassMethod(
        loss=_pays_the_truth,
        outer=_FISHER,
        outer_other=_FAR,
        moving=True,
        summary="a constant reward matrix R[ŷ, y], inferred with FisherImplicit",
    ),
    "bilevel-lambda": ClassMethod(
        loss=_temperature_of_x,
        outer=_FISHER,
        outer_other=_FAR,
        moving=True,
        summary="R = βI and a log-linear temperature λ(x), inferred with FisherImplicit",
    ),
    "nll": ClassMethod(loss=lambda classes, inputs: NLL(), summary="cross-entropy"),
    "temperature-scaling": ClassMethod(
        loss=lambda classes, inputs: NLL(),
        outer=Outer(HeldOutClassTemperature(start=0.0, bend_ridge=None)),
        summary="cross-entropy, then one temperature from held-out rows (Guo 2017)",
    ),
    "label-smoothing": ClassMethod(
        loss=lambda classes, inputs: LabelSmoothing(),
        summary="cross-entropy to labels smoothed by 0.1 (Szegedy 2016)",
    ),
    "smoothing-temperature": ClassMethod(
        loss=lambda classes, inputs: LabelSmoothing(),
        outer=Outer(HeldOutClassTemperature(start=0.0, bend_ridge=None)),
        summary="label smoothing, then temperature scaling: the nearest relative of bilevel",
    ),
    "focal": ClassMethod(
        loss=lambda classes, inputs: Focal(), summary="focal loss, γ = 2 (Lin 2017)"
    ),
    "pg-identity": ClassMethod(
        loss=_paper, summary="policy gradient on the paper's reward with U = I, nothing inferred"
    ),
    "pg-beta": ClassMethod(
        loss=_paper,
        outer=Outer(ClosedFormBeta()),
        moving=True,
        summary="policy gradient with U = β*I, the paper's closed form on held-out residuals",
    ),
}


def get_class_method(name: str) -> ClassMethod:
    """The method of that name. Raises InvalidInputError with the nearest name."""
    return look_up(CLASS_METHODS, name, "unknown method")
