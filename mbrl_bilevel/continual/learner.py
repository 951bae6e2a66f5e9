"""A model that learns one task after another: a way to train it, and what it keeps of earlier tasks.

Its normalisers are those of the first task, for ever: a new scale would move every earlier prediction.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import FitResult
from mbrl_bilevel.continual.keeping import Fitted, in_training
from mbrl_bilevel.continual.recipes import Recipe
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.data.splits import IntArray
from mbrl_bilevel.models.classification import Classification
from mbrl_bilevel.models.regression import Regression, draw_seed
from mbrl_bilevel.policies.policies import CategoricalPolicy, Policy
from mbrl_bilevel.training.settings import Schedule


@dataclass(frozen=True)
class Learner:
    """``model`` after the tasks so far, and how it learns the next one, by ``recipe``. ``outputs`` are the
    target dimensions that it predicts, or the classes. ``last`` tells of the last fit, ``moved``
    E_x KL(p_before ‖ p_after) on its inputs, in nats per dimension."""

    recipe: Recipe
    model: Regression | Classification
    hidden: tuple[int, ...]
    outputs: int
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
        classes: int = 0,
    ) -> Learner:
        """One that has learned nothing, in the units of x [N, X] and y [N, D], the first task's. For a
        method of classes y [N, 1] is one of ``classes``, as many as there are in all tasks together.
        ``recipe``: the method, and what is kept of earlier tasks. ``generator`` draws the initial weights of the
        ``members`` networks, whose layers have ``hidden`` units.

        Raises InvalidInputError if no target varies, or ``classes`` are wanting or in the way.
        """
        over_classes = isinstance(recipe.method.sketch()[0], CategoricalPolicy)
        if over_classes is not (classes > 0):
            raise InvalidInputError(
                f"classes must be {'how many there are' if over_classes else '0 for real targets'}; "
                f"got {classes}"
            )
        inputs, targets = Normaliser.fit(x), Normaliser.fit(y)
        outputs = classes or int((~targets.constant).sum())
        if not outputs:
            raise InvalidInputError("no target ever changes in the data: there is nothing to learn")
        policy: Any = recipe.method.make_policy(
            x.shape[1], outputs, generator=generator, members=members, hidden=hidden
        )
        model = (
            Classification(policy, inputs) if over_classes else Regression(policy, inputs, targets)
        )
        return Learner(recipe, model, tuple(hidden), outputs)

    def learn(
        self,
        x: Tensor,
        y: Tensor,
        groups: IntArray | None = None,
        *,
        generator: torch.Generator,
        schedule: Schedule | None = None,
    ) -> Learner:
        """The learner of one more task, x [N, X] and y [N, D] raw; this one stays as it was.

        Rows of one of the ``groups`` [N] are never parted; without them each goes by itself. ``generator`` makes
        all draws; ``schedule`` says how long to train (None: ``Schedule()``). Raises as
        ``mbrl_bilevel.training.fit.fit`` does, and InvalidInputError for too few rows or groups.
        """
        (method, keep), model = (self.recipe.method, self.recipe.keep), self.model
        new = model.rows(x, y, groups, np.random.default_rng(draw_seed(generator)))
        # Of the kind that this method makes.
        policy: Any = copy.deepcopy(in_training(model.policy))
        if self.recipe.anew and self.last is not None:
            policy = method.make_policy(
                policy.inputs,
                self.outputs,
                generator=generator,
                members=policy.members,
                hidden=self.hidden,
            )
        data = keep.data(new, generator)
        schedule = keep.schedule(schedule or Schedule())
        result = keep.method(method).fit(policy, data, generator=generator, schedule=schedule)
        return replace(
            self,
            recipe=replace(self.recipe, keep=keep.after(policy, new, generator)),
            model=replace(model, policy=policy),
            last=result,
            moved=_moved(model.policy, policy, new.x[new.folds.rows]) / new.y.shape[1],
        )

    def for_task(self, number: int) -> Learner:
        """The one that answers where it is told that the task is ``number`` (the first is 0): this one, unless it keeps
        weights of each task's own (``packing.Packed``)."""
        policy: Any = self.recipe.keep.of_task(self.model.policy, number)
        return replace(self, model=replace(self.model, policy=policy))


@torch.no_grad()
def _moved(before: Fitted, after: Policy, x: Tensor) -> float:
    old, new = (policy.dist(x.expand(policy.members, -1, -1)) for policy in (before, after))
    return float(old.kl(new).mean())
