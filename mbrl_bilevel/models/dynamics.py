"""The dynamics model: a regression of (Δobservation, reward), or of the next observation and reward, on
(observation, action), and what is known of a task beside it.

``step`` is what planners and imagined rollouts call; ``fit_dynamics`` makes one from experience.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor

from mbrl_bilevel.base.checks import require_entries, require_rows, require_rules, tried
from mbrl_bilevel.base.errors import BilevelError, InvalidInputError
from mbrl_bilevel.base.records import (
    FitResult,
    FloatArray,
    Rule,
    Step,
    Transitions,
)
from mbrl_bilevel.base.rounding import ULPS
from mbrl_bilevel.data.growing_folds import GrowingFolds
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.data.splits import (
    NO_GROUP,
    BoolArray,
    FitData,
    IntArray,
    group_by_episode,
    groups_needed,
    regression_rows,
    successors,
)
from mbrl_bilevel.models.learned_ending import (
    LearnedTermination,
    Termination,
    fit_termination,
)
from mbrl_bilevel.models.prepared import Prepared, fit_each
from mbrl_bilevel.models.regression import Regression, prepare_regression
from mbrl_bilevel.policies.distributions import DiagonalGaussian
from mbrl_bilevel.policies.mixture import GaussianMixture
from mbrl_bilevel.policies.policies import (
    GaussianPolicy,
    MixturePolicy,
)
from mbrl_bilevel.policies.precision import Precision
from mbrl_bilevel.training.fit import Log
from mbrl_bilevel.training.method import MakePolicy, Method
from mbrl_bilevel.training.settings import Schedule, WarmStart


@dataclass(frozen=True)
class Prediction:
    """What the ensemble says of its targets, (Δobs, reward) say, at B inputs, in raw units, each [B, D].

    ``std`` is of the mixture of members, ``disagreement`` the members' means' share of it;
    ``low`` and ``high`` bound the central interval of a Gaussian with that mean and std. ``next_obs`` is
    where the step leads, [B, O], ``next_obs_low`` and ``next_obs_high`` bound it likewise.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor
    disagreement: Tensor
    next_obs: Tensor
    next_obs_low: Tensor
    next_obs_high: Tensor


