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

#: ``ask(obs [B, …], actions [B, A]) -> [B]``: what the critics say.
Ask = Callable[[Tensor, Tensor], Tensor]
#: ``act(obs [B, …]) -> actions [B, A], log-probabilities [B]``: what the actor does.
Act = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class ImaginedStep:
    """One step of B rows in a model: ``obs`` [B, …] that it leads to, ``reward`` [B] in units of the critics, and
    ``ended`` [B], the probability that the episode ends."""

    obs: Tensor
    reward: Tensor
    ended: Tensor


class StepsAhead(Protocol):
    """A differentiable model: observations and actions as the replay has them, B a multiple of ``members``."""

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
    """G_h of each row, differentiable in actions [B, A] at obs [B, …], for as many rows as the model's members can share.

    G_h is what h steps in the model pay, and the critics behind them:
    Σ_{i<h} γⁱ (r_i − [i > 0] α log π(a_i|s_i)) + γʰ (Q(s_h, a_h) − [h > 0] α log π(a_h|s_h)). The rows share the horizons by
    their weights, as near as whole rows come: the first of each member look farthest. Rows of a batch come in no order,
    so that their mean is the λ-return's, for the price of one horizon a row.

    Where a row ends within its horizon, the critics are asked before: a rule that says "ended" has no gradient, and past
    it the actor would climb what the fall pays and not see that it falls.
    """
    members = ahead.model.members
    rows = len(obs) // members
    obs, actions = (_by_member(v[: members * rows], members) for v in (obs, actions))
    total, going = torch.zeros_like(actions[..., 0]), torch.ones_like(actions[..., 0])
    last, ended = torch.zeros_like(total), torch.zeros_like(total, dtype=torch.bool)
    found = []
    for h in range(ahead.steps + 1):
        stay = round(rows * ahead.lam ** (h + 1)) if h < ahead.steps else 0
        if stay < total.shape[1]:
            stop = slice(stay, None)
            q = _each(ask, obs[:, stop], actions[:, stop])
            value = total[:, stop] + going[:, stop] * q
            found.append(torch.where(ended[:, stop], last[:, stop], value))
        if not stay:
            break
        obs, actions, total, going, last, ended = (
            v[:, :stay] for v in (obs, actions, total, going, last, ended)
        )
        step = ahead.model(obs.flatten(0, 1), actions.flatten(0, 1))
        reward, chance = (_by_member(v, members) for v in (step.reward, step.ended))
        ends = (chance >= 0.5) & ~ended
        if bool(ends.any()):
            here = total[ends] + going[ends] * ask(obs[ends], actions[ends])
            last, ended = last.masked_scatter(ends, here), ended | ends
        total, going = total + going * reward, going * gamma * (1.0 - chance)
        acted, log_prob = act(step.obs)
        obs, actions = (_by_member(v, members) for v in (step.obs, acted))
        total = total - going * ent_coef * _by_member(log_prob, members)
    return torch.cat(found[::-1], dim=1).flatten()


def _each(ask: Ask, obs: Tensor, actions: Tensor) -> Tensor:
    """``ask`` of rows [E, B, …]: [E, B]."""
    return _by_member(ask(obs.flatten(0, 1), actions.flatten(0, 1)), len(obs))


def _by_member(value: Tensor, members: int) -> Tensor:
    """[E · B, …] to [E, B, …]."""
    return value.reshape(members, len(value) // members, *value.shape[1:])
