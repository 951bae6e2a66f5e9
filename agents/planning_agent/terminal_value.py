"""What a plan is worth beyond its horizon: a value function fitted to real experience.

Planning with a terminal value: POLO (Lowrey et al. 2018, arXiv 1811.01848, eq. 3). The targets are
returns to go, V(s_t) = Σ_k γᵏ r_{t+k}, bootstrapped where an episode was cut and not ended by what solves
the Bellman equation in the span of the rounds so far: least-squares temporal differences (Bradtke & Barto
1996), so that episodes may be far shorter than 1/(1 − γ).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from agents.planning_agent.settings import ValueSettings
from mbrl_bilevel.base.checkpoint import Checkpoint
from mbrl_bilevel.base.errors import CheckpointError
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.data.splits import FitData, cross_fit, group_by_episode, groups_needed
from mbrl_bilevel.inner.losses import MSE
from mbrl_bilevel.models.dynamics_checkpoint import (
    load_normaliser,
    load_policy,
    normaliser_tensors,
    policy_tensors,
)
from mbrl_bilevel.outer.objectives import OneStepMSE
from mbrl_bilevel.policies.policies import GaussianPolicy
from mbrl_bilevel.training.fit import fit
from mbrl_bilevel.training.settings import Schedule

#: Rounds go on, to so many times those asked for, until what follows a cut moves by less than this share.
_MOST_ROUNDS, _SETTLED = 3, 0.05
#: Combinations of functions that are alike to this share are not told apart.
_RCOND = 1e-3


@dataclass(frozen=True)
class Value:
    """``value(obs [..., O]) -> [...]``: a cautious discounted return to go, in raw units.

    The members' mean less ``pessimism`` of their standard deviations, never outside ``bounds``, the
    returns that rewards like those seen can add up to. Outside the observations seen, ``low`` to
    ``high`` [O] in normalised units, it is that of the nearest one inside: a network extrapolates
    without limit, and plans would be drawn out there.
    """

    policy: GaussianPolicy
    inputs: Normaliser
    low: Tensor
    high: Tensor
    scale: float
    bounds: tuple[float, float]
    pessimism: float

    def to(self, device: torch.device | str) -> Value:
        """The same on ``device``, with parameters of its own; itself where it is there already."""
        if self.low.device == torch.empty(0, device=device).device:
            return self
        return replace(
            self,
            policy=copy.deepcopy(self.policy).to(device),
            inputs=self.inputs.to(device),
            low=self.low.to(device),
            high=self.high.to(device),
        )

    def __call__(self, obs: Tensor) -> Tensor:
        each = self.members(obs)
        return (each.mean(0) - self.pessimism * each.std(0, correction=0)).clamp(*self.bounds)

    @torch.inference_mode()
    def members(self, obs: Tensor) -> Tensor:
        """What each member says, [E, ...]."""
        x = self.inputs.normalise(obs).to(self.low.dtype).clamp(self.low, self.high)
        flat = x.reshape(1, -1, obs.shape[-1])
        mean = self.policy.dist(flat.expand(self.policy.members, -1, -1)).mean
        return mean.reshape(-1, *obs.shape[:-1]) * self.scale


def fit_value(
    transitions: Transitions,
    settings: ValueSettings,
    generator: torch.Generator,
    seen: Tensor | None = None,
) -> Value:
    """The value of the behaviour that gathered ``transitions``, of what is ``seen`` [O] bool of the observations (None: all).

    A time limit is no end: from a truncated step on, the fixed point among combinations of the values of
    the rounds before goes on (in the first round, among constants). Raises InvalidInputError for too few rows.
    """
    obs, next_obs = (torch.from_numpy(a) for a in (transitions.obs, transitions.next_obs))
    reward, span = transitions.reward, 1.0 / (1.0 - settings.discount)
    inputs = Normaliser.fit(obs)
    x = inputs.normalise(obs).float()
    if seen is not None:
        x = x * seen  # and within low and high, both zero there, ever after
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
    value = Value(
        policy,
        inputs,
        low=x.amin(0),
        high=x.amax(0),
        scale=float(np.abs(reward).mean()) * span or 1.0,
        # Termination pays nothing from then on, so zero is always among what can happen.
        bounds=(min(float(reward.min()), 0.0) * span, max(float(reward.max()), 0.0) * span),
        pessimism=settings.pessimism,
    )
    fixed = _FixedPoint(transitions, settings.discount)
    tail = np.zeros(len(reward))
    for done in range(_MOST_ROUNDS * settings.rounds):
        before, tail = tail, fixed.tail().clip(*value.bounds)
        if done >= settings.rounds and fixed.moved(before, tail) < _SETTLED:
            break
        target = torch.from_numpy(returns_to_go(transitions, tail, settings.discount)).float()
        data = FitData(x, target.unsqueeze(1) / value.scale, folds)
        schedule = Schedule(steps=settings.steps)
        fit(policy, MSE(), data, generator=generator, criterion=OneStepMSE(), schedule=schedule)
        fixed.add(*(value.members(rows).mean(0).double().numpy() for rows in (obs, next_obs)))
    return value


class _FixedPoint:
    """w with V = ψ·w and V(s) = a(s) + b(s)·V(s′), for functions ψ that are added one by one.

    a [N] are the rewards to the end of each row's episode, b [N] the discount of what follows there at s′,
    which is zero where it terminated.
    """

    def __init__(self, transitions: Transitions, discount: float) -> None:
        n = len(transitions)
        self._gained = returns_to_go(transitions, np.zeros(n), discount)
        self._discount = returns_to_go(
            replace(transitions, reward=np.zeros_like(transitions.reward)), np.ones(n), discount
        )
        self._last = last_rows(transitions)
        self._here, self._after = [np.ones(n)], [np.ones(n)]

    def add(self, here: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> None:
        """One more function: at obs and at next_obs, [N]. In units of its own, for the sake of rounding."""
        centre, spread = here.mean(), here.std() or 1.0
        self._here.append((here - centre) / spread)
        self._after.append((after - centre) / spread)

    def moved(self, before: npt.NDArray[np.float64], now: npt.NDArray[np.float64]) -> float:
        """How far the tails [N] at cut ends are apart, as a share of their size; 0 where none was cut."""
        cut = self._last[self._discount > 0.0]
        size = np.square(now[cut]).sum()
        return float(np.sqrt(np.square(now - before)[cut].sum() / size)) if size > 0.0 else 0.0

    def tail(self) -> npt.NDArray[np.float64]:
        """The value [N] of next_obs."""
        here, after = np.stack(self._here, 1), np.stack(self._after, 1)
        follows = self._discount[:, None] * after[self._last]
        weight, *_ = np.linalg.lstsq(here.T @ (here - follows), here.T @ self._gained, rcond=_RCOND)
        found: npt.NDArray[np.float64] = after @ weight
        return found


def returns_to_go(
    transitions: Transitions, tail: npt.NDArray[np.float64], discount: float
) -> npt.NDArray[np.float64]:
    """Σ_k γᵏ r_{t+k} to the end of each row's episode, [N].

    Where the last row of an episode did not terminate it, γ·``tail`` [N] of that row goes on.
    """
    order = np.lexsort((transitions.t, transitions.episode))
    result = np.empty(len(order))
    after, episode = 0.0, None
    for row in order[::-1]:
        if transitions.episode[row] != episode:
            episode = transitions.episode[row]
            after = 0.0 if transitions.terminated[row] else float(tail[row])
        after = float(transitions.reward[row]) + discount * after
        result[row] = after
    return result


def last_rows(transitions: Transitions) -> npt.NDArray[np.intp]:
    """The last row of each row's episode, [N]."""
    order = np.lexsort((transitions.t, transitions.episode))
    episode = transitions.episode[order]
    ends = order[np.searchsorted(episode, transitions.episode, side="right") - 1]
    found: npt.NDArray[np.intp] = ends
    return found


