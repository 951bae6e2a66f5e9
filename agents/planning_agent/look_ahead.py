"""Imagined steps that the policy's update looks ahead, as a learner sees them: differentiable, in its own units.

Value gradients through a learned model: SVG (Heess et al. 2015, arXiv 1510.09142, §4), MAAC (Clavera et al.
2020, arXiv 2005.08068, equation 3), SAC-SVG (Amos et al. 2021, arXiv 2008.12775, equation 5).
"""

from __future__ import annotations

import gymnasium as gym
import torch
from torch import Tensor

from agents.common.spaces import ActionSpace
from agents.learners.ahead import ImaginedStep
from agents.planning_agent.policy import HeldPolicy
from agents.planning_agent.replay import action_ends, model_action
from mbrl_bilevel.models.dynamics import DynamicsModel

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
        self.model, self._held, self._actions = model, held, action_space
        self.members = model.members
        units = model.inputs
        mean, spread = (v[: model.obs_dim].float() for v in (units.shift, units.scale))
        box = action_space if isinstance(action_space, gym.spaces.Box) else None
        self._ends = None if box is None else action_ends(box, held.device)
        self._within = mean - _LIMIT * spread, mean + _LIMIT * spread

    def is_of(self, model: DynamicsModel, held: HeldPolicy) -> bool:
        """Whether it was made of these very two."""
        return self._given is model and self._held is held

    def __call__(self, obs: Tensor, action: Tensor) -> ImaginedStep:
        raw = self._held.raw(obs)
        taken = model_action(self._actions, action, self._ends)
        each = (v.reshape(self.members, -1, v.shape[-1]) for v in (raw, taken))
        step = self.model.step(*each)
        next_obs = torch.clamp(step.next_obs.flatten(0, 1), *self._within)
        return ImaginedStep(
            self._held.seen(next_obs),
            step.reward.flatten() / self._held.reward_scale(),
            step.terminated.flatten().to(next_obs),
        )
