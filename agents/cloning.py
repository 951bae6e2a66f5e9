"""Behaviour cloning: do what the data does, by regression of its actions on its observations.

The baseline that learning a policy offline has to beat; a regression as any other here, split by
episode and stopped early.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from agents.common.spaces import from_vectors, require_box, require_recorded
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.data.splits import group_by_episode, groups_needed
from mbrl_bilevel.models.regression import Regression, fit_regression
from mbrl_bilevel.training.methods import get_method
from mbrl_bilevel.training.settings import Schedule

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Clone:
    """The mean action of the members of ``model``, kept within ``action_space``."""

    model: Regression
    action_space: gym.spaces.Box

    @torch.inference_mode()
    def predict(
        self,
        observation: Array,
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """The action [A] or [S, A] at ``observation`` [O] or [S, O]; it draws nothing."""
        obs = np.asarray(observation, dtype=np.float32)
        mean = self.model.targets.shift.repeat(len(np.atleast_2d(obs)), 1)
        found = self.model.dist(torch.from_numpy(np.atleast_2d(obs))).marginals()[0]
        mean[:, self.model.active] = found.mean(0)
        actions = from_vectors(self.action_space, mean.numpy())
        return (actions[0] if obs.ndim == 1 else actions), state


def fit_clone(
    transitions: Transitions,
    action_space: gym.Space[Any],
    *,
    generator: torch.Generator,
    members: int = 5,
    hidden: Sequence[int] = (200, 200),
    schedule: Schedule | None = None,
) -> Clone:
    """Fit a clone of whoever gathered ``transitions``, actions in ``action_space`` (a bounded Box).

    ``generator`` makes all draws; ``members``: networks of the ensemble; ``hidden``: units of their hidden layers;
    ``schedule``: how long to train (None: ``Schedule()``).

    Raises InvalidInputError for actions that are no bounded Box or do not fit it, or too little data.
    """
    space = require_box(action_space, "action")
    require_recorded(space, transitions.action)
    groups = group_by_episode(transitions.episode, transitions.t, groups_needed(members))
    model, _ = fit_regression(
        torch.from_numpy(transitions.obs),
        torch.from_numpy(transitions.action),
        groups,
        get_method("mse"),
        generator=generator,
        members=members,
        hidden=hidden,
        schedule=schedule,
    )
    return Clone(model, space)
