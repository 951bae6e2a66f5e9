"""Imagined rollouts: many candidate action sequences, many particles, one batched step each.

Particles follow members as in PETS (Chua et al. 2018, section 5.1): TS∞ keeps each particle's
member for the whole rollout, TS1 draws the member anew at every step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Step
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.policies.precision import Precision


class StepModel(Protocol):
    """What imagination needs of a model: ``DynamicsModel``, or the true simulator in its place.

    ``step`` moves each of ``members`` E from its own rows, as ``DynamicsModel.step`` does; a model
    without chance has ``noise_width`` 0 and leaves particles that are alike as the one they are.
    """

    @property
    def members(self) -> int: ...

    @property
    def obs_dim(self) -> int: ...

    @property
    def action_dim(self) -> int: ...

    @property
    def noise_width(self) -> int: ...

    @property
    def device(self) -> torch.device: ...

    def frozen(
        self, device: torch.device | str | None = None, precision: Precision = "float32"
    ) -> StepModel:
        """The model as it is now, made ready for many steps; itself, where there is nothing to make ready."""

    def only(self, members: Sequence[int]) -> StepModel:
        """The same model of these ``members`` alone."""

    def step(self, obs: Tensor, action: Tensor, noise: Tensor | None = None) -> Step:
        """From obs [E, …, B, O] by action [E, …, B, A]."""


@torch.inference_mode()
def imagined_returns(
    model: StepModel,
    obs: Tensor,
    actions: Tensor,
    imagination: Imagination,
    generator: torch.Generator,
    value: Callable[[Tensor], Tensor] | None = None,
    discount: float = 1.0,
) -> Tensor:
    """Score of each candidate, [S, N], from obs [S, O] and actions [S, N, H, A].

    The mean imagined return over particles, rewards ``discount``-ed step by step, less
    ``imagination.pessimism`` standard deviations of the members' mean returns (over E, not E − 1). With
    ``imagination.screen`` below 1 that is so of the part that one member finds best; the others come below these, as
    that member ranks them (or as it scores them, where of these none is finite). Where it is asked again and again of one model, give it ``model.frozen(device, imagination.chosen_precision)``: else
    it makes that anew at each call.

    A reward counts with the probability that the episode has not ended before it, and so does the
    ``value`` of the last state ([..., O] -> [...]), where one is given. NaN and infinity
    are left in the result: planners score them as −inf and count them. The model's device does the
    work; obs, actions and generator may live on others, and scores go where actions are. Raises InvalidInputError for
    shapes that do not fit, or particles that the members do not divide.
    """
    if actions.ndim != 4 or obs.ndim != 2 or len(obs) != len(actions):
        raise InvalidInputError(
            f"obs must be [S, O] and actions [S, N, H, A] with the same S; "
            f"got {tuple(obs.shape)} and {tuple(actions.shape)}"
        )
    model = model.frozen(None, imagination.chosen_precision)
    home, device = actions.device, model.device
    obs, actions = obs.to(device), actions.to(device)

    def scores(judges: StepModel, candidates: Tensor, particles: int) -> Tensor:
        how = replace(imagination, particles=particles)
        each = _returns_by_member(judges, obs, candidates, how, generator, value, discount)
        score = each.mean(0)
        if imagination.pessimism:
            score = score - imagination.pessimism * each.std(0, correction=0)
        return score

    members, count = model.members, actions.shape[1]
    kept = math.ceil(imagination.screen * count)
    if kept == count or members == 1:
        return scores(model, actions, imagination.particles).to(home)
    _require_shares(model, imagination)
    member = int(torch.randint(members, (), generator=generator, device=generator.device))
    first = scores(model.only([member]), actions, imagination.particles // members)
    best = first.nan_to_num(-torch.inf, -torch.inf, -torch.inf).topk(kept, dim=1).indices
    places = best[:, :, None, None].expand(-1, -1, *actions.shape[2:])
    second = scores(model, actions.gather(1, places), imagination.particles)
    return _below(first, first.gather(1, best), second).scatter(1, best, second).to(home)


def _below(first: Tensor, leading: Tensor, judged: Tensor) -> Tensor:
    """``first`` [S, N], what one member says, moved so far that the least of the ``leading`` [S, K] among them comes to the
    least of these as ``judged`` [S, K] by all."""
    least = [
        torch.where(scores.isfinite(), scores, torch.inf).amin(1, keepdim=True)
        for scores in (judged, leading)
    ]
    shift = least[0] - least[1]
    return first + torch.where(shift.isfinite(), shift, 0.0)


def _returns_by_member(
    model: StepModel,
    obs: Tensor,
    actions: Tensor,
    imagination: Imagination,
    generator: torch.Generator,
    value: Callable[[Tensor], Tensor] | None,
    discount: float,
) -> Tensor:
    """The mean over each member's particles of their imagined returns, [E, S, N]."""
    starts, candidates, horizon, _ = actions.shape
    rows = starts * candidates
    state = _alike(model, obs.repeat_interleave(candidates, 0), imagination)
    plans = actions.reshape(rows, horizon, -1)
    total, alive = obs.new_zeros(()), obs.new_ones(())
    for h in range(horizon):
        step = _step_particles(model, state, plans[:, h], imagination, generator)
        state = step.next_obs
        total = total + alive * step.reward
        alive = alive * (1.0 - step.terminated)
        if discount != 1.0:
            alive = alive * discount
    if value is not None:
        total = total + alive * value(state)
    # A known reward may not look at the state; one that stopped being finite still counts.
    total = torch.where(state.isfinite().all(-1), total, torch.nan)
    return total.mean(1).reshape(-1, starts, candidates)


