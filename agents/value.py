"""What a plan is worth beyond its horizon: a value function fitted to real experience.

Planning with a terminal value: POLO (Lowrey et al. 2018, arXiv 1811.01848, eq. 3). Fitted by
temporal differences in rounds of regression, V(s) ← r + γ(1 − terminated)·V(s') (Ernst et al. 2005).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mbrl_bilevel.data import FitData, cross_fit, group_by_episode, groups_needed
from mbrl_bilevel.errors import InvalidInputError
from mbrl_bilevel.fit import Schedule, fit
from mbrl_bilevel.losses import MSE
from mbrl_bilevel.normaliser import Normaliser
from mbrl_bilevel.objectives import OneStepMSE
from mbrl_bilevel.policies import GaussianPolicy
from mbrl_bilevel.types import Transitions


@dataclass(frozen=True)
class ValueSettings:
    """``discount`` γ of the tail, ``rounds`` of ``steps`` gradient steps each, ``members`` networks
    of two ``width``-wide layers."""

    discount: float = 0.98
    rounds: int = 12
    steps: int = 100
    members: int = 5
    width: int = 64

    def __post_init__(self) -> None:
        if not 0.0 <= self.discount < 1.0:
            raise InvalidInputError(f"discount must be in [0, 1); got {self.discount}")
        if min(self.rounds, self.steps, self.members, self.width) < 1:
            raise InvalidInputError("rounds, steps, members and width must be at least 1")


@dataclass(frozen=True)
class Value:
    """``value(obs [..., O]) -> [...]``: the members' mean discounted return to go, raw units."""

    policy: GaussianPolicy
    inputs: Normaliser
    scale: float

    @torch.inference_mode()
    def __call__(self, obs: Tensor) -> Tensor:
        flat = self.inputs.normalise(obs).reshape(1, -1, obs.shape[-1])
        mean = self.policy.dist(flat.expand(self.policy.members, -1, -1)).mean
        return mean.mean(0).reshape(obs.shape[:-1]) * self.scale


def fit_value(
    transitions: Transitions, settings: ValueSettings, generator: torch.Generator
) -> Value:
    """The value of how the data was gathered, bootstrapped from round to round.

    A time limit is no end: a truncated step bootstraps like any other.
    """
    obs, next_obs = (torch.from_numpy(a) for a in (transitions.obs, transitions.next_obs))
    reward = torch.from_numpy(transitions.reward)
    goes_on = torch.from_numpy(1.0 - transitions.terminated.astype(np.float32))
    inputs = Normaliser.fit(obs)
    scale = max(float(reward.abs().mean()) / (1.0 - settings.discount), 1e-6)
    seed = int(torch.randint(2**62, (), generator=generator).item())
    groups = group_by_episode(transitions.episode, transitions.t, groups_needed(settings.members))
    folds = cross_fit(groups, settings.members, np.random.default_rng(seed)).without_outer()
    policy = GaussianPolicy(
        obs.shape[1],
        1,
        generator=generator,
        members=settings.members,
        hidden=(settings.width, settings.width),
    )
    value = Value(policy, inputs, scale)
    x = inputs.normalise(obs)
    for _ in range(settings.rounds):
        target = (reward + settings.discount * goes_on * value(next_obs)) / scale
        data = FitData(x, target.clone().unsqueeze(1), folds)
        schedule = Schedule(steps=settings.steps, evaluate_every=settings.steps)
        fit(policy, MSE(), data, generator=generator, criterion=OneStepMSE(), schedule=schedule)
    return value