def value_to_checkpoint(value: Value) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the settings that ``value_from_checkpoint`` needs."""
    tensors = policy_tensors("policy", value.policy) | normaliser_tensors("inputs", value.inputs)
    return tensors | {"low": value.low, "high": value.high}, {
        "members": value.policy.members,
        "hidden": list(value.policy.hidden),
        "scale": value.scale,
        "bounds": list(value.bounds),
        "pessimism": value.pessimism,
    }


def value_from_checkpoint(checkpoint: Checkpoint, name: str, obs_dim: int) -> Value:
    """The value stored under ``name``. Raises CheckpointError if a part is missing or misfits."""
    config = checkpoint.setting(name, dict)
    try:
        policy = GaussianPolicy(
            obs_dim,
            1,
            generator=torch.Generator(),
            members=config["members"],
            hidden=config["hidden"],
        )
        low, high = (float(end) for end in config["bounds"])
        scale, pessimism = float(config["scale"]), float(config["pessimism"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its value settings are damaged: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    load_policy(checkpoint, f"{name}.policy", policy)
    return Value(
        policy,
        load_normaliser(checkpoint, f"{name}.inputs", obs_dim),
        checkpoint.require(f"{name}.low", (obs_dim,), torch.float32),
        checkpoint.require(f"{name}.high", (obs_dim,), torch.float32),
        scale,
        (low, high),
        pessimism,
    )