@torch.inference_mode()
def imagined_trajectories(
    model: StepModel,
    obs: Tensor,
    actions: Tensor,
    imagination: Imagination,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Open-loop particles along given actions: obs [P, B, H, O] and reward [P, B, H].

    ``obs`` is [B, O] and ``actions`` [B, H, A]. ``imagination``: how many particles, and how they move in the
    ``model``; ``generator`` makes their draws. Termination is ignored: data says where it ended.
    """
    model = model.frozen(None, imagination.chosen_precision)
    state = _alike(model, obs, imagination)
    states, rewards = [], []
    for h in range(actions.shape[1]):
        step = _step_particles(model, state, actions[:, h], imagination, generator)
        state = step.next_obs
        states.append(_each(state, imagination))
        rewards.append(_each(step.reward, imagination))
    return torch.stack(states, dim=2), torch.stack(rewards, dim=2)


def _alike(model: StepModel, obs: Tensor, imagination: Imagination) -> Tensor:
    """The particles at the start, [E, 1, B, O] at obs [B, O]: each member's are alike until they draw."""
    _require_shares(model, imagination)
    return obs.expand(model.members, 1, -1, -1)


def _require_shares(model: StepModel, imagination: Imagination) -> None:
    if imagination.particles % model.members:
        raise InvalidInputError(
            f"particles must be a multiple of the model's {model.members} members; "
            f"got {imagination.particles}"
        )


def _each(value: Tensor, imagination: Imagination) -> Tensor:
    """[E, K or 1, B, …] to [P, B, …]."""
    share = imagination.particles // len(value)
    return value.expand(-1, share, *value.shape[2:]).flatten(0, 1)


def _step_particles(
    model: StepModel,
    state: Tensor,
    action: Tensor,
    imagination: Imagination,
    generator: torch.Generator,
) -> Step:
    """All particles one step on, [E, K, B, ·] with K = P / E, or 1 while they are alike; action [B, A]."""
    members, particles = model.members, imagination.particles
    order = None
    if imagination.propagation == "ts1":
        # Shuffling the particles among the members leaves each with a uniformly drawn member.
        order = torch.randperm(particles, generator=generator, device=generator.device)
        order = order.to(state.device)
        state = _by_member(_each(state, imagination)[order], members)
    noise = None
    if imagination.sample:
        shape, device = (particles, 1, model.noise_width), generator.device
        draws = torch.randn(shape, generator=generator, dtype=state.dtype, device=device)
        noise = _by_member(draws.to(state.device), members)
    action = action.expand(*state.shape[:2], -1, -1)
    step = model.step(state, action, noise)
    if order is None:
        return step
    back = torch.argsort(order)
    parts = (step.next_obs, step.reward, step.terminated)
    return Step(*(_by_member(_each(v, imagination)[back], members) for v in parts))


def _by_member(value: Tensor, members: int) -> Tensor:
    """[P, B, …] to [E, P / E, B, …]."""
    return value.reshape(members, len(value) // members, *value.shape[1:])
