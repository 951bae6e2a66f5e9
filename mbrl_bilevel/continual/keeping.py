"""What a learner keeps of earlier tasks, and how that enters the next fit: rows, a penalty, or nothing.

The slot is ``Keep``; a method of continual learning is a way to train (``Method``) and a ``Keep``.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Adam

from mbrl_bilevel.base.errors import UnsupportedCombinationError
from mbrl_bilevel.base.records import Batch
from mbrl_bilevel.continual.memory import (
    InputDensity,
    Memory,
    drawn_targets,
    independent_rows,
    rehearsed,
)
from mbrl_bilevel.data.splits import FitData
from mbrl_bilevel.inner.losses import Loss, Metrics, PolicyGradient
from mbrl_bilevel.inner.penalties import Anchor, Penalised
from mbrl_bilevel.inner.regularisers import KL, Sum
from mbrl_bilevel.inner.rewards import LogTangent
from mbrl_bilevel.outer.closed_form import ClosedForm
from mbrl_bilevel.outer.held_out_class_temperature import ClosedFormBeta
from mbrl_bilevel.outer.held_out_rows import Recollection
from mbrl_bilevel.outer.held_out_spread import HeldOutSpread, SharedSpread
from mbrl_bilevel.outer.implicit import FisherImplicit
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.linear_solvers import conjugate_gradient
from mbrl_bilevel.outer.objectives import Mixed, OneStepNLL
from mbrl_bilevel.outer.problem import GradientSolver
from mbrl_bilevel.policies.policies import GaussianPolicy, MixturePolicy, Policy
from mbrl_bilevel.policies.tempered import TemperedPolicy
from mbrl_bilevel.training.method import Method
from mbrl_bilevel.training.settings import Schedule

Fitted = GaussianPolicy | MixturePolicy | TemperedPolicy
#: Outer levels that set the reward by a formula for an inner problem with entropy alone.
_FORMULAS = ClosedForm | ClosedFormBeta

#: Inputs of earlier tasks that a previous policy is asked about: as many as its spread is fitted to.
_RECALLED = HeldOutSpread.rows


class Keep(Protocol):
    """The slot. Before the first task was learned, the next fit is as any other."""

    def require_for(self, method: Method) -> None:
        """Raises UnsupportedCombinationError for a ``method`` that cannot be kept by this."""
        ...

    def data(self, new: FitData, generator: torch.Generator) -> FitData:
        """The rows of the next fit."""
        ...

    def method(self, method: Method) -> Method:
        """How the next fit is made."""
        ...

    def schedule(self, schedule: Schedule) -> Schedule:
        """How long and how fast the next fit is trained, of those of the same ``schedule``."""
        ...

    def of_task(self, policy: Fitted, number: int) -> Fitted:
        """What answers in task ``number`` (the first is 0): ``policy`` itself, unless this way is told at test which
        task it is in."""
        ...

    def after(self, policy: Fitted, new: FitData, generator: torch.Generator) -> Keep:
        """What is kept once ``policy`` has learned ``new`` as well."""
        ...


@dataclass(frozen=True)
class Nothing:
    """Fine-tuning: the parameters go on from where they are."""

    def require_for(self, method: Method) -> None:
        """Whatever it is."""

    def data(self, new: FitData, generator: torch.Generator) -> FitData:
        return new

    def method(self, method: Method) -> Method:
        return method

    def schedule(self, schedule: Schedule) -> Schedule:
        return schedule

    def of_task(self, policy: Fitted, number: int) -> Fitted:
        return policy

    def after(self, policy: Fitted, new: FitData, generator: torch.Generator) -> Nothing:
        return self


@dataclass(frozen=True)
class Slow(Nothing):
    """Fine-tuning with a learning rate ``factor`` times as high from the second task on: at small ones a likelihood
    forgets about as little as a reward does (arXiv 2509.20758)."""

    factor: float
    begun: bool = False

    def require_for(self, method: Method) -> None:
        """Raises UnsupportedCombinationError for a method without gradient steps."""
        require_steps(method)

    def schedule(self, schedule: Schedule) -> Schedule:
        if not self.begun:
            return schedule
        return replace(schedule, learning_rate=self.factor * schedule.learning_rate)

    def after(self, policy: Fitted, new: FitData, generator: torch.Generator) -> Slow:
        return replace(self, begun=True)


@dataclass(frozen=True)
class Replay(Nothing):
    """Experience replay (Rolnick et al. 2019, arXiv 1811.11682): stored rows, in the share that all earlier
    tasks have of all tasks. ``dark``: their targets are drawn from what the model said of them when they
    were stored, half of the time (dark experience replay, DER++; Buzzega et al. 2020, arXiv
    2004.07211)."""

    memory: Memory
    dark: bool = False
    tasks: int = 0

    def data(self, new: FitData, generator: torch.Generator) -> FitData:
        if self.memory.rows is None:
            return new
        return rehearsed(new, self.memory.rows, self.tasks / (self.tasks + 1))

    def after(self, policy: Fitted, new: FitData, generator: torch.Generator) -> Replay:
        if self.dark:
            said = drawn_targets(policy, new.x, generator)
            half = torch.rand(len(new.x), 1, generator=generator) < 0.5
            new = replace(new, y=torch.where(half, said, new.y))
        return replace(self, memory=self.memory.after(new, generator), tasks=self.tasks + 1)


@dataclass(frozen=True)
class Draws(Nothing):
    """Rows that the previous policy generates: its targets at the new task's ``inputs`` (learning without
    forgetting, Li & Hoiem 2017, arXiv 1606.09282: training on them is the forward KL to the previous
    policy), or at inputs drawn from the density of those ``seen`` (generative replay, Shin et al. 2017,
    arXiv 1705.08690). Nothing is stored but a mean and a covariance for each task."""

    inputs: Literal["new", "seen"]
    previous: Fitted | None = None
    density: InputDensity = field(default_factory=InputDensity)

    def data(self, new: FitData, generator: torch.Generator) -> FitData:
        if self.previous is None:
            return new
        tasks = len(self.density.rows)
        count = len(new.x) * (tasks if self.inputs == "seen" else 1)
        x = new.x if self.inputs == "new" else self.density.draw(count, generator)
        y = drawn_targets(self.previous, x, generator)
        past = independent_rows(x, y, self.previous, generator)
        return rehearsed(new, past, count / (count + len(new.x)))

    def after(self, policy: Fitted, new: FitData, generator: torch.Generator) -> Draws:
        return replace(self, previous=copy.deepcopy(policy), density=self.density.after(new.x))


@dataclass(frozen=True)
class Elastic(Nothing):
    """EWC (Kirkpatrick et al. 2017, arXiv 1612.00796): parameters are held where they mattered, on ``rows``
    of each task. With a ``decay`` online EWC, one anchor for all tasks (Schwarz et al. 2018,
    arXiv 1805.06370)."""

    strength: float
    decay: float | None = None
    rows: int = 128
    anchors: tuple[Anchor, ...] = ()

    def require_for(self, method: Method) -> None:
        """Raises UnsupportedCombinationError for a mixture, whose Fisher information has no closed form, or
        an outer level that needs the inner problem without a penalty."""
        require_plain_loss(method, "ewc")
        policy, _ = method.sketch()
        if isinstance(policy, MixturePolicy):
            raise UnsupportedCombinationError(
                "EWC needs the Fisher information of the policy in closed form, which a mixture has not: use kl"
            )

    def method(self, method: Method) -> Method:
        if not self.anchors:
            return method
        return method.around(lambda loss: Penalised(loss, self.anchors, self.strength))

    def after(self, policy: Fitted, new: FitData, generator: torch.Generator) -> Elastic:
        index = torch.randint(len(new.x), (policy.members, self.rows), generator=generator)
        batch = Batch(new.x[index], new.y[index])
        if self.decay is None or not self.anchors:
            return replace(self, anchors=(*self.anchors, Anchor.at(policy, batch)))
        return replace(self, anchors=(self.anchors[0].after(policy, batch, self.decay),))


@dataclass(frozen=True)
class Near(Nothing):
    """−λ_K·KL(p_θ ‖ p_previous) in the inner problem, on the inputs of the new task. For a
    ``PolicyGradient`` it is a part of the regulariser, for any other loss a penalty.

    With ``inferred``, λ_K = ``strength`` is where the outer level starts: its objective is the likelihood
    of the new task's held-out rows and, in the share of the earlier tasks, of rows ``earlier``: those
    that each member held out of a ``memory`` if there is one, else draws of the previous policy at
    inputs from the density of those seen."""

    strength: float
    inferred: bool = False
    memory: Memory | None = None
    previous: Fitted | None = None
    density: InputDensity = field(default_factory=InputDensity)
    earlier: Batch | None = None

    def method(self, method: Method) -> Method:
        if self.previous is None:
            return method
        kl = partial(KL, in_training(self.previous), self.strength, learnable=self.inferred)
        # An outer level that follows hypergradients infers the reward as well, any other λ_K alone.
        alone = method.outer is None or not isinstance(method.outer.solver, GradientSolver)
        near = method.around(lambda loss: nearer(_in_observations(loss), kl(), alone=alone))
        if not self.inferred:
            return near
        outer = _inferring(method)
        assert outer is not None
        assert self.earlier is not None
        tasks = len(self.density.rows)
        objective = Mixed(outer.objective, self.earlier, tasks / (tasks + 1))
        # A loss that λ_K moves cannot be compared with itself.
        criterion = near.criterion or OneStepNLL()
        return replace(near, outer=replace(outer, objective=objective), criterion=criterion)

    def after(self, policy: Fitted, new: FitData, generator: torch.Generator) -> Near:
        kept = replace(self, previous=copy.deepcopy(policy), density=self.density.after(new.x))
        if not self.inferred:
            return kept
        if self.memory is not None:
            memory = self.memory.after(new, generator)
            assert memory.rows is not None
            folds = memory.rows.folds.with_stop_as_outer()
            return replace(kept, memory=memory, earlier=memory.rows.sample(folds.outer))
        x = kept.density.draw(len(new.x), generator)
        y = drawn_targets(policy, x, generator)
        every = (policy.members, -1, -1)
        return replace(kept, earlier=Batch(x.expand(every), y.expand(every)))

    def require_for(self, method: Method) -> None:
        """Raises UnsupportedCombinationError for an outer level whose formula knows of no KL, or, if λ_K is
        to be inferred, one that cannot (``_inferring``)."""
        require_steps(method)
        if method.outer is not None and isinstance(method.outer.solver, _FORMULAS):
            raise UnsupportedCombinationError(
                f"the formula of {type(method.outer.solver).__name__} holds with entropy alone, not with a "
                "KL beside it: use bilevel, or replay"
            )
        if self.inferred and _inferring(method) is None:
            raise UnsupportedCombinationError(
                "the strength of the KL is inferred by an outer level, which this method has not: use "
                "bilevel or bilevel-mixture, or a fixed strength (kl)"
            )


@dataclass(frozen=True)
class Recalled(Nothing):
    """−λ_K·n·KL(p_θ ‖ p_previous) in the inner problem, at inputs from the density of those of the n earlier
    tasks: what the previous policy knows of them stands for their data, observation for observation at
    λ_K = 1 (``strength``). A spread that is inferred on held-out rows is inferred on what it says of these
    inputs as well. Nothing is stored but a policy, and a mean and a covariance for each task; with a
    ``memory`` its inputs stand for the earlier ones."""

    strength: float
    memory: Memory | None = None
    previous: Fitted | None = None
    density: InputDensity = field(default_factory=InputDensity)
    inputs: Tensor | None = None

    def require_for(self, method: Method) -> None:
        """Raises UnsupportedCombinationError for an outer level that needs the inner problem without it."""
        require_steps(method)
        if method.outer is not None and isinstance(method.outer.solver, GradientSolver | _FORMULAS):
            raise UnsupportedCombinationError(
                f"{type(method.outer.solver).__name__} infers a reward from the rows that it is paid on, not "
                "beside a KL at other inputs: use kl, or a method such as bilevel or nll"
            )

    def method(self, method: Method) -> Method:
        previous, inputs = self.previous, self.inputs
        if previous is None:
            return method
        assert inputs is not None
        tasks = len(self.density.rows)
        kl = partial(KL, in_training(previous), self.strength * tasks)
        near = method.around(lambda loss: Nearby(_in_observations(loss), kl(), inputs))
        outer = method.outer
        if outer is None or not isinstance(outer.solver, HeldOutSpread) or not _shares(method):
            return near
        assert isinstance(previous, GaussianPolicy)
        known = Recollection(previous, inputs, tasks / (tasks + 1))
        spread = replace(outer.solver, recollection=known)
        return replace(near, outer=replace(outer, solver=spread))

    def after(self, policy: Fitted, new: FitData, generator: torch.Generator) -> Recalled:
        kept = replace(self, previous=copy.deepcopy(policy), density=self.density.after(new.x))
        if self.memory is None:
            return replace(kept, inputs=kept.density.draw(_RECALLED, generator))
        memory = self.memory.after(new, generator)
        assert memory.rows is not None
        order = torch.randperm(len(memory.rows.x), generator=generator)
        return replace(kept, memory=memory, inputs=memory.rows.x[order])


def require_steps(method: Method) -> None:
    """Raises UnsupportedCombinationError for a ``method`` that is fitted by a formula: nothing in its loss reaches
    it."""
    if method.trainer is not None:
        raise UnsupportedCombinationError(
            f"{type(method.trainer).__name__} fits by a formula, which knows no loss and no learning rate: "
            "use ftl, replay or none"
        )


def require_plain_loss(method: Method, keep: str) -> None:
    """Raises UnsupportedCombinationError for a ``method`` whose outer level does not hold for a loss with something
    around it, in the name of ``keep``."""
    require_steps(method)
    if method.outer is not None and isinstance(method.outer.solver, GradientSolver | _FORMULAS):
        raise UnsupportedCombinationError(
            f"{keep} changes the inner problem, for which {type(method.outer.solver).__name__} no longer "
            "holds: use kl, or a method such as bilevel or nll"
        )


def in_training(policy: Fitted) -> Fitted:
    """``policy`` at the temperature of training: one that was set afterwards is for answers."""
    return policy.untempered() if isinstance(policy, TemperedPolicy) else policy


@dataclass(frozen=True)
class Nearby:
    """``loss`` + λ_K·KL(p_θ ‖ p_previous)/D, on the batch's rows or as many of ``inputs`` [R, X]."""

    loss: Loss
    kl: KL
    inputs: Tensor | None = None

    def __call__(
        self, policy: Policy, batch: Batch, generator: torch.Generator
    ) -> tuple[Tensor, Metrics]:
        value, metrics = self.loss(policy, batch, generator)
        x, mean = batch.x, batch.mean
        if self.inputs is not None:
            x = self.inputs[torch.randint(len(self.inputs), x.shape[:2], generator=generator)]
            mean = partial(torch.mean, dim=-1)
        bonus = mean(self.kl.bonus(policy.dist(x), x)) / batch.y.shape[-1]
        return value - bonus, {**metrics, "kl": -bonus.detach()}


