"""One way to train a generative policy: a row of values, one for each slot of the bilevel problem.

What the row says is what runs: its policy, its loss, its outer level and its criterion go to ``fit`` as they
are. Anything else that is to be known of a row is asked of what it makes (``Method.sketch``).
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from mbrl_bilevel.base.errors import BilevelError, InvalidInputError
from mbrl_bilevel.base.records import FitResult
from mbrl_bilevel.data.splits import FitData, Folds
from mbrl_bilevel.inner.losses import Loss
from mbrl_bilevel.outer.class_objectives import OwnLoss
from mbrl_bilevel.outer.level import Outer
from mbrl_bilevel.outer.objectives import Objective, OneStepNLL, OpenLoopReturn, Value
from mbrl_bilevel.outer.relevance import unseen
from mbrl_bilevel.policies.policies import CategoricalPolicy, Policy
from mbrl_bilevel.training.fit import Job, Log, fit_side_by_side
from mbrl_bilevel.training.settings import Schedule


class MakePolicy(Protocol):
    """Makes the policy to fit, such as ``partial(GaussianPolicy, scale="network")``."""

    def __call__(
        self,
        inputs: int,
        outputs: int,
        /,
        *,
        generator: torch.Generator,
        members: int,
        hidden: Sequence[int],
    ) -> Any:
        """``members`` networks of ``hidden`` layers from ``inputs`` numbers to a distribution over as many
        ``outputs``, or over that many classes; its parameters are drawn from ``generator``."""


#: The loss for a policy and the data that it is to be fitted to, made afresh for each fit: a reward that the
#: outer level moves would carry what it learned from one model to the next.
MakeLoss = Callable[[Any, FitData], Loss]


class Trainer(Protocol):
    """Fits a policy in the place of the training loop: by a formula, say, or by more than one fit."""

    def __call__(
        self,
        method: Method,
        policy: Any,
        data: FitData,
        generator: torch.Generator,
        schedule: Schedule,
    ) -> FitResult:
        """Fit ``policy`` in place to ``data``. ``method`` is the one that has this trainer, without it."""
        ...


@dataclass(frozen=True)
class WarmUp:
    """The first ``part`` of the steps goes by ``loss``: a start for a reward with more than one optimum.

    Raises InvalidInputError for a part that is not above 0 and below 1.
    """

    loss: Loss
    part: float = 0.25

    def __post_init__(self) -> None:
        if not 0.0 < self.part < 1.0:
            raise InvalidInputError(
                f"WarmUp: part must lie between 0 and 1, a part of the steps; got {self.part}"
            )


@dataclass(frozen=True)
class Method:
    """A way to train, of real targets or of classes.

    ``make_policy`` makes what is fitted, ``make_loss`` the inner loss. ``outer`` infers the reward in it;
    None where there is nothing to infer, and the rows held out for that are then for training.
    ``criterion`` is what early stopping reads on held-out rows, None the loss itself. ``summary`` says in one
    sentence what the method is. ``warm_up`` comes before the loss; ``horizon`` is the number of rows in
    a row's segment, for losses and objectives that look ahead. ``relevance`` says how much each target of a data set counts [D], if
    its rows are steps of an environment (``FitData.chain``). The loss then finds that in ``FitData.relevance``, and what counts
    less than others is not seen by the policy (``relevance.unseen``). ``other`` is the row for objectives other
    than likelihood, whose outer level is given them; None: this method can want nothing else. ``trainer`` stands
    in the place of the training loop, None for the loop itself.
    """

    make_policy: MakePolicy
    make_loss: MakeLoss
    criterion: Objective | None = None
    summary: str = ""
    outer: Outer | None = None
    warm_up: WarmUp | None = None
    horizon: int = 1
    relevance: Callable[[FitData], Tensor] | None = None
    other: Method | None = None
    trainer: Trainer | None = None

    def around(self, wrap: Callable[[Loss], Loss]) -> Method:
        """The same with ``wrap`` put around the loss, once that is made: a penalty, say."""
        inner = self.make_loss
        return replace(self, make_loss=lambda policy, data: wrap(inner(policy, data)))

    def valuing(self, value: Value, discount: float) -> Method:
        """The same, whose returns are discounted and end with the ``value`` of the last state; itself, if its outer
        level is not about returns."""
        if self.outer is None or not isinstance(self.outer.objective, OpenLoopReturn):
            return self
        return replace(self, outer=replace(self.outer, objective=OpenLoopReturn(discount, value)))

    def sketch(self) -> tuple[Policy, Loss]:
        """A policy of one input and two outputs, and its loss: to be asked, not to be trained."""
        policy = self.make_policy(
            1, 2, generator=torch.Generator().manual_seed(0), members=1, hidden=()
        )
        targets = 1 if isinstance(policy, CategoricalPolicy) else 2
        folds = Folds((np.arange(1),), (np.arange(0),), (np.arange(0),))
        data = FitData(torch.zeros(1, 1), torch.zeros(1, targets), folds)
        return policy, self.make_loss(policy, data)

    def fit(
        self,
        policy: Policy,
        data: FitData,
        *,
        generator: torch.Generator,
        loss: Loss | None = None,
        schedule: Schedule | None = None,
        progress: bool = False,
        log: Log | None = None,
    ) -> FitResult:
        """Fit ``policy``, of those that ``make_policy`` makes, in place to ``data``; ``generator``, ``schedule``,
        ``progress`` and ``log`` as of ``mbrl_bilevel.training.fit.fit``.

        ``loss`` is one that ``make_loss`` made (by default it is made here): it holds the reward that was
        inferred. Raises as ``mbrl_bilevel.training.fit.fit`` does.
        """
        if self.trainer is not None:
            plain = replace(self, trainer=None)
            return self.trainer(plain, policy, data, generator, schedule or Schedule())
        job = self._job(policy, data, generator, loss, log)
        (found,) = self._made([job], schedule or Schedule(), progress)
        if isinstance(found, BilevelError):
            raise found
        return found

    def fit_side_by_side(
        self,
        policies: Sequence[Policy],
        data: Sequence[FitData],
        *,
        generators: Sequence[torch.Generator],
        schedule: Schedule | None = None,
        progress: bool = False,
    ) -> list[FitResult | BilevelError]:
        """Fit each policy in place to its own data as ``fit`` does, all of them as one ensemble
        (``mbrl_bilevel.training.fit.fit_side_by_side``); one after another where this method looks ahead or has a
        trainer of its own. What became of each: its result, or the error that it failed by.

        Raises InvalidInputError for policies of different forms.
        """
        schedule = schedule or Schedule()
        if not policies:
            return []
        each = zip(policies, data, generators, strict=True)
        if self.trainer is None and self.horizon == 1:
            jobs = [self._job(policy, rows, generator) for policy, rows, generator in each]
            return self._made(jobs, schedule, progress)
        found: list[FitResult | BilevelError] = []
        for policy, rows, generator in each:
            try:
                found.append(
                    self.fit(
                        policy, rows, generator=generator, schedule=schedule, progress=progress
                    )
                )
            except BilevelError as error:
                found.append(error)
        return found

    def _job(
        self,
        policy: Policy,
        data: FitData,
        generator: torch.Generator,
        loss: Loss | None = None,
        log: Log | None = None,
    ) -> Job:
        if self.relevance is not None and data.chain is not None:
            data = unseen(policy, replace(data, relevance=self.relevance(data)))
        loss = self.make_loss(policy, data) if loss is None else loss
        if isinstance(loss, nn.Module):
            loss.to(data.x.device)
        if self.outer is None:
            data = replace(data, folds=data.folds.without_outer())
        criterion = OwnLoss(loss) if self.criterion is None else self.criterion
        return Job(policy, loss, data, generator, self.outer, criterion, log)

    def _made(
        self, jobs: Sequence[Job], schedule: Schedule, progress: bool
    ) -> list[FitResult | BilevelError]:
        """The fits of these jobs side by side, the warm-up before them."""
        first = 0 if self.warm_up is None else round(self.warm_up.part * schedule.steps)
        if self.warm_up is None or not first:
            return fit_side_by_side(jobs, schedule=schedule, progress=progress)
        start = replace(schedule, steps=first)
        warm = [
            replace(job, loss=self.warm_up.loss, outer=None, criterion=None, log=None)
            for job in jobs
        ]
        begun = fit_side_by_side(warm, schedule=start, progress=progress)
        going = [
            job for job, found in zip(jobs, begun, strict=True) if isinstance(found, FitResult)
        ]
        schedule = replace(schedule, steps=schedule.steps - first)
        ended = iter(fit_side_by_side(going, schedule=schedule, progress=progress) if going else ())
        return [found if isinstance(found, BilevelError) else next(ended) for found in begun]

    def wanting(self, objective: Objective) -> Method:
        """The same where the outer level wants ``objective`` on held-out rows; itself for likelihood.

        Raises InvalidInputError for an objective that this method cannot want.
        """
        if isinstance(objective, OneStepNLL):
            return self
        if self.other is None or self.other.outer is None:
            raise InvalidInputError(
                "objective: this method infers no reward for it, so it can want nothing but likelihood; use "
                "one with an outer level for other objectives, such as bilevel, bilevel-matrix or "
                "bilevel-lambda"
            )
        outer = replace(self.other.outer, objective=objective)
        return replace(self.other, outer=outer, criterion=objective)


def register(
    table: MutableMapping[str, Method],
    name: str,
    method: Method,
    kinds: tuple[type[Policy], ...],
    overwrite: bool = False,
) -> None:
    """Put ``method`` into a ``table`` of methods, whose policies are of one of the ``kinds``, under ``name``.

    Raises InvalidInputError for a name that is taken (unless ``overwrite``), one that could not be typed as an
    option or before "+kl:1", a method that is none, or one that makes another kind of policy.
    """
    if not isinstance(method, Method):
        raise InvalidInputError(f"method {name!r}: give a Method; got {method!r}")
    policy, _ = method.sketch()
    if not isinstance(policy, kinds):
        raise InvalidInputError(
            f"method {name!r}: its make_policy must make a {' or a '.join(k.__name__ for k in kinds)}; got "
            f"a {type(policy).__name__}"
        )
    if not name or name.startswith("-") or any(c.isspace() or c in "+:,/" for c in name):
        raise InvalidInputError(
            f"a method's name must be one word without + : , and /, not beginning with -; got {name!r}"
        )
    if name in table and not overwrite:
        raise InvalidInputError(
            f"there is a method {name!r} already; choose another name, or pass overwrite=True"
        )
    table[name] = method
