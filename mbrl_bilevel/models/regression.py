"""A generative policy between two normalisers: raw x in, a distribution over raw y out.

What a dynamics model is underneath, and all that a table needs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import BilevelError, InvalidInputError
from mbrl_bilevel.base.records import FitResult, Outcome, Step
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.data.splits import BoolArray, Chain, FitData, Folds, IntArray, cross_fit
from mbrl_bilevel.models.prepared import Prepared, fit_each
from mbrl_bilevel.policies.distributions import DiagonalGaussian
from mbrl_bilevel.policies.fast_inference import FrozenPolicy
from mbrl_bilevel.policies.mixture import GaussianMixture
from mbrl_bilevel.policies.networks import EnsembleMLP
from mbrl_bilevel.policies.own_policy import FrozenOwnPolicy, require_policy
from mbrl_bilevel.policies.policies import GaussianPolicy, MixturePolicy, with_members
from mbrl_bilevel.policies.precision import Precision
from mbrl_bilevel.policies.scales import ScaledPolicy
from mbrl_bilevel.training.fit import Log
from mbrl_bilevel.training.method import MakePolicy, Method
from mbrl_bilevel.training.settings import Schedule, WarmStart
from mbrl_bilevel.training.warm_start import lasting_units, warm_start


@dataclass(frozen=True)
class Regression:
    """An ensemble p(y|x). A target dimension that was constant in training is not predicted. The ``policy`` may
    be one of your own (``own_policy.OwnPolicy``)."""

    policy: GaussianPolicy | MixturePolicy
    inputs: Normaliser
    targets: Normaliser

    @property
    def members(self) -> int:
        """E."""
        return self.policy.members

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return self.inputs.shift.device

    @cached_property
    def active(self) -> Tensor:
        """[D] bool: the target dimensions that the policy predicts."""
        return ~self.targets.constant

    @cached_property
    def seen(self) -> Tensor:
        """[X] bool: the inputs that the policy reads. Those that it was kept from (``relevance.unseen``) have
        weights of zero, as those may that never varied."""
        network = getattr(self.policy, "network", None)
        if not isinstance(network, EnsembleMLP):
            return torch.ones_like(self.inputs.constant)
        first, _ = network.pairs[0]
        read = (first.detach() != 0.0).any(2).any(0)
        return (
            read | ~read.any()
        )  # one that reads nothing was not kept from anything: it is constant

    @cached_property
    def active_units(self) -> tuple[Tensor, Tensor, Tensor]:
        """Scale, shift and place of the active targets, each [D_active].

        Looked up once, not at every imagined step; usable by autograd wherever that was.
        """
        with torch.inference_mode(False):
            place = self.active.nonzero().squeeze(1)
            return self.targets.scale[..., place], self.targets.shift[..., place], place

    def rows(
        self, x: Tensor, y: Tensor, groups: IntArray | None, random: np.random.Generator
    ) -> FitData:
        """Raw x [N, X] and y [N, D] to learn from, in this model's units. Rows of one of the ``groups``
        [N] are never parted; None takes each by itself. Raises as ``cross_fit``."""
        groups = np.arange(len(x)) if groups is None else groups
        return self.fit_data(x, y, cross_fit(groups, self.members, random))

    def fit_data(self, x: Tensor, y: Tensor, folds: Folds) -> FitData:
        """The same, seen by whom ``folds`` say."""
        dtype = self._dtype
        targets = self.targets.normalise(y)[:, self.active]
        return FitData(self.inputs.normalise(x).to(dtype), targets.to(dtype), folds)

    def dist(self, x: Tensor) -> DiagonalGaussian | GaussianMixture:
        """Each member's distribution of the active targets in raw units at x [B, X], or [E, B, X] where each
        has rows of its own: [E, B, D_active]."""
        scale, shift, _ = self.active_units
        return self.normalised_dist(x).affine(scale, shift)

    def normalised_dist(self, x: Tensor) -> DiagonalGaussian | GaussianMixture:
        """The same in units of the training targets' standard deviations, around their mean."""
        x = self.inputs.normalise(x).to(self._dtype)
        return self._policy_dist(x if x.ndim > 2 else x.expand(self.members, -1, -1))

    def with_constants(self, active: Tensor, constant: float | None = None) -> Tensor:
        """Values of the active targets [..., D_active] among all of them, [..., D]; the others are as they
        always were in training, or ``constant``."""
        place = self.active_units[-1]
        width = len(self.targets.constant)
        if len(place) == width:
            return active
        shape = (*active.shape[:-1], width)
        if constant is None:
            full = self.targets.shift.expand(shape)
        else:
            full = active.new_full(shape, constant)
        return full.index_copy(-1, place, active)

    def only(self, members: Sequence[int]) -> Regression:
        """Of these ``members`` alone, in this order."""
        return Regression(with_members(self.policy, members), self.inputs, self.targets)

    def to(self, device: torch.device | str) -> Regression:
        """The same on ``device``, with parameters of its own; itself where it is there already."""
        if self.device == torch.empty(0, device=device).device:
            return self
        policy = copy.deepcopy(self.policy).to(device)
        return Regression(policy, self.inputs.to(device), self.targets.to(device))

    def frozen(self, precision: Precision = "float32") -> FrozenRegression:
        """The same as it is now, without gradients and much faster (``FrozenPolicy``); its x may have
        dimensions between members and rows, [E, …, B, X]."""
        kind: Any = FrozenPolicy if isinstance(self.policy, ScaledPolicy) else FrozenOwnPolicy
        fast = kind(self.policy, precision)
        return FrozenRegression(fast.policy, self.inputs, self.targets, fast)

    @property
    def _dtype(self) -> torch.dtype:
        return next(self.policy.parameters()).dtype

    def _policy_dist(self, x: Tensor) -> DiagonalGaussian | GaussianMixture:
        return self.policy.dist(x)