def _in_observations(loss: Loss) -> Loss:
    """``loss``, whose reward takes all of the spread where it shares it: λ_K then counts observations.

    The mean's gradient is that of a likelihood: λ_K = 1 weighs what was predicted like what is seen now, and
    the inner curvature is Λ times the Fisher matrix.
    """
    if isinstance(loss, PolicyGradient) and isinstance(loss.reward, SharedSpread):
        loss.reward.share = 1.0
    return loss


def _shares(method: Method) -> bool:
    """Whether the reward knows the spread that the outer level finds."""
    _, loss = method.sketch()
    return isinstance(loss, PolicyGradient) and isinstance(loss.reward, SharedSpread)


def nearer(loss: Loss, kl: KL, *, alone: bool = False) -> Loss:
    """``loss`` with ``kl`` in it; ``alone``, its λ_K is all of φ."""
    if not isinstance(loss, PolicyGradient):
        return Nearby(loss, kl)
    if alone and isinstance(loss.reward, nn.Module):
        loss.reward.requires_grad_(False)
    loss.regulariser = Sum(loss.regulariser, kl)
    return loss


#: λ_K by the implicit function theorem, and what a method's own outer level sets as ever. One number is not
#: worth a sample of its own: it is read on the rows that this level scores.
_INFERRING = Outer(
    FisherImplicit(partial(conjugate_gradient, tolerance=0.1, max_iterations=20)),
    optimiser=partial(Adam, lr=0.6),
    every=200,
    warmup=200,
)


def _inferring(method: Method) -> Outer | None:
    """The outer level by which ``method`` can infer λ_K as well: its own, if that follows hypergradients,
    or such a one with its own alongside, if the loss pays rewards; else None."""
    outer = method.outer
    if outer is None or isinstance(outer.solver, GradientSolver):
        return outer
    _, loss = method.sketch()
    if isinstance(outer.solver, _FORMULAS) or not isinstance(loss, PolicyGradient):
        return None
    if isinstance(
        loss.reward, LogTangent
    ):  # it follows the policy: no hypergradient is right for it
        return None
    return replace(_INFERRING, alongside=outer.solver, with_stop=outer.with_stop)