@dataclass(frozen=True)
class DynamicsModel:
    """A ``regression`` of what a step changes, with known or learned reward and termination.

    Targets are (Δobs, reward), or Δobs alone where the ``reward`` rule is known; where ``direct``, the next
    observation stands in the place of Δobs. A target dimension that was constant in training is predicted
    as that constant, outside the policy.

    A learned reward is smooth, but tasks that pay for survival drop at termination: there
    ``terminal_jump`` is added, and the policy learns the reward without it; where models stand side by side it is
    [E, 1], each member's own.
    """

    regression: Regression
    obs_dim: int
    termination: Termination | None = None
    reward: Rule | None = None
    terminal_jump: float | Tensor = 0.0
    direct: bool = False

    @property
    def policy(self) -> GaussianPolicy | MixturePolicy:
        """The ensemble, in normalised units."""
        return self.regression.policy

    @property
    def inputs(self) -> Normaliser:
        """The units of (observation, action)."""
        return self.regression.inputs

    @property
    def targets(self) -> Normaliser:
        """The units of what is predicted."""
        return self.regression.targets

    @property
    def active(self) -> Tensor:
        """[D] bool: the targets that vary, which the policy predicts."""
        return self.regression.active

    @property
    def seen(self) -> Tensor:
        """[O] bool: the observation's dimensions that the model goes by; the others a method let go."""
        return self.regression.seen[: self.obs_dim]

    @cached_property
    def meant(self) -> Tensor:
        """[D_active] bool: the active targets that the model is meant to predict, not those of unseen dimensions."""
        rest = len(self.active) - self.obs_dim
        return torch.cat([self.seen, self.seen.new_ones(rest)])[self.active]

    @property
    def members(self) -> int:
        """E."""
        return self.policy.members

    @property
    def action_dim(self) -> int:
        """A."""
        return len(self.inputs.constant) - self.obs_dim

    @property
    def noise_width(self) -> int:
        """Standard normal numbers that a draw of ``step`` takes."""
        return self.policy.noise_width

    @property
    def device(self) -> torch.device:
        """Where ``step`` works."""
        return self.regression.device

    def dist(self, obs: Tensor, action: Tensor) -> DiagonalGaussian | GaussianMixture:
        """Each member's distribution of the active targets in raw units, [E, B, D_active].

        ``obs`` is [E, B, O] or [B, O], ``action`` likewise. Raises InvalidInputError for other shapes.
        """
        return self.regression.dist(self._inputs(obs, action))

    def target_values(self, transitions: Transitions) -> Tensor:
        """What the policy should have predicted, in raw units, [N, D_active]."""
        with_reward = self.reward is None
        _, y = regression_rows(
            transitions, reward=with_reward, jump=float(self.terminal_jump), direct=self.direct
        )
        return y[:, self.active]

    def step(self, obs: Tensor, action: Tensor, noise: Tensor | None = None) -> Step:
        """Each member's next state from its own rows: obs [E, B, O], action [E, B, A].

        ``noise`` (standard normal, broadcastable with [E, B, noise_width]) draws from the
        members' distributions; None takes their means. Where the model is ``frozen``, obs may be
        [E, 1, B, O] where noise is [E, K, B, ·], which costs the network one K-th. Raises
        InvalidInputError for other shapes, of what a rule returns too, and for a termination outside
        [0, 1].
        """
        dist = self.regression.normalised_dist(self._inputs(obs, action))
        active = dist.marginals()[0] if noise is None else dist.drawn(noise)
        scale, shift, _ = self.regression.active_units
        target = self.regression.with_constants(torch.addcmul(shift, active, scale))
        rules = _Rules(self.obs_dim, self.termination, self.reward, self.terminal_jump, self.direct)
        return rules.led_to(obs, action, target)

    @torch.inference_mode()
    def predict(self, obs: Tensor, action: Tensor, coverage: float = 0.9) -> Prediction:
        """Mean, central interval and disagreement of the ensemble at obs [B, O], action [B, A]; and the next
        observation with its interval."""
        if not 0.0 < coverage < 1.0:
            raise InvalidInputError(f"coverage must lie between 0 and 1; got {coverage}")
        dist = self.dist(obs, action)
        each, own = dist.marginals()
        mean, disagreement = each.mean(0), each.std(0, correction=0)
        std = (own.square().mean(0) + disagreement.square()).sqrt()
        half = std * torch.special.ndtri(torch.tensor(0.5 + coverage / 2.0, dtype=std.dtype))
        whole = self.regression.with_constants
        full = [whole(v) for v in (mean, mean - half, mean + half)]
        spread = [whole(v, constant=0.0) for v in (std, disagreement)]
        states = [v[..., : self.obs_dim] for v in full]
        ends = states if self.direct else [obs + change for change in states]
        return Prediction(full[0], spread[0], full[1], full[2], spread[1], *ends)

    def to(self, device: torch.device | str) -> DynamicsModel:
        """The same model on ``device``, with parameters of its own; itself where it is there already.

        A rule of yours stays what it is, and is called with tensors there.
        """
        moved = self.regression.to(device)
        if moved is self.regression:
            return self
        known = self.termination
        known = known.to(device) if isinstance(known, LearnedTermination) else known
        return replace(self, regression=moved, termination=known)

    def frozen(
        self, device: torch.device | str | None = None, precision: Precision = "float32"
    ) -> DynamicsModel:
        """This model as it is now, for many steps without gradients: the same numbers to round-off, several
        times faster, on ``device`` (None: where it is). What happens to its parameters later does not
        reach it. "bfloat16" rounds within the networks to 8 bits.

        Itself, where it is that already.
        """
        here = self if device is None else self.to(device)
        fast = here.regression.frozen(precision)
        return here if fast is here.regression else replace(here, regression=fast)

    def only(self, members: Sequence[int]) -> DynamicsModel:
        """The same model of these ``members`` alone, in this order."""
        return replace(self, regression=self.regression.only(members))

    def elites(self, criterion: Sequence[float], count: int) -> DynamicsModel:
        """The same model with only the ``count`` members of the lowest ``criterion`` [E], best first.

        ``FitResult.criterion`` is what early stopping read on held-out data. Each member's is of its
        own fold, so folds that differ in difficulty blur the ranking. Raises InvalidInputError for a
        count out of range, or a criterion that is not one number per member.
        """
        if len(criterion) != self.members or not 1 <= count <= self.members:
            raise InvalidInputError(
                f"elites: give one criterion for each of the {self.members} members and a count from "
                f"1 to {self.members}; got {len(criterion)} and {count}"
            )
        order = sorted(range(self.members), key=lambda member: criterion[member])
        return self.only(order[:count])

    def _inputs(self, obs: Tensor, action: Tensor) -> Tensor:
        require_rows(obs, action, self.obs_dim, self.action_dim)
        return torch.cat([obs, action], dim=-1)


