"""The named ways to train a model: the values of the slots, side by side.

``bilevel`` and its baselines differ in these lines alone; network, data and steps are the same. A method of
your own stands beside them once it is registered (``register_method``).
"""

from __future__ import annotations

from functools import partial

from torch.optim import Adam

from mbrl_bilevel.base.errors import InvalidInputError, look_up
from mbrl_bilevel.data.splits import FitData
from mbrl_bilevel.inner.dimension_weights import DimensionWeights
from mbrl_bilevel.inner.estimators import REINFORCE
from mbrl_bilevel.inner.kernel_reward import KernelReward
from mbrl_bilevel.inner.losses import MSE, NLL, BetaNLL, Faithful, KStep, PolicyGradient
from mbrl_bilevel.inner.regularisers import Entropy
from mbrl_bilevel.inner.reward_transforms import Exponential, MinShift, Transform
from mbrl_bilevel.inner.rewards import Mahalanobis
from mbrl_bilevel.inner.shifted_reward import AffineShift, Shifted
from mbrl_bilevel.outer.closed_form import ClosedForm, HeldOutVariance
from mbrl_bilevel.outer.held_out_shift import HeldOutShift
from mbrl_bilevel.outer.held_out_spread import HeldOutSpread, SharedSpread
from mbrl_bilevel.outer.implicit import FisherImplicit
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.linear_solvers import conjugate_gradient
from mbrl_bilevel.outer.look_ahead import LookAhead
from mbrl_bilevel.outer.objectives import (
    KStepMSE,
    OneStepMSE,
    OneStepNLL,
    OpenLoopReturn,
    ProfileNLL,
    Total,
)
from mbrl_bilevel.outer.relevance import Relevance
from mbrl_bilevel.policies.policies import GaussianPolicy, MixturePolicy
from mbrl_bilevel.training.method import MakeLoss, Method, WarmUp, register

#: Enough for a cross term that is itself an average of a few draws.
_ROUGH_SOLVE = partial(conjugate_gradient, tolerance=0.1, max_iterations=20)


def _published(u: float, temperature: float, transform: Transform) -> MakeLoss:
    """The loss of arXiv 2510.07624's own code: a fixed U = u·I, REINFORCE without baseline, 5 draws
    and a transform of the rewards."""
    return lambda policy, data: PolicyGradient(
        Mahalanobis(policy.outputs, "scaled_identity", u).requires_grad_(False),
        REINFORCE(5, (transform,)),
        Entropy(temperature),
    )


def _shifted(policy: GaussianPolicy, data: FitData) -> PolicyGradient:
    """A fixed quadratic reward that asks for y + b(x), b affine."""
    reward = Mahalanobis(policy.outputs).requires_grad_(False)
    return PolicyGradient(Shifted(reward, AffineShift(policy.inputs, policy.outputs)))


def _weighed(policy: GaussianPolicy, data: FitData) -> PolicyGradient:
    """The reward of ``bilevel`` with a weight for each target dimension."""
    return PolicyGradient(SharedSpread(policy, 0.5, DimensionWeights(policy.outputs)))


def _relevant(policy: GaussianPolicy, data: FitData) -> PolicyGradient:
    """The reward of ``bilevel``, which weighs each target as ``data`` say."""
    told = data.relevance
    weights = None if told is None else DimensionWeights.fixed(told)
    return PolicyGradient(SharedSpread(policy, 0.5, weights))


