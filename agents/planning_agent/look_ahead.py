"""Imagined steps that the policy's update looks ahead, as a learner sees them: differentiable, in its own units.

Value gradients through a learned model: SVG (Heess et al. 2015, arXiv 1510.09142, §4), MAAC (Clavera et al.
2020, arXiv 2005.08068, equation 3), SAC-SVG (Amos et al. 2021, arXiv 2008.12775, equation 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import gymnasium as gym
import torch
from torch import Tensor

from agents.common.spaces import ActionSpace
from agents.learners.ahead import ImaginedStep
from agents.planning_agent.policy import HeldPolicy
from agents.planning_agent.replay import action_ends, model_action
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.models.side_by_side import models_side_by_side

#: Spreads from the mean, as standardised observations are limited.
_LIMIT = 10.0


class ModelSteps:
    """Steps in ``model`` for the learner that ``held`` holds.

    Called with observations [B, O] as the learner sees them and actions [B, A] as it stores them, it returns the
    step in the learner's units. Each member steps rows of its own, by its mean; B is a multiple of
    ``members``. Observations stay within ten spreads of the mean of what the model was fitted to, beyond which no
    gradient runs.
    """

    def __init__(self, model: DynamicsModel, held: HeldPolicy, action_space: ActionSpace) -> None:
        self._given, model = model, model.to(held.device)
        self.model, self.held, self._actions = model, held, action_space
        self.members = model.members
        units = model.inputs
        mean, spread = (v[: model.obs_dim].float() for v in (units.shift, units.scale))
        box = action_space if isinstance(action_space, gym.spaces.Box) else None
        self._ends = None if box is None else action_ends(box, held.device)
        self.within = mean - _LIMIT * spread, mean + _LIMIT * spread

    def is_of(self, model: DynamicsModel, held: HeldPolicy) -> bool:
        """Whether it was made of these very two."""
        return self._given is model and self.held is held

    def __call__(self, obs: Tensor, action: Tensor) -> ImaginedStep:
        raw, taken = self.held.raw(obs), self.taken(action)
        each = (v.reshape(self.members, -1, v.shape[-1]) for v in (raw, taken))
        step = self.model.step(*each)
        next_obs = torch.clamp(step.next_obs.flatten(0, 1), *self.within)
        return ImaginedStep(
            self.held.seen(next_obs),
            step.reward.flatten() / self.held.reward_scale(),
            step.terminated.flatten().to(next_obs),
        )

    def taken(self, action: Tensor) -> Tensor:
        """What the model sees of actions [..., A]."""
        return model_action(self._actions, action, self._ends)


class StepsSideBySide:
    """Those of K learners at once, of observations [K, B, O] and actions [K, B, A]: by one model where theirs go together
    (``models_side_by_side``), else one after another."""

    def __init__(self, each: Sequence[ModelSteps]) -> None:
        self._each, self.members = list(each), each[0].members
        self._within = [
            torch.stack(ends).unsqueeze(1) for ends in zip(*(s.within for s in each), strict=True)
        ]
        self._model: DynamicsModel | None = None
        with suppress(InvalidInputError):  # a target varies for some of them alone, say
            self._model = models_side_by_side([steps.model for steps in each])

    def __call__(self, obs: Tensor, action: Tensor) -> ImaginedStep:
        if self._model is None:
            found = [steps(*own) for steps, *own in zip(self._each, obs, action, strict=True)]
            parts = zip(*((s.obs, s.reward, s.ended) for s in found), strict=True)
            return ImaginedStep(*(torch.stack(part) for part in parts))
        raw = torch.stack([steps.held.raw(own) for steps, own in zip(self._each, obs, strict=True)])
        taken = self._each[0].taken(action)
        count = len(self._each) * self.members
        step = self._model.step(*(v.reshape(count, -1, v.shape[-1]) for v in (raw, taken)))
        next_obs = torch.clamp(step.next_obs.reshape(obs.shape), *self._within)
        seen = [steps.held.seen(own) for steps, own in zip(self._each, next_obs, strict=True)]
        scale = step.reward.new_tensor([[steps.held.reward_scale()] for steps in self._each])
        rows = obs.shape[:-1]
        return ImaginedStep(
            torch.stack(seen),
            step.reward.reshape(rows) / scale,
            step.terminated.reshape(rows).to(next_obs),
        )
