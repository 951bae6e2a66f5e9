"""Imagined steps of many rows side by side, each led by a member of its own.

Short rollouts branched from real states (Janner et al. 2019, MBPO, algorithm 2), with a reward
r − λ·u(s, a) where the model is not to be trusted (Yu et al. 2020, MOPO, eq. 7 and section 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.imagination.particles import StepModel
from mbrl_bilevel.imagination.settings import Branching, Uncertainty
from mbrl_bilevel.models.dynamics import DynamicsModel


@dataclass(frozen=True)
class Branched:
    """One step of B rows: ``next_obs`` [B, O], ``reward`` [B] less the penalty, ``terminated`` [B]
    bool, ``uncertainty`` [B] (zeros without a penalty: it was not asked for).

    ``diverged`` [B] bool marks rows where the model gave NaN or infinity: nothing else of these
    means anything.
    """

    next_obs: Tensor
    reward: Tensor
    terminated: Tensor
    uncertainty: Tensor
    diverged: Tensor


def draw_members(model: StepModel, rows: int, generator: torch.Generator) -> Tensor:
    """A member for each of ``rows``, uniformly, [B] int."""
    return torch.randint(model.members, (rows,), generator=generator).to(model.device)


@torch.inference_mode()
def branch_step(
    model: StepModel,
    obs: Tensor,
    action: Tensor,
    member: Tensor,
    branching: Branching,
    generator: torch.Generator,
) -> Branched:
    """One imagined step from obs [B, O] by action [B, A], row b by ``member[b]``.

    A termination that is a probability is drawn. Raises InvalidInputError for shapes that do not fit,
    or a penalty where the model is not a learned one.
    """
    rows = len(obs)
    slot, place = _by_member(member, model.members)

    def spread_out(value: Tensor) -> Tensor:
        return value[place].reshape(model.members, len(place) // model.members, value.shape[-1])

    noise = None
    if branching.sample:
        noise = torch.randn(rows, model.noise_width, generator=generator, dtype=obs.dtype)
        noise = spread_out(noise.to(obs.device))
    step = model.step(spread_out(obs), spread_out(action), noise)
    next_obs = step.next_obs.flatten(0, 1)[slot]
    reward, ended = step.reward.flatten()[slot], step.terminated.flatten()[slot]
    terminated = torch.rand(rows, generator=generator).to(ended) < ended
    doubt = reward.new_zeros(rows)
    if branching.penalty > 0.0:
        if not isinstance(model, DynamicsModel):
            raise InvalidInputError(
                f"penalty must be 0 for {type(model).__name__}: only a learned model has an "
                f"uncertainty to take off; got {branching.penalty}"
            )
        doubt = uncertainty(model, obs, action, branching.uncertainty)
        reward = reward - branching.penalty * doubt
    diverged = ~(next_obs.isfinite().all(-1) & reward.isfinite())
    return Branched(next_obs, reward, terminated, doubt, diverged)


@torch.inference_mode()
def uncertainty(model: DynamicsModel, obs: Tensor, action: Tensor, kind: Uncertainty) -> Tensor:
    """u(s, a) [B] at obs [B, O], action [B, A], in the raw units of (Δobs, reward), of what the model is meant to predict.

    ``spread``: max over members of ‖σ_i(s, a)‖, as in MOPO. ``disagreement``: ‖·‖ of the standard
    deviation of the members' means, which vanishes where all agree however noisy the task is.
    """
    mean, std = (part[..., model.meant] for part in model.dist(obs, action).marginals())
    apart = mean.std(0, correction=0)
    found: Tensor = std.norm(dim=-1).amax(0) if kind == "spread" else apart.norm(dim=-1)
    return found


def _by_member(member: Tensor, members: int) -> tuple[Tensor, Tensor]:
    """Where each row goes in [E · M], M the most rows of a member, and which row fills each place.

    Places left over repeat row 0: whatever a rule does with it, it has to do anyway.
    """
    order = torch.argsort(member, stable=True)
    counts = torch.bincount(member, minlength=members)
    first = counts.cumsum(0) - counts
    most = int(counts.max())
    slot = torch.empty_like(member)
    number = torch.arange(len(member), device=member.device)
    slot[order] = member[order] * most + number - first[member[order]]
    place = torch.zeros(members * most, dtype=torch.long, device=member.device)
    place[slot] = number
    return slot, place