#: By name; those that were registered stand behind ours.
METHODS: dict[str, Method] = {
    "bilevel": Method(
        make_policy=partial(GaussianPolicy, scale="separate"),
        make_loss=lambda policy, data: PolicyGradient(SharedSpread(policy, 0.5)),
        outer=Outer(HeldOutSpread(), every=200, warmup=200, with_stop=True),
        criterion=ProfileNLL(),
        summary="policy gradient on a quadratic reward; its weights u(x) and the temperature λ(x), which "
        "share the spread, inferred on held-out data again and again",
    ),
    "bilevel-constant": Method(
        make_policy=partial(GaussianPolicy, scale="constant"),
        make_loss=lambda policy, data: PolicyGradient(Mahalanobis(policy.outputs, "diagonal")),
        outer=Outer(ClosedForm()),
        criterion=ProfileNLL(),
        summary="the same with constants U and λ, in closed form",
    ),
    "nll": Method(
        make_policy=partial(GaussianPolicy, scale="network"),
        make_loss=lambda policy, data: NLL(),
        criterion=OneStepNLL(),
        summary="maximum likelihood with a variance head, early stopping",
    ),
    "nll-mixture": Method(
        make_policy=partial(MixturePolicy, components=3, scale="network"),
        make_loss=lambda policy, data: NLL(),
        criterion=OneStepNLL(),
        summary="maximum likelihood of a mixture of 3 Gaussians (Bishop 1994), early stopping",
    ),
    "bilevel-mixture": Method(
        make_policy=partial(MixturePolicy, components=3, scale="network"),
        make_loss=lambda policy, data: PolicyGradient(KernelReward(policy.outputs)),
        outer=Outer(
            FisherImplicit(_ROUGH_SOLVE, fisher="sampled", samples=16),
            optimiser=partial(Adam, lr=0.2),
            every=50,
            warmup=100,
        ),
        criterion=OneStepNLL(),
        summary="policy gradient for a mixture of 3 Gaussians on kernels that keep modes apart and shrug "
        "off outliers; their heights, widths and tails inferred on held-out data, after a start by likelihood",
        warm_up=WarmUp(NLL(), 0.25),
    ),
    "mse": Method(
        make_policy=partial(GaussianPolicy, scale="constant"),
        make_loss=lambda policy, data: MSE(),
        outer=Outer(HeldOutVariance()),
        criterion=OneStepMSE(),
        summary="mean squared error, a constant variance fitted on held-out residuals",
    ),
    "mse-network": Method(
        make_policy=partial(GaussianPolicy, scale="separate"),
        make_loss=lambda policy, data: MSE(),
        outer=Outer(HeldOutSpread(refit=0, ensemble=False), with_stop=True),
        criterion=OneStepMSE(),
        summary="mean squared error, a variance network fitted on held-out residuals",
    ),
    "beta-nll": Method(
        make_policy=partial(GaussianPolicy, scale="network"),
        make_loss=lambda policy, data: BetaNLL(0.5),
        criterion=OneStepNLL(),
        summary="likelihood weighed by the variance to the power 0.5 (Seitzer 2022)",
    ),
    "beta-nll-1": Method(
        make_policy=partial(GaussianPolicy, scale="network"),
        make_loss=lambda policy, data: BetaNLL(1.0),
        criterion=OneStepNLL(),
        summary="likelihood weighed by the variance: the mean sees squared error (Seitzer 2022)",
    ),
    "faithful": Method(
        make_policy=partial(GaussianPolicy, scale="detached"),
        make_loss=lambda policy, data: Faithful(),
        criterion=Total((OneStepMSE(), OneStepNLL())),
        summary="squared error for the mean, likelihood for a detached variance head (Stirn 2023)",
    ),
    "k-step": Method(
        make_policy=partial(GaussianPolicy, scale="constant"),
        make_loss=lambda policy, data: KStep(),
        outer=Outer(HeldOutVariance()),
        criterion=KStepMSE(),
        summary="squared error of open-loop rollouts of 5 steps, a constant variance as for mse",
        horizon=5,
    ),
    "bilevel-k-step": Method(
        make_policy=partial(GaussianPolicy, scale="constant"),
        make_loss=_shifted,
        outer=Outer(HeldOutShift(), KStepMSE(), every=100, warmup=200, alongside=HeldOutVariance()),
        criterion=KStepMSE(),
        summary="policy gradient on a one-step reward that asks for y + b(x), b inferred so that "
        "held-out open-loop rollouts of 5 steps are right",
        horizon=5,
    ),
    "bilevel-return": Method(
        make_policy=partial(GaussianPolicy, scale="separate"),
        make_loss=_relevant,
        outer=Outer(HeldOutSpread(), every=200, warmup=200, with_stop=True),
        criterion=ProfileNLL(),
        summary="as bilevel, and the reward weighs little, and the network does not see, whatever cannot matter for "
        "returns, as held-out steps tell",
        relevance=Relevance().weights,
    ),
    "bilevel-look-ahead": Method(
        make_policy=partial(GaussianPolicy, scale="separate"),
        make_loss=_weighed,
        outer=Outer(
            LookAhead(),
            OpenLoopReturn(),
            partial(Adam, lr=0.1),
            every=50,
            warmup=200,
            batch_size=512,
            alongside=HeldOutSpread(),
            alongside_every=4,
            with_stop=True,
            until=0.6,
        ),
        criterion=ProfileNLL(),
        summary="as bilevel, and the reward weighs each target dimension; the weights move along the gradient of "
        "how well held-out returns of 10 steps in open loop are predicted",
        horizon=10,
    ),
    # U = λ D/(2 tr Σ)·I with the marginal Σ of the targets, which are normalised: ½·I at λ = 1.
    "paper": Method(
        make_policy=partial(GaussianPolicy, scale="network"),
        make_loss=_published(0.5, 1.0, MinShift()),
        criterion=OneStepNLL(),
        summary="arXiv 2510.07624 as published: U from the marginal Σ, min-shifted rewards (biased)",
    ),
    "paper-exponential": Method(
        make_policy=partial(GaussianPolicy, scale="network"),
        make_loss=_published(1.0, 0.1, Exponential()),
        criterion=OneStepNLL(),
        summary="the same with U = I and exponential rewards (biased)",
    ),
}

#: Methods that are no more, and what takes their place when a stored agent that names one goes on.
RETIRED = {"bilevel-temperature": "bilevel"}


def get_method(name: str) -> Method:
    """The method of that name. Raises InvalidInputError with the nearest name."""
    return look_up(METHODS, RETIRED.get(name, name), "unknown method")


def register_method(name: str, method: Method, *, overwrite: bool = False) -> None:
    """Make ``method`` known under ``name`` wherever methods are named: settings, scripts, recipes, estimators.

    Its ``make_policy`` makes a GaussianPolicy or a MixturePolicy, which a dynamics model can be stored with.
    ``overwrite`` replaces a method of that name. Raises InvalidInputError for a name that is taken, that of
    an old method or no single word, or a method that is none.
    """
    if name in RETIRED:
        raise InvalidInputError(
            f"{name!r} is the name of an old method in files; choose another name"
        )
    register(METHODS, name, method, (GaussianPolicy, MixturePolicy), overwrite)