@dataclass(frozen=True)
class _Rules:
    """What makes a step of a predicted target; fields as of DynamicsModel."""

    obs_dim: int
    termination: Termination | None
    reward: Rule | None
    terminal_jump: float | Tensor
    direct: bool

    def led_to(self, obs: Tensor, action: Tensor, target: Tensor) -> Step:
        """Where ``target`` [..., D] leads from ``obs``, all in raw units."""
        said = target[..., : self.obs_dim]
        next_obs = said if self.direct else obs + said
        obs, action = (v.expand(*next_obs.shape[:-1], -1) for v in (obs, action))
        if self.termination is None:
            terminated = torch.zeros_like(next_obs[..., 0])
        else:
            terminated = _judged("termination", self.termination, obs, action, next_obs)
        if self.reward is None:
            reward = target[..., self.obs_dim]
            if isinstance(self.terminal_jump, Tensor) or self.terminal_jump != 0.0:
                reward = reward + self.terminal_jump * terminated
        else:
            reward = _judged("reward", self.reward, obs, action, next_obs)
        return Step(next_obs, reward, terminated)

    def outcome(self, x: Tensor, target: Tensor) -> Step:
        """The same, from a raw input."""
        return self.led_to(x[..., : self.obs_dim], x[..., self.obs_dim :], target)


