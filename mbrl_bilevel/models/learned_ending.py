"""The ending of episodes, learned: a classifier of steps, where no rule of the task is known."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.data.splits import FitData, cross_fit, group_by_episode, groups_needed
from mbrl_bilevel.inner.losses import NLL
from mbrl_bilevel.models.regression import draw_seed
from mbrl_bilevel.policies.policies import CategoricalPolicy
from mbrl_bilevel.training.fit import fit
from mbrl_bilevel.training.settings import Schedule

#: Probability that a step terminates: ``(obs, action, next_obs) [..., ·] -> [...]`` in [0, 1].
Termination = Callable[[Tensor, Tensor, Tensor], Tensor]
#: How long the classifiers are trained.
SCHEDULE = Schedule(steps=500)


@dataclass(frozen=True)
class LearnedTermination:
    """p(terminated | obs, action, next_obs) from a small ensemble of classifiers."""

    policy: CategoricalPolicy
    inputs: Normaliser

    def to(self, device: torch.device | str) -> LearnedTermination:
        """The same on ``device``, with parameters of its own."""
        return LearnedTermination(copy.deepcopy(self.policy).to(device), self.inputs.to(device))

    def __call__(self, obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        """The members' mean probability, over all leading dimensions."""
        x = self.inputs.normalise(torch.cat([obs, action, next_obs], dim=-1))
        flat = x.float().reshape(1, -1, x.shape[-1]).expand(self.policy.members, -1, -1)
        return self.policy.dist(flat).probs[..., 1].mean(0).reshape(x.shape[:-1])


def fit_termination(
    transitions: Transitions, members: int, generator: torch.Generator
) -> LearnedTermination:
    """Fit ``members`` classifiers to which of the ``transitions`` ended their episode, each with episodes of its
    own held out to stop it early; ``generator`` makes all draws."""
    raw = np.concatenate([transitions.obs, transitions.action, transitions.next_obs], axis=1)
    inputs = Normaliser.fit(torch.from_numpy(raw))
    splits = np.random.default_rng(draw_seed(generator))
    groups = group_by_episode(transitions.episode, transitions.t, groups_needed(members))
    labels = torch.from_numpy(transitions.terminated.astype(np.float32)).unsqueeze(1)
    data = FitData(
        inputs.normalise(torch.from_numpy(raw)).float(),
        labels,
        cross_fit(groups, members, splits).without_outer(),
    )
    policy = CategoricalPolicy(data.x.shape[1], 2, generator=generator, members=members)
    fit(policy, NLL(), data, generator=generator, schedule=SCHEDULE)
    return LearnedTermination(policy, inputs)
