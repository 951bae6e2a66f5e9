"""Whose turn it is: plan and policy act in turns, and the one that has done better acts more.

A young critic makes a policy that is stuck and plans that follow it; a model that is right about the next
ten steps is no better than a policy that knows the next thousand. Which of them an agent should act by
is not known beforehand, but seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from agents.planning_agent.policy import HeldPolicy
from agents.planning_agent.terminal_value import returns_to_go
from mbrl_bilevel.base.records import Transitions

#: Steps of a turn; an episode's end ends one earlier.
TURN = 50
#: Steps that are remembered: of longer ago, both acted otherwise.
REMEMBERED = 1000
#: The part of the turns that each has at least, so that it stays known how it does.
_LEAST = 0.1
#: Turns from which on a mean says something.
_ENOUGH = 2


@dataclass(frozen=True)
class Record:
    """What each turn was worth, for the turns by ``plan`` [N] and by ``policy`` [M]: its n-step advantage,
    Σ_k γᵏ r_{t+k} + γⁿ V(s_{t+n}) − V(s_t), by the critics of now; V is 0 behind an end."""

    plan: npt.NDArray[np.float64]
    policy: npt.NDArray[np.float64]

    @classmethod
    def empty(cls) -> Record:
        """No turn of either."""
        return cls(np.empty(0), np.empty(0))

    @property
    def plan_is_better(self) -> bool:
        """In the mean; so, too, while one of them has not been tried."""
        if not (len(self.plan) and len(self.policy)):
            return True
        return bool(self.plan.mean() >= self.policy.mean())

    def draw(self, random: np.random.Generator) -> bool:
        """Whether the next turn is by plan: by whichever is better in a draw from what is known of their
        means (Thompson sampling), and now and then by either."""
        if min(len(self.plan), len(self.policy)) < _ENOUGH or random.random() < 2 * _LEAST:
            return bool(random.random() < 0.5)
        centred = np.concatenate([each - each.mean() for each in (self.plan, self.policy)])
        spread = np.sqrt(np.square(centred).sum() / (len(centred) - 2))
        plan, policy = (
            each.mean() + spread / np.sqrt(len(each)) * random.standard_normal()
            for each in (self.plan, self.policy)
        )
        return bool(plan > policy)


@torch.inference_mode()
def record_of(rows: Transitions, planned: npt.NDArray[np.bool_], held: HeldPolicy) -> Record:
    """The record in ``rows`` [N] in order of episodes, of which ``planned`` [N] were acted by plan."""
    turn = np.cumsum(
        np.diff(rows.episode * (rows.t.max() // TURN + 1) + rows.t // TURN, prepend=-1) != 0
    )
    tail = held.value(torch.from_numpy(rows.next_obs)).double().numpy()
    gained = returns_to_go(replace(rows, episode=turn), tail, held.discount)
    first = np.flatnonzero(np.diff(turn, prepend=0))
    # A turn whose beginning is forgotten is no turn.
    first = first[rows.t[first] % TURN == 0]
    worth = gained[first] - held.value(torch.from_numpy(rows.obs[first])).double().numpy()
    return Record(worth[planned[first]], worth[~planned[first]])