@dataclass(frozen=True)
class FrozenRegression(Regression):
    """A Regression as it was, whose policy answers by ``fast``."""

    fast: FrozenPolicy
    _parts: dict[tuple[int, ...], Regression] = field(
        default_factory=dict, repr=False, compare=False
    )

    def only(self, members: Sequence[int]) -> Regression:
        """Of these ``members`` alone, in this order, frozen as this is; made once."""
        key = tuple(members)
        if key not in self._parts:
            self._parts[key] = super().only(members).frozen(self.fast.precision)
        return self._parts[key]

    def frozen(self, precision: Precision = "float32") -> FrozenRegression:
        """Itself, unless another ``precision`` is wanted."""
        return self if precision == self.fast.precision else super().frozen(precision)

    def _policy_dist(self, x: Tensor) -> DiagonalGaussian | GaussianMixture:
        return self.fast.dist(x)


def fit_regression(
    x: Tensor,
    y: Tensor,
    groups: IntArray,
    method: Method,
    *,
    generator: torch.Generator,
    members: int = 5,
    hidden: Sequence[int] = (200, 200),
    schedule: Schedule | None = None,
    progress: bool = False,
    log: Log | None = None,
    successor: IntArray | None = None,
    state: int = 0,
    outer_only: BoolArray | None = None,
    weight: Tensor | None = None,
    direct: bool = False,
    folds: Folds | None = None,
    policy: MakePolicy | None = None,
    start: Regression | None = None,
    how: WarmStart | None = None,
    outcome: Outcome | None = None,
    units: Regression | None = None,
    joined: Callable[[FitData], FitData] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Regression, FitResult]:
    """Fit x [N, X] to y [N, D], both raw; rows of one of the ``groups`` [N] are never parted.

    ``method``: how it is trained. ``generator`` makes all draws. ``members``: networks of the ensemble;
    ``hidden``: units of their hidden layers; ``schedule``: gradient steps, learning rate and the like (None:
    ``Schedule()``). ``progress`` shows a bar on stderr; ``log(name, value, step)`` hears the training curves.

    Rows that are independent are each a group of their own: ``numpy.arange(N)``. A method without an
    outer level gets the outer sample for training. Methods that look ahead, or ask for what steps pay, need each row's
    ``successor`` [N] (``splits.successors``), and the first ``state`` columns of y to be the changes of
    those of x, or what they are next where ``direct``; those that look at rewards need ``outcome``, what a raw
    x and y lead to. ``outer_only`` as for ``cross_fit``, ``weight`` [N] as for ``FitData``; ``folds`` take the place
    of those that are made of the groups, and ``policy`` that of the method's ``make_policy``: one of your own, say
    (``own_policy.OwnPolicy``).

    The parameters go on from ``start``, a fit by this method, as ``how`` says, where its targets are of use
    (``warm_start.lasting_units``), else from scratch; give ``folds`` whose held-out rows it has not seen
    (``GrowingFolds``). The normalisers are those of ``units``, where given; what ``joined`` makes of the rows is what
    is learned, with those of earlier tasks say. The fit is made on ``device``, where the model then is; what comes before
    it, splits and initial weights, is the same wherever. Raises InvalidInputError if there is too little data, no target varies in it, a method
    that asks for steps gets no successors, or a start is of another form.
    """
    prepared = prepare_regression(
        x,
        y,
        groups,
        method,
        generator=generator,
        members=members,
        hidden=hidden,
        schedule=schedule,
        successor=successor,
        state=state,
        outer_only=outer_only,
        weight=weight,
        direct=direct,
        folds=folds,
        policy=policy,
        start=start,
        how=how,
        outcome=outcome,
        units=units,
        joined=joined,
        device=device,
    )
    return prepared.fit(method, progress, log)


