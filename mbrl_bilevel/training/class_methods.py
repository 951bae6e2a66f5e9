"""The named ways to train a classifier: the values of the slots, side by side.

``bilevel`` and its baselines differ in these lines alone; network, rows and steps are the same, and
each stops by its own loss on held-out rows, or by likelihood where the outer level moves that loss: it
cannot then be compared with itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch

from mbrl_bilevel.base.errors import look_up
from mbrl_bilevel.data.splits import FitData
from mbrl_bilevel.inner.class_losses import Focal, LabelSmoothing
from mbrl_bilevel.inner.losses import NLL, PolicyGradient
from mbrl_bilevel.inner.positive import PositiveFunction
from mbrl_bilevel.inner.regularisers import Entropy
from mbrl_bilevel.inner.rewards import LogTangent, RewardMatrix
from mbrl_bilevel.outer.held_out_class_temperature import ClosedFormBeta, HeldOutClassTemperature
from mbrl_bilevel.outer.implicit import FisherImplicit
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.objectives import OneStepNLL
from mbrl_bilevel.policies.tempered import TemperedPolicy
from mbrl_bilevel.training.method import Method, register

#: How sure of a noiseless row the reward asks a policy to be, until the outer level moves it.
_CONFIDENCE = 0.85

_ADAM = partial(torch.optim.Adam, lr=0.1)
_FISHER = Outer(FisherImplicit(damping=0.1), optimiser=_ADAM, every=25)
#: Another objective than likelihood wants a reward far from the first one: larger steps, and more.
_FAR = Outer(FisherImplicit(damping=1.0), optimiser=partial(torch.optim.Adam, lr=0.3), every=10)


def reward_size(classes: int, confidence: float = _CONFIDENCE) -> float:
    """β at which softmax(β·onehot), the inner optimum of R = βI at λ = 1, gives ``confidence``."""
    return math.log(confidence / (1.0 - confidence) * (classes - 1))


def _classifier(
    inputs: int,
    classes: int,
    /,
    *,
    generator: torch.Generator,
    members: int,
    hidden: Sequence[int],
) -> TemperedPolicy:
    return TemperedPolicy(
        inputs,
        classes,
        generator=generator,
        members=members,
        hidden=hidden,
        reach=reward_size(classes),
    )


def entropy_weight(classes: int, confidence: float = _CONFIDENCE) -> float:
    """λ_H at which the fixed point of LogTangent on noiseless rows gives ``confidence``.

    There 1 = p·(1 + λ_H·(log p + H)) for the true class, and 0 = 1 + λ_H·(log p + H) for the others:
    λ_H = 1/(p·(log p − log p_other)).
    """
    return 1.0 / (confidence * reward_size(classes, confidence))


def _pays_the_unlikely(policy: TemperedPolicy, data: FitData) -> PolicyGradient:
    return PolicyGradient(LogTangent(policy), regulariser=Entropy(entropy_weight(policy.classes)))


def _pays_the_truth(policy: TemperedPolicy, data: FitData) -> PolicyGradient:
    return PolicyGradient(RewardMatrix.identity(policy.classes, reward_size(policy.classes)))


def _temperature_of_x(policy: TemperedPolicy, data: FitData) -> PolicyGradient:
    reward = RewardMatrix.identity(policy.classes, reward_size(policy.classes)).requires_grad_(
        False
    )
    return PolicyGradient(reward, regulariser=Entropy(PositiveFunction(policy.inputs, span=10.0)))


def _paper(policy: TemperedPolicy, data: FitData) -> PolicyGradient:
    """U = I on one-hot classes."""
    return PolicyGradient(RewardMatrix.one_hot(torch.ones(policy.classes)))


_MATRIX = Method(
    make_policy=_classifier,
    make_loss=_pays_the_truth,
    outer=_FISHER,
    other=Method(_classifier, _pays_the_truth, outer=_FAR),
    criterion=OneStepNLL(),
    summary="a constant reward matrix R[ŷ, y], inferred with FisherImplicit",
)

CLASS_METHODS: dict[str, Method] = {
    "bilevel": Method(
        make_policy=_classifier,
        make_loss=_pays_the_unlikely,
        outer=Outer(HeldOutClassTemperature(start=0.8)),
        other=_MATRIX.other,
        summary="policy gradient on a reward that pays more for what was held unlikely, the temperature λ(x) "
        "inferred on the held-out rows of all members; for other objectives than likelihood, a reward matrix",
    ),
    "bilevel-bounded": Method(
        make_policy=_classifier,
        make_loss=_pays_the_truth,
        outer=Outer(HeldOutClassTemperature()),
        other=_MATRIX.other,
        summary="the same with the bounded reward R = βI, right where at most two classes are likely",
    ),
    "bilevel-matrix": _MATRIX,
    "bilevel-lambda": Method(
        make_policy=_classifier,
        make_loss=_temperature_of_x,
        outer=_FISHER,
        other=Method(_classifier, _temperature_of_x, outer=_FAR),
        criterion=OneStepNLL(),
        summary="R = βI and a log-linear temperature λ(x), inferred with FisherImplicit",
    ),
    "nll": Method(_classifier, lambda policy, data: NLL(), summary="cross-entropy"),
    "temperature-scaling": Method(
        make_policy=_classifier,
        make_loss=lambda policy, data: NLL(),
        outer=Outer(HeldOutClassTemperature(start=0.0, bend_ridge=None)),
        summary="cross-entropy, then one temperature from held-out rows (Guo 2017)",
    ),
    "label-smoothing": Method(
        make_policy=_classifier,
        make_loss=lambda policy, data: LabelSmoothing(),
        summary="cross-entropy to labels smoothed by 0.1 (Szegedy 2016)",
    ),
    "smoothing-temperature": Method(
        make_policy=_classifier,
        make_loss=lambda policy, data: LabelSmoothing(),
        outer=Outer(HeldOutClassTemperature(start=0.0, bend_ridge=None)),
        summary="label smoothing, then temperature scaling: the nearest relative of bilevel",
    ),
    "focal": Method(
        make_policy=_classifier,
        make_loss=lambda policy, data: Focal(),
        summary="focal loss, γ = 2 (Lin 2017)",
    ),
    "pg-identity": Method(
        make_policy=_classifier,
        make_loss=_paper,
        summary="policy gradient on the paper's reward with U = I, nothing inferred",
    ),
    "pg-beta": Method(
        make_policy=_classifier,
        make_loss=_paper,
        outer=Outer(ClosedFormBeta()),
        criterion=OneStepNLL(),
        summary="policy gradient with U = β*I, the paper's closed form on held-out residuals",
    ),
}


def get_class_method(name: str) -> Method:
    """The method of that name. Raises InvalidInputError with the nearest name."""
    return look_up(CLASS_METHODS, name, "unknown method")


def register_class_method(name: str, method: Method, *, overwrite: bool = False) -> None:
    """Make ``method`` known under ``name`` wherever methods of classes are named.

    Its ``make_policy`` makes a TemperedPolicy, whose temperature can be moved afterwards. ``overwrite`` and
    the errors are those of ``methods.register_method``.
    """
    register(CLASS_METHODS, name, method, (TemperedPolicy,), overwrite)
