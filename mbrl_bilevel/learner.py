"""A model that learns one task after another: a way to train it, and what it keeps of earlier tasks.

Its normalisers are those of the first task, for ever: a new scale would move every earlier prediction.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mbrl_bilevel.continual_methods import Recipe
from mbrl_bilevel.data import FitData, IntArray, cross_fit
from mbrl_bilevel.errors import InvalidInputError
from mbrl_bilevel.fit import Schedule
from mbrl_bilevel.keeping import Fitted, Keep
from mbrl_bilevel.methods import Method
from mbrl_bilevel.normaliser import Normaliser
from mbrl_bilevel.regression import Regression, draw_seed
from mbrl_bilevel.types import FitResult


@dataclass(frozen=True)
class Learner:
    """``model`` after the tasks so far, and how it learns the next one. Where ``anew``, each task but
    the first starts from fresh parameters again. ``last`` tells of the last fit, ``moved`` E_x KL(p_before ‖ p_after) on its
    inputs, in nats per dimension."""

    method: Method
    keep: Keep
    model: Regression
    hidden: tuple[int, ...]
    anew: bool
    last: FitResult | None = None
    moved: float | None = None

    @staticmethod
    def start(
        recipe: Recipe,
        x: Tensor,
        y: Tensor,
        *,
        generator: torch.Generator,
        members: int = 5,
        hidden: Sequence[int] = (200, 200),
    ) -> Learner:
        """One that has learned nothing, in the units of x [N, X] and y [N, D], the first task's.

        Raises InvalidInputError if no target varies.
        """
        inputs, targets = Normaliser.fit(x), Normaliser.fit(y)
        active = int((~targets.constant).sum())
        if not active:
            raise InvalidInputError("no target ever changes in the data: there is nothing to learn")
        policy = recipe.method.policy(
            x.shape[1], active, generator=generator, members=members, hidden=hidden
        )
        model = Regression(policy, inputs, targets)
        return Learner(recipe.method, recipe.keep, model, tuple(hidden), recipe.anew)

    def learn(
        self,
        x: Tensor,
        y: Tensor,
        groups: IntArray,
        *,
        generator: torch.Generator,
        schedule: Schedule | None = None,
    ) -> Learner:
        """The learner of one more task, x [N, X] and y [N, D] raw; this one stays as it was.

        Rows of one of the ``groups`` [N] are never parted. Raises as ``fit_regression`` does.
        """
        model = self.model
        folds = cross_fit(groups, model.members, np.random.default_rng(draw_seed(generator)))
        used = np.flatnonzero(groups >= 0)
        new = FitData(model.inputs.normalise(x), model.targets.normalise(y)[:, model.active], folds)
        policy = copy.deepcopy(model.policy)
        if self.anew and self.last is not None:
            policy = self.method.policy(
                policy.inputs,
                policy.outputs,
                generator=generator,
                members=policy.members,
                hidden=self.hidden,
            )
        data = self.keep.data(new, generator)
        if self.method.outer is None:
            data = replace(data, folds=data.folds.without_outer())
        result = self.keep.method(self.method).fit(
            policy, data, generator=generator, schedule=schedule
        )
        keep = self.keep.after(policy, new, generator)
        moved = _moved(model.policy, policy, new.x[used])
        return replace(
            self, keep=keep, model=replace(model, policy=policy), last=result, moved=moved
        )


@torch.no_grad()
def _moved(before: Fitted, after: Fitted, x: Tensor) -> float:
    old, new = (policy.dist(x.expand(policy.members, -1, -1)) for policy in (before, after))
    return float(old.kl(new).mean()) / after.outputs