def fit_regression_side_by_side(
    data: Sequence[tuple[Tensor, Tensor]],
    method: Method,
    *,
    generators: Sequence[torch.Generator],
    members: int = 5,
    hidden: Sequence[int] = (200, 200),
    schedule: Schedule | None = None,
    progress: bool = False,
    device: torch.device | str = "cpu",
) -> list[tuple[Regression, FitResult] | BilevelError]:
    """Repeats of ``fit_regression`` as one larger ensemble, each of its own x [N, X] and y [N, D], whose rows are
    independent, and its own generator; all other arguments as there. Each ends as it does alone, to the rounding of
    the batched products.

    What became of each: its model and result, or the error that it failed by. Raises InvalidInputError where the
    data are of different widths.
    """
    prepare = [
        partial(
            prepare_regression,
            x,
            y,
            np.arange(len(x)),
            method,
            generator=generator,
            members=members,
            hidden=hidden,
            schedule=schedule,
            device=device,
        )
        for (x, y), generator in zip(data, generators, strict=True)
    ]
    return fit_each(method, prepare, progress)


def prepare_regression(
    x: Tensor,
    y: Tensor,
    groups: IntArray,
    method: Method,
    *,
    generator: torch.Generator,
    members: int = 5,
    hidden: Sequence[int] = (200, 200),
    schedule: Schedule | None = None,
    successor: IntArray | None = None,
    state: int = 0,
    outer_only: BoolArray | None = None,
    weight: Tensor | None = None,
    direct: bool = False,
    folds: Folds | None = None,
    policy: MakePolicy | None = None,
    start: Regression | None = None,
    how: WarmStart | None = None,
    outcome: Outcome | None = None,
    ended: Tensor | None = None,
    units: Regression | None = None,
    joined: Callable[[FitData], FitData] | None = None,
    device: torch.device | str = "cpu",
) -> Prepared[Regression]:
    """All of ``fit_regression`` but its gradient steps; arguments and errors as there, and ``ended`` [N] as of ``Chain``."""
    x, y = x.to(device), y.to(device)
    start, units = (None if other is None else other.to(device) for other in (start, units))
    for other in (start, units):
        if other is not None:
            _require_widths(other, x, y)
    if units is None:
        inputs, targets = Normaliser.fit(x), Normaliser.fit(y)
    else:
        inputs, targets = units.inputs, units.targets
    lasting = None if start is None else lasting_units(start.targets, targets)
    targets = lasting or targets
    active = ~targets.constant
    if not bool(active.any()):
        raise InvalidInputError("no target ever changes in the data: there is nothing to learn")
    chain = None
    if method.horizon > 1 or method.relevance is not None:
        if successor is None:
            raise InvalidInputError(
                "this method asks what steps lead to, and rows of a table lead nowhere: choose one that does not, such "
                "as bilevel"
            )
        moves = _chain(inputs, targets, successor, state, method.horizon, direct)
        if outcome is not None:
            chain = replace(moves, outcome=_raw(inputs, targets, outcome), ended=ended)
        else:
            chain = moves
    splits = np.random.default_rng(draw_seed(generator))
    if folds is None:
        folds = cross_fit(groups, members, splits, outer_only)
    # Rounded to what networks work in only here, where numbers are of the size of their spread.
    dtype = torch.get_default_dtype()
    data = FitData(
        inputs.normalise(x).to(dtype),
        targets.normalise(y)[:, active].to(dtype),
        folds,
        chain,
        None if weight is None else weight.to(device),
    )
    if joined is not None:
        data = joined(data)
    made = (policy or method.make_policy)(
        data.x.shape[1], data.y.shape[1], generator=generator, members=members, hidden=hidden
    )
    if not isinstance(made, GaussianPolicy | MixturePolicy):
        require_policy(made, data.x.shape[1], data.y.shape[1])
        if start is not None:
            raise InvalidInputError(
                "start: a fit goes on from an earlier one with a GaussianPolicy or a MixturePolicy only; got a "
                f"{type(made).__name__}: leave it out"
            )
    made.to(device)
    if start is not None and lasting is not None:
        how = how or WarmStart()
        pairs = ((start.inputs, inputs), (start.targets, targets))
        warm_start(made, start.policy, *pairs, how)
        schedule = schedule or Schedule()
        schedule = replace(schedule, steps=max(1, round(how.part * schedule.steps)))

    def finish(result: FitResult) -> tuple[Regression, FitResult]:
        return Regression(made, inputs, targets), _of_all_targets(result, active)

    return Prepared(made, data, schedule, _draws_on(generator, x.device), finish)


