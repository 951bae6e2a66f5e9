"""What an agent keeps of earlier tasks: of its model, of its policy, and of its replay, each by itself.

The model is kept as ``mbrl_bilevel.continual`` keeps models; the policy stays near what it was on observations like those of
earlier tasks; of the replay rows stay, and are drawn beside the new task's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor

from agents.learners.fast_sac import FastSAC
from agents.planning_agent.refits import FitStart
from mbrl_bilevel.base.errors import InvalidInputError, require_count
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.continual.keeping import Keep
from mbrl_bilevel.continual.memory import InputDensity
from mbrl_bilevel.continual.recipes import get_recipe
from mbrl_bilevel.data.splits import FitData, regression_rows

#: Observations of earlier tasks that the policy is held at, drawn anew for each task.
_HELD = 5000
#: Of these, for one update.
_BATCH = 256


@dataclass(frozen=True)
class Keeping:
    """What is kept when the task changes. ``model``: a way of keeping of ``mbrl_bilevel.continual``, "kl-seen" say, "none"
    to go on from the parameters alone; ``memory`` rows are stored by those that store any. ``policy``: the strength of
    KL(π_before ‖ π) at observations of earlier tasks, in spreads of Q (behaviour cloning of ClonEx-SAC, Wołczyk et al.
    2022, arXiv 2209.13900); 0 for none; of FastSAC. ``replay``: rows of earlier tasks that stay in the learner's replay, a
    uniform sample of all (0: it starts anew). The policy is held at stored observations where there are any, else at
    draws from a Gaussian for each earlier task, and then no data is stored.

    Raises InvalidInputError for a value out of its range.
    """

    model: str = "none"
    policy: float = 0.0
    replay: int = 0
    memory: int = 500

    def __post_init__(self) -> None:
        if not (isinstance(self.policy, int | float) and 0.0 <= self.policy < math.inf):
            raise InvalidInputError(f"policy must be a finite number from 0; got {self.policy!r}")
        if type(self.replay) is not int or not 0 <= self.replay <= 10**7:
            raise InvalidInputError(
                f"replay must be an int from 0 to 10,000,000; got {self.replay!r}"
            )
        require_count("memory", self.memory, 10**7)

    def of_model(self, method: str) -> Keep:
        """How the model is kept, of that ``method``. Raises as ``get_recipe``, and InvalidInputError for a way that
        starts each task anew."""
        recipe = get_recipe(f"{method}+{self.model}", self.memory)
        if recipe.anew:
            raise InvalidInputError(
                f"model={self.model!r}: it would start each task anew; an agent of all tasks together, or of one, is "
                "made as such"
            )
        return recipe.keep


@dataclass(frozen=True)
class Earlier:
    """What is left of ``tasks`` tasks: how the ``model`` is kept (None where none is fitted), and the Gaussians of the
    ``observations``."""

    keeping: Keeping
    model: Keep | None = None
    observations: InputDensity = field(default_factory=InputDensity)
    tasks: int = 0

    @staticmethod
    def of(keeping: Keeping, method: str | None, learner: OffPolicyAlgorithm) -> Earlier:
        """Before the first task; ``method`` is the model's, None without one. Raises InvalidInputError for what
        cannot be kept of these."""
        if keeping.policy and not isinstance(learner, FastSAC):
            raise InvalidInputError(
                "policy: only FastSAC's actor is kept near what it was; got "
                f"{type(learner).__name__}: leave it at 0"
            )
        return Earlier(keeping, None if method is None else keeping.of_model(method))

    def after(
        self,
        experience: Transitions,
        start: FitStart | None,
        generator: torch.Generator,
    ) -> Earlier:
        """Once a task was learned as well, from ``experience``; ``start``: its last fit."""
        keep = self.model
        if keep is not None and start is not None:
            policy = start.model.regression.policy
            keep = keep.after(policy, _rows(experience, start), generator)
        seen = self.observations.after(torch.from_numpy(experience.obs))
        return replace(self, model=keep, observations=seen, tasks=self.tasks + 1)

    def hold(
        self,
        learner: FastSAC,
        stored: Tensor,
        see: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> None:
        """Hold the policy of ``learner`` near what it is now, at ``stored`` observations [N, O], or draws from the
        Gaussians where there are none; ``see`` turns raw ones into its own."""
        raw = stored if len(stored) else self.observations.draw(_HELD, generator)
        learner.drift = Drift(learner, see(raw), self.keeping.policy, generator)


def _rows(experience: Transitions, start: FitStart) -> FitData:
    """What the last fit could learn from, in its units, seen by whom it was seen."""
    model = start.model
    x, y = regression_rows(
        experience,
        reward=model.reward is None,
        jump=float(model.terminal_jump),
        direct=model.direct,
    )
    return model.regression.fit_data(x, y, start.folds.folds(experience.episode, experience.t))


class Drift:
    """KL(π_before ‖ π) a row, for ``FastSAC.drift``: between the Gaussians that the tanh is taken of, which it leaves as it is.

    ``seen`` [N, O]: observations of earlier tasks, as the learner sees them.
    """

    def __init__(
        self, learner: FastSAC, seen: Tensor, strength: float, generator: torch.Generator
    ) -> None:
        self._learner, self._strength, self._generator = learner, strength, generator
        self._seen = seen
        before = copy.deepcopy(learner.actor)
        with torch.no_grad():
            self._mean, self._log_std, _ = before.get_action_dist_params(seen)

    def __call__(self) -> Tensor:
        rows = torch.randint(len(self._seen), (_BATCH,), generator=self._generator)
        mean, log_std, _ = self._learner.actor.get_action_dist_params(self._seen[rows])
        kl = gaussian_kl(self._mean[rows], self._log_std[rows], mean, log_std)
        return self._strength * kl.mean()


def gaussian_kl(mean: Tensor, log_std: Tensor, other: Tensor, other_log_std: Tensor) -> Tensor:
    """KL(N(mean, σ²) ‖ N(other, σ_other²)) [B] of diagonal Gaussians, all [B, A]."""
    ratio = log_std - other_log_std
    distance = (mean - other) * (-other_log_std).exp()
    return (0.5 * ((2.0 * ratio).exp() + distance.square() - 1.0) - ratio).sum(-1)