def _judged(name: str, rule: Rule, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """What ``rule`` says, [...]. A wrong shape would broadcast, or fail far from here."""
    found = require_entries(f"{name}: the rule", rule(obs, action, next_obs), next_obs)
    if name == "termination" and found.dtype != torch.bool:
        _require_probability(found)
    # A rule may have made a tensor of its own, elsewhere.
    return found.to(next_obs)


def _require_probability(found: Tensor) -> None:
    if found.numel():
        low, high = (end.item() for end in found.aminmax())
        # To the rounding of a mean; NaN is told as divergence.
        if low < -1e-5 or high > 1.0 + 1e-5:
            raise InvalidInputError(
                "termination: the rule must return True or False, or a probability from 0 to 1; "
                f"got {low:.4g} to {high:.4g}"
            )


def fit_dynamics(
    transitions: Transitions,
    method: Method,
    *,
    generator: torch.Generator,
    members: int = 5,
    hidden: Sequence[int] = (200, 200),
    policy: MakePolicy | None = None,
    schedule: Schedule | None = None,
    termination: Rule | None = None,
    reward: Rule | None = None,
    outer_transitions: Transitions | None = None,
    progress: bool = False,
    log: Log | None = None,
    direct: bool = False,
    folds: GrowingFolds | None = None,
    start: DynamicsModel | None = None,
    warm_start: WarmStart | None = None,
    units: DynamicsModel | None = None,
    joined: Callable[[FitData], FitData] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[DynamicsModel, FitResult]:
    """Fit a dynamics model to ``transitions``; splits are by episode (``splits.group_by_episode``).

    ``method``: how it is trained, ``get_method("bilevel")`` say. ``generator`` makes all draws: splits, initial
    weights, minibatches. ``members``: networks of the ensemble; ``hidden``: units of their hidden layers;
    ``schedule``: gradient steps, learning rate and the like (None: ``Schedule()``). ``termination`` and
    ``reward``: functions of (obs, action, next_obs) that are known, and then not learned. ``progress`` shows a bar
    on stderr; ``log(name, value, step)`` hears the training curves.

    ``policy`` takes the place of the method's ``make_policy``: one of your own, say, such as a Student-t
    (``policies/own_policy.py`` says what it needs, ``examples/student_t.py`` is one).

    A termination that is not known by rule is learned when the data holds one; data that never
    terminates gives a model that never does. With ``outer_transitions`` (another policy's data, say)
    the outer level sees these alone; a method without one gets them for training. With ``direct`` targets
    the next observation is learned instead of its change: at long horizons residuals inflate a model's
    variance (arXiv 2412.14312).

    ``folds`` that have grown with the experience say who holds out what. The network then goes on from
    ``start``, a model of this method fitted with these folds before they grew, as ``warm_start`` says; from
    scratch where a target's spread has changed too much (``warm_start.lasting_units``). A learned termination
    is always fitted from scratch. ``units``, ``joined`` and ``device``: as of
    ``fit_regression``.

    Warns where the limit of steps came while the model was still learning (``FitResult.underfitted``). Raises
    InvalidInputError if there is too little data, no target varies in it, a rule cannot be called,
    answers in another form or writes into its arguments, or ``start`` does not fit.
    """
    prepared = prepare_dynamics(
        transitions,
        method,
        generator=generator,
        members=members,
        hidden=hidden,
        policy=policy,
        schedule=schedule,
        termination=termination,
        reward=reward,
        outer_transitions=outer_transitions,
        direct=direct,
        folds=folds,
        start=start,
        warm_start=warm_start,
        units=units,
        joined=joined,
        device=device,
    )
    model, result = prepared.fit(method, progress, log)
    warn_if_underfitted(result)
    return model, result


def fit_dynamics_side_by_side(
    transitions: Sequence[Transitions],
    method: Method,
    *,
    generators: Sequence[torch.Generator],
    members: int = 5,
    hidden: Sequence[int] = (200, 200),
    schedule: Schedule | None = None,
    termination: Rule | None = None,
    reward: Rule | None = None,
    outer_transitions: Sequence[Transitions | None] | None = None,
    progress: bool = False,
    direct: bool = False,
    device: torch.device | str = "cpu",
) -> list[tuple[DynamicsModel, FitResult] | BilevelError]:
    """Repeats of ``fit_dynamics`` as one larger ensemble: the k-th from the k-th of ``transitions``, ``generators``
    and ``outer_transitions``; all other arguments as there. Each ends as it does alone, to the rounding of the
    batched products. A method that looks ahead or has a trainer of its own is fitted one after another.

    What became of each: its model and result, or the error that it failed by. Raises InvalidInputError where the
    data are of different widths.
    """
    others = [None] * len(transitions) if outer_transitions is None else outer_transitions
    prepare = [
        partial(
            prepare_dynamics,
            data,
            method,
            generator=generator,
            members=members,
            hidden=hidden,
            schedule=schedule,
            termination=termination,
            reward=reward,
            outer_transitions=other,
            direct=direct,
            device=device,
        )
        for data, generator, other in zip(transitions, generators, others, strict=True)
    ]
    found = fit_each(method, prepare, progress)
    for outcome in found:
        if not isinstance(outcome, BilevelError):
            warn_if_underfitted(outcome[1])
    return found


def prepare_dynamics(
    transitions: Transitions,
    method: Method,
    *,
    generator: torch.Generator,
    members: int = 5,
    hidden: Sequence[int] = (200, 200),
    policy: MakePolicy | None = None,
    schedule: Schedule | None = None,
    termination: Rule | None = None,
    reward: Rule | None = None,
    outer_transitions: Transitions | None = None,
    direct: bool = False,
    folds: GrowingFolds | None = None,
    start: DynamicsModel | None = None,
    warm_start: WarmStart | None = None,
    units: DynamicsModel | None = None,
    joined: Callable[[FitData], FitData] | None = None,
    device: torch.device | str = "cpu",
) -> Prepared[DynamicsModel]:
    """All of ``fit_dynamics`` but its gradient steps; arguments and errors as there."""
    require_rules(termination, reward)
    _try_rules(transitions, termination=termination, reward=reward)
    _require_going_on(start, folds, members, reward, direct, outer_transitions)
    if folds is None:
        groups = group_by_episode(transitions.episode, transitions.t, groups_needed(members))
    else:
        groups = folds.groups(transitions.episode, transitions.t)
    outer_only = None
    if outer_transitions is not None:
        transitions, groups, outer_only = _with_outer(
            transitions, groups, outer_transitions, members
        )
    jump = 0.0 if reward is not None else _terminal_jump(transitions)
    x, y = regression_rows(transitions, reward=reward is None, jump=jump, direct=direct)
    if not direct:
        _still_rounding(y, transitions.obs)
    obs_dim = transitions.obs.shape[1]
    prepared = prepare_regression(
        x,
        y,
        groups,
        method,
        generator=generator,
        members=members,
        hidden=hidden,
        policy=policy,
        schedule=schedule,
        successor=successors(transitions.episode, transitions.t, groups),
        state=obs_dim,
        outer_only=outer_only,
        direct=direct,
        folds=None if folds is None else folds.folds(transitions.episode, transitions.t),
        start=None if start is None else start.regression,
        how=warm_start,
        outcome=_Rules(obs_dim, termination, reward, jump, direct).outcome,
        ended=None if termination is not None else torch.from_numpy(transitions.terminated),
        units=None if units is None else units.regression,
        joined=joined,
        device=device,
    )

    def finish(result: FitResult) -> tuple[DynamicsModel, FitResult]:
        fitted, told = prepared.finish(result)
        ending: Termination | None = termination
        if ending is None and transitions.terminated.any():
            ending = fit_termination(transitions, members, generator).to(device)
        return DynamicsModel(fitted, obs_dim, ending, reward, jump, direct), told

    return Prepared(prepared.policy, prepared.data, prepared.schedule, prepared.generator, finish)


def warn_if_underfitted(result: FitResult) -> None:
    """Told as of the call of the function that calls this."""
    if result.underfitted:
        warnings.warn(
            f"the fit ended at its limit of {result.steps} steps while held-out rows were still becoming likelier "
            f"(by {result.late_gain:.2f} a dimension in its last half): more steps would make a better model "
            "(schedule, --train-steps)",
            stacklevel=3,
        )


def _try_rules(transitions: Transitions, **rules: Rule | None) -> None:
    """Ask each rule for one step, before any work. Raises InvalidInputError as ``tried``, and for a termination
    outside [0, 1]."""
    columns = (transitions.obs, transitions.action, transitions.next_obs)
    for name, rule in rules.items():
        if rule is not None:
            found = tried(name, rule, *(torch.from_numpy(column[:1]).float() for column in columns))
            if name == "termination" and found.dtype != torch.bool:
                _require_probability(found)


def weights_by_name(result: FitResult, names: Sequence[str]) -> dict[str, float]:
    """How much each target counts in the inferred reward, by name: the observation's dimensions in order and, where
    it is learned, "reward", in ``names``; those that never varied in training are left out. Empty for a method
    that infers no weights.

    ``FitResult.outer`` has them under the names weight/0, weight/1 ….
    """
    return {
        names[int(key.removeprefix("weight/"))]: value
        for key, value in result.outer.items()
        if key.startswith("weight/")
    }


def _require_going_on(
    start: DynamicsModel | None,
    folds: GrowingFolds | None,
    members: int,
    reward: Rule | None,
    direct: bool,
    outer: Transitions | None,
) -> None:
    if folds is not None and outer is not None:
        raise InvalidInputError("outer_transitions: they have no folds that grow; leave out folds")
    if folds is not None and folds.members != members:
        raise InvalidInputError(f"folds are for {folds.members} members; got members={members}")
    if start is None:
        return
    if folds is None:
        raise InvalidInputError(
            "start: without the folds that it was fitted with, its training rows would be held out; give "
            "folds (GrowingFolds)"
        )
    if start.direct != direct or (start.reward is None) != (reward is None):
        raise InvalidInputError(
            "start: it has other targets; a fit goes on with the same direct, and with a reward rule where "
            "there was one"
        )


def _with_outer(
    inner: Transitions, groups: IntArray, outer: Transitions, members: int
) -> tuple[Transitions, IntArray, BoolArray]:
    """Both in one, with episodes and groups of their own; the groups, and which rows are outer's."""
    first = 1 + int(inner.episode.max()) - int(outer.episode.min())
    outer = replace(outer, episode=outer.episode + first)
    others = group_by_episode(outer.episode, outer.t, members)
    others = np.where(others == NO_GROUP, NO_GROUP, others + 1 + groups.max())
    both = Transitions.concatenate([inner, outer])
    return both, np.concatenate([groups, others]), np.arange(len(both)) >= len(inner)


def _still_rounding(targets: Tensor, obs: FloatArray) -> None:
    """Make constant, in place, the changes among ``targets`` [N, D] that are nothing but rounding of ``obs``
    [N, O]. Warns where there may have been more, or rounding is a good part of them."""
    ulp = np.finfo(obs.dtype).eps * np.abs(obs).max(0)
    spread = targets[:, : obs.shape[1]].double().std(0, correction=0).numpy()
    targets[:, np.flatnonzero(spread <= ulp)] = targets[:, np.flatnonzero(spread <= ulp)].mean(0)
    # The difference of two rounded numbers is off by ulp/√6 and less.
    for i in np.flatnonzero((ulp / math.sqrt(6.0) < spread) & (spread <= ULPS * ulp)).tolist():
        warnings.warn(
            f"observation {i}: its size is {np.abs(obs[:, i]).max():.3g}, that of its changes {spread[i]:.3g}, "
            f"which is rounding of {obs.dtype} for a good part; subtract a constant from it, or give float64 "
            "(Transitions.from_arrays)",
            stacklevel=3,
        )


def _terminal_jump(transitions: Transitions) -> float:
    """How much the reward drops at termination: the median of r_T − r_{T−1} over episodes.

    One step apart, little else has changed; and the median ignores the episodes where it has.
    """
    order = np.lexsort((transitions.t, transitions.episode))
    last, before = order[1:], order[:-1]
    same = transitions.episode[last] == transitions.episode[before]
    follows = transitions.t[last] == transitions.t[before] + 1
    drop = transitions.terminated[last] & same & follows
    if not drop.any():
        return 0.0
    return float(np.median(transitions.reward[last[drop]] - transitions.reward[before[drop]]))