def _draws_on(generator: torch.Generator, device: torch.device) -> torch.Generator:
    """The generator itself on its own device, elsewhere one that it seeds: what it draws is not to be copied there."""
    if generator.device.type == device.type:
        return generator
    return torch.Generator(device).manual_seed(draw_seed(generator))


def _of_all_targets(result: FitResult, active: Tensor) -> FitResult:
    """The weights in the outer level's report under the numbers of their columns, of which not all are
    ``active``."""
    place = active.nonzero().squeeze(1).tolist()

    def named(name: str) -> str:
        before, weight, number = name.partition("weight/")
        return f"{before}{weight}{place[int(number)]}" if weight else name

    return replace(
        result,
        outer={named(name): value for name, value in result.outer.items()},
        history={named(name): points for name, points in result.history.items()},
    )


def _require_widths(start: Regression, x: Tensor, y: Tensor) -> None:
    found = (len(start.inputs.shift), len(start.targets.shift))
    if found != (x.shape[1], y.shape[1]):
        raise InvalidInputError(
            f"start: it has {found[0]} inputs and {found[1]} targets, the data {x.shape[1]} and {y.shape[1]}"
        )


def _chain(
    inputs: Normaliser,
    targets: Normaliser,
    successor: IntArray,
    state: int,
    horizon: int,
    direct: bool,
) -> Chain:
    """How a normalised target moves the normalised state: by σ_y/σ_x of each dimension. A direct one is
    that state, in other units."""
    gain = torch.diag(targets.scale[:state] / inputs.scale[:state])
    rewards = gain.new_zeros(len(targets.scale) - state, state)
    gain = torch.cat([gain, rewards])[~targets.constant]
    drift = targets.shift[:state] / inputs.scale[:state]
    if direct:
        drift = drift - inputs.shift[:state] / inputs.scale[:state]
    dtype = torch.get_default_dtype()
    return Chain(
        torch.from_numpy(successor).to(gain.device),
        gain.to(dtype),
        drift.to(dtype),
        horizon,
        direct,
    )


def _raw(inputs: Normaliser, targets: Normaliser, outcome: Outcome) -> Outcome:
    """``outcome`` of normalised inputs, and of those targets that vary."""
    active = ~targets.constant

    def found(x: Tensor, y: Tensor) -> Step:
        values = targets.shift.to(y).expand(*y.shape[:-1], -1).clone()
        values[..., active] = y * targets.scale[active].to(y) + targets.shift[active].to(y)
        return outcome(inputs.denormalise(x), values)

    return found


def draw_seed(generator: torch.Generator) -> int:
    """A seed for NumPy, drawn from PyTorch's generator."""
    return int(torch.randint(2**62, (), generator=generator).item())
