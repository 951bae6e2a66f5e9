"""Whose turn it is: while learning the policy acts, and in some turns a plan or the policy's best guess.

Which of these two an agent should act by once it is asked is not known beforehand, but seen in their turns: a
model that is right about the next ten steps is no better than a policy that knows the next thousand.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from agents.planning_agent.policy import HeldPolicy
from agents.planning_agent.replay import GUESS, PLAN, POLICY
from agents.planning_agent.terminal_value import returns_to_go
from mbrl_bilevel.base.records import Transitions

FloatArray = npt.NDArray[np.float64]

#: Steps of a turn; an episode's end ends one earlier.
TURN = 50
#: Steps that are remembered: of longer ago, all acted otherwise.
REMEMBERED = 2000
#: The part of the turns by plan, and that by the policy's best guess. Critics learn of the policy's actions from
#: the policy's own steps: with half of them planned, HalfCheetah's policies stayed behind.
_TRIED = 0.1


@dataclass(frozen=True)
class Record:
    """What each turn was worth, by who acted ([N] each): its n-step advantage, Σ_k γᵏ r_{t+k} + γⁿ V(s_{t+n})
    − V(s_t), by the critics of now; V is 0 behind an end."""

    policy: FloatArray
    plan: FloatArray
    guess: FloatArray

    @classmethod
    def empty(cls) -> Record:
        """No turn of anybody."""
        return cls(np.empty(0), np.empty(0), np.empty(0))

    @property
    def plan_is_better(self) -> bool:
        """Than the policy's best guess, in the mean; so, too, while one of them has not been tried."""
        if not (len(self.plan) and len(self.guess)):
            return True
        return bool(self.plan.mean() >= self.guess.mean())


def draw_turn(random: np.random.Generator) -> float:
    """Who acts next: the policy, and now and then a plan or the policy's best guess."""
    place = random.random()
    return PLAN if place < _TRIED else GUESS if place < 2.0 * _TRIED else POLICY


@torch.inference_mode()
def record_of(rows: Transitions, who: npt.NDArray[Any], held: HeldPolicy) -> Record:
    """The record in ``rows`` [N] in order of episodes; ``who`` [N] acted."""
    turns = rows.episode * (rows.t.max() // TURN + 1) + rows.t // TURN
    turn = np.cumsum(np.diff(turns, prepend=-1) != 0)
    tail = held.value(torch.from_numpy(rows.next_obs)).double().numpy()
    gained = returns_to_go(replace(rows, episode=turn), tail, held.discount)
    first = np.flatnonzero(np.diff(turn, prepend=0))
    # A turn whose beginning is forgotten is no turn.
    first = first[rows.t[first] % TURN == 0]
    worth = gained[first] - held.value(torch.from_numpy(rows.obs[first])).double().numpy()
    return Record(*(worth[who[first] == actor] for actor in (POLICY, PLAN, GUESS)))
