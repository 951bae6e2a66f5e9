"""A policy of your own, from data to a plan: a Student-t, whose heavy tails shrug off outliers.

    python examples/student_t.py

What a policy needs is in mbrl_bilevel/policies/own_policy.py: members, noise_width and dist(x); and what its
distribution needs: params, from_params, log_prob, marginals, affine and drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from agents.planners import ICEM
from agents.planners.actions import BoxActions
from mbrl_bilevel import Imagination, Schedule, Transitions, fit_dynamics, get_method
from mbrl_bilevel.imagination.particles import imagined_returns
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.policies.networks import EnsembleMLP

#: Degrees of freedom: a whole number, since a draw divides by the length of so many normal numbers.
DOF = 3


@dataclass(frozen=True)
class StudentTs:
    """Multivariate t with ``mean`` and ``log_scale`` [E, B, D], independent scales, one tail for all D."""

    mean: Tensor
    log_scale: Tensor

    @property
    def params(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.log_scale

    @classmethod
    def from_params(cls, params: tuple[Tensor, ...]) -> StudentTs:
        return cls(*params)

    def log_prob(self, y: Tensor) -> Tensor:
        dim = self.mean.shape[-1]
        distance = ((y - self.mean) * torch.exp(-self.log_scale)).square().sum(-1)
        constant = math.lgamma((DOF + dim) / 2) - math.lgamma(DOF / 2)
        constant -= dim / 2 * math.log(DOF * math.pi)
        tail = (DOF + dim) / 2 * torch.log1p(distance / DOF)
        return constant - self.log_scale.sum(-1) - tail

    def marginals(self) -> tuple[Tensor, Tensor]:
        return self.mean, self.log_scale.exp() * math.sqrt(DOF / (DOF - 2))

    def affine(self, scale: Tensor, shift: Tensor) -> StudentTs:
        return StudentTs(self.mean * scale + shift, self.log_scale + scale.log())

    def drawn(self, noise: Tensor) -> Tensor:
        normal, rest = noise[..., :-DOF], noise[..., -DOF:]
        length = rest.square().mean(-1, keepdim=True).sqrt()
        return self.mean + self.log_scale.exp() * normal / length


class StudentT(nn.Module):
    """A network for the mean and the logarithm of the scale."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        generator: torch.Generator,
        members: int,
        hidden: Sequence[int],
    ) -> None:
        super().__init__()
        self.members, self.noise_width = members, outputs + DOF
        self.network = EnsembleMLP(members, (inputs, *hidden, 2 * outputs), generator)

    def dist(self, x: Tensor) -> StudentTs:
        mean, raw = self.network(x).chunk(2, -1)
        return StudentTs(mean, 5.0 * torch.tanh(raw / 5.0))


def pushed_mass(random: np.random.Generator, episodes: int = 40, length: int = 25) -> Transitions:
    """A point that is pushed towards zero; at one step in ten something else knocks it far off."""
    obs = [random.normal(size=(episodes, 1))]
    action = random.uniform(-1.0, 1.0, (length, episodes, 1))
    for push in action:
        knock = (random.random((episodes, 1)) < 0.1) * random.normal(size=(episodes, 1))
        noise = 0.02 * random.normal(size=(episodes, 1))
        obs.append(0.9 * obs[-1] + 0.5 * push + noise + 2.0 * knock)
    before, after, pushes = (
        np.swapaxes(part, 0, 1).reshape(-1, 1) for part in (obs[:-1], obs[1:], action)
    )
    last = np.tile(np.arange(length) == length - 1, episodes)
    reward = -np.square(after[:, 0])
    return Transitions.from_arrays(before, pushes, after, reward, truncated=last)


def near_zero(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """The reward, which is known here."""
    return -next_obs[..., 0].square()


def fitted(transitions: Transitions, steps: int = 800) -> DynamicsModel:
    """By likelihood; any method without formulas for Gaussians will do."""
    model, _ = fit_dynamics(
        transitions,
        get_method("nll"),
        policy=StudentT,
        reward=near_zero,
        generator=torch.Generator().manual_seed(0),
        members=2,
        hidden=(32,),
        schedule=Schedule(steps=steps, batch_size=64),
    )
    return model


def first_action(model: DynamicsModel, obs: Tensor) -> Tensor:
    """What a plan of three steps begins with, [S, 1] at obs [S, 1]."""
    planner = ICEM(horizon=3, population=64)
    generator = torch.Generator().manual_seed(0)
    state = planner.initial_state(len(obs), BoxActions([-1.0], [1.0]))
    imagination = Imagination(particles=64, precision="float32")

    def score(plans: Tensor) -> Tensor:
        return imagined_returns(model, obs, plans, imagination, generator)

    return planner.plan(score, state, generator)[0]


if __name__ == "__main__":
    found = fitted(pushed_mass(np.random.default_rng(0)))
    where = torch.tensor([[-1.0], [-0.5], [0.0], [0.5], [1.0]])
    print("at", where[:, 0].tolist(), "push", first_action(found, where)[:, 0].tolist())
