"""What an actor climbs that looks ahead in a model: imagined rewards, and the critics behind them.

Value gradients of H steps (Amos et al. 2021, arXiv 2008.12775, equation 5), mixed over horizons as TD(λ) mixes them (Sutton
1988; Hafner et al. 2020, arXiv 1912.01603, equation 6).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

#: ``ask(obs [..., B, O], actions [..., B, A]) -> [..., B]``: what the critics say.
Ask = Callable[[Tensor, Tensor], Tensor]
#: ``act(obs [..., B, O]) -> actions [..., B, A], log-probabilities [..., B]``: what the actor does.
Act = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ImaginedStep:
    """One step of B rows in a model: ``obs`` [..., B, O] that it leads to, ``reward`` [..., B] in units of the critics, and
    ``ended`` [..., B], the probability that the episode ends."""

    obs: Tensor
    reward: Tensor
    ended: Tensor


class StepsAhead(Protocol):
    """A differentiable model: observations [..., B, O] and actions [..., B, A] as the replay has them, B a multiple of
    ``members``."""

    members: int

    def __call__(self, obs: Tensor, action: Tensor, /) -> ImaginedStep: ...


@dataclass(frozen=True)
class Ahead:
    """``steps`` of ``model`` that the actor looks ahead. What it climbs is the mean over horizons h = 0 … ``steps`` with
    the weights (1 − λ)λʰ, the last having the rest: λ = 0 asks the critics alone, 1 the longest horizon alone."""

    model: StepsAhead
    steps: int
    lam: float = 1.0


def climbed(
    ahead: Ahead, obs: Tensor, actions: Tensor, ask: Ask, act: Act, gamma: float, ent_coef: Tensor
) -> Tensor:
    """The λ-return (1 − λ) Σ_{h<H} λʰ G_h + λᴴ G_H of each row, differentiable in actions [..., B, A] at obs
    [..., B, O], for as many rows as the model's members can share.

    G_h is what h steps in the model pay, and the critics behind them:
    Σ_{i<h} γⁱ (r_i − [i > 0] α log π(a_i|s_i)) + γʰ (Q(s_h, a_h) − [h > 0] α log π(a_h|s_h)). Where a row ends within the
    horizon, the weights of all horizons from there on are the last one's before: a rule that says "ended" has no
    gradient, and past it the actor would climb what the fall pays and not see that it falls.
    """
    rows = obs.shape[-2] - obs.shape[-2] % ahead.model.members
    obs, actions = obs[..., :rows, :], actions[..., :rows, :]
    total, going = torch.zeros_like(actions[..., 0]), torch.ones_like(actions[..., 0])
    weight = torch.ones_like(going)
    places = []
    for _ in range(ahead.steps):
        step = ahead.model(obs, actions)
        ends = (step.ended >= 0.5).to(weight)
        here = weight * (1.0 - ahead.lam * (1.0 - ends))
        if ahead.lam < 1.0 or bool(ends.any()):
            places.append((obs, actions, here, total, going))
        weight = weight - here
        total = total + going * step.reward
        going = going * gamma * (1.0 - step.ended)
        obs = step.obs
        actions, log_prob = act(obs)
        total = total - going * ent_coef * log_prob
    places.append((obs, actions, weight, total, going))
    # All at once: the critics are asked at each horizon.
    every_obs, every_action, *rest = zip(*places, strict=True)
    share, paid, left = (torch.stack(part, dim=-2) for part in rest)
    q = ask(torch.cat(every_obs, dim=-2), torch.cat(every_action, dim=-2)).reshape(share.shape)
    return (share * (paid + left * q)).sum(-2)
