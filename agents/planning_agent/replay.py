"""Real and imagined steps side by side, as Stable-Baselines3's off-policy agents sample them.

A batch holds a fixed share of real rows, the rest is imagined (Janner et al. 2019, MBPO, §5). The two
rings are never put together: each batch is gathered from both.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from agents.common.experience import require_finite
from agents.common.own_arrays import RAW_END
from agents.common.spaces import ActionSpace, require_recorded
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.base.rounding import Changes

Array = npt.NDArray[Any]

#: What a learner needs of a step; ``ended`` is one only where the task ended, not where time was up.
STEP = ("obs", "action", "next_obs", "reward", "ended")
#: What a record of real steps needs besides.
_RECORD = ("truncated", "episode", "t")


#: So many ends of episodes in a row are overwritten before it is told.
_ENDS = 3
#: So many steps are looked at for changes that float32 cannot represent.
_WATCHED = 100
#: Rows that a ring has room for at first.
_FIRST_ROWS = 4096


class Samples(NamedTuple):
    """A batch as SB3's ``ReplayBufferSamples``, and which of its rows were acted by plan, [B, 1] of 0 or 1."""

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    dones: Tensor
    rewards: Tensor
    discounts: Tensor | None
    planned: Tensor


class Ring:
    """The last ``capacity`` rows; ``columns`` maps a name to a tensor [reserved, …], and ``written`` counts
    all rows that ever came; they lie on ``device``. Memory is reserved as rows come: a million rows of a small task that will
    never see them would be some hundred megabytes an agent."""

    def __init__(
        self,
        capacity: int,
        like: Mapping[str, Tensor],
        device: torch.device | str = "cpu",
    ) -> None:
        self.capacity, self.written, self.device = capacity, 0, device
        reserved = min(capacity, _FIRST_ROWS)
        self.columns = {
            name: torch.zeros((reserved, *row.shape), dtype=row.dtype, device=device)
            for name, row in like.items()
        }

    def __len__(self) -> int:
        return min(self.written, self.capacity)

    def reserve(self, rows: int) -> None:
        """Make room for so many rows, at most ``capacity``; what is there stays."""
        reserved = len(next(iter(self.columns.values())))
        if rows <= reserved:
            return
        size = min(self.capacity, max(rows, 2 * reserved))
        for name, column in self.columns.items():
            grown = column.new_zeros((size, *column.shape[1:]))
            grown[:reserved] = column
            self.columns[name] = grown

    def add(self, rows: Mapping[str, Tensor]) -> None:
        """Append rows [n, …] of every column; where n is above the capacity the last ones stay."""
        count = len(next(iter(rows.values())))
        kept = min(count, self.capacity)
        self.reserve(min(self.written + count, self.capacity))
        place = (self.written + count - kept + torch.arange(kept)) % self.capacity
        place = place.to(self.device)
        for name, column in self.columns.items():
            column[place] = rows[name][count - kept :].to(self.device)
        self.written += count

    def places(self, count: int, generator: torch.Generator) -> Tensor:
        """Where ``count`` rows lie, uniformly and with replacement, [count]."""
        return torch.randint(len(self), (count,), generator=generator).to(self.device)

    def at(self, index: Tensor, names: Sequence[str] = STEP) -> list[Tensor]:
        """The rows at ``index`` [n], column by column."""
        return [self.columns[name].index_select(0, index) for name in names]

    def draw(self, count: int, generator: torch.Generator) -> list[Tensor]:
        """``count`` rows of ``STEP``, uniformly and with replacement."""
        return self.at(self.places(count, generator))

    def stored(self) -> dict[str, Tensor]:
        """The rows there are, as they lie."""
        return {name: column[: len(self)] for name, column in self.columns.items()}


#: Who acted: the policy as its algorithm explores (or chance, in the first steps); the plan; the policy's best
#: guess.
POLICY, PLAN, GUESS = 0.0, 1.0, 2.0


class MixedReplay(BaseBuffer):
    """What an SB3 agent is handed as its replay buffer.

    ``add`` is called by SB3 with what it saw in the environment, by step of the ``n_envs``
    environments; ``imagined`` is filled by others. While that is empty, or where ``real_share`` is 1, all
    of a batch is real. Actions are kept as SB3 stores them: boxes scaled to [−1, 1], or choices.
    Observations and rewards are kept raw, and normalised (``VecNormalize``) when sampled.
    """

    def __init__(
        self,
        observation_space: gym.spaces.Box,
        action_space: ActionSpace,
        *,
        n_envs: int,
        real_rows: int,
        imagined_rows: int,
        real_share: float,
        generator: torch.Generator,
        n_steps: int = 1,
        gamma: float = 0.99,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(real_rows, observation_space, action_space, device=device, n_envs=n_envs)
        self.real_share, self.generator, self._actions = real_share, generator, action_space
        self.n_steps, self.gamma = n_steps, gamma
        #: Who acts in the next step of each environment; whoever acts says so.
        self.actor = torch.zeros(n_envs)
        obs, action = torch.zeros(observation_space.shape), torch.zeros(self.action_dim)
        number = torch.zeros(())
        step = dict(zip(STEP, (obs, action, obs, number, number), strict=True))
        integer = torch.zeros((), dtype=torch.int64)
        record = {"truncated": number.bool(), "episode": integer, "t": integer, "planned": number}
        self.real = Ring(real_rows, step | record, device)
        self.imagined = Ring(imagined_rows, step, device)
        #: Rows of earlier tasks: the columns of ``STEP``, and of ``key`` by which they were drawn.
        self.earlier = {
            name: row.new_zeros((0, *row.shape), device=device) for name, row in step.items()
        }
        self.earlier["key"] = torch.zeros(0, dtype=torch.float64, device=device)
        #: The part of a batch's real rows that is drawn from these.
        self.earlier_share = 0.0
        self.episodes, self._begun = 0, False
        self._changes = Changes()
        #: What the last episode of each environment ended with; None once it is known that these stay.
        self._ends: dict[int, Array] | None = {}
        self._overwritten = 0
        self._episode = torch.arange(n_envs)
        self._t = torch.zeros(n_envs, dtype=torch.int64)

    def size(self) -> int:
        """Real rows."""
        return len(self.real)

    def __len__(self) -> int:
        """Real rows, those included that were overwritten."""
        return self.real.written

    @property
    def starting(self) -> npt.NDArray[np.bool_]:
        """[n_envs]: whether the next step is the first of an episode."""
        return (self._t == 0).numpy()

    @property
    def next_places(self) -> list[tuple[int, int]]:
        """The episode and the time step of each environment's next step."""
        return list(zip(self._episode.tolist(), self._t.tolist(), strict=True))

    def standardising_rows(self) -> tuple[Array, Array]:
        """Raw observations [N, O] and rewards [N], for a learner that finds their scales by them."""
        rows = self.real.stored()
        return rows["obs"].cpu().numpy(), rows["reward"].cpu().numpy()

    def reset(self) -> None:
        """Forget all rows."""
        super().reset()
        self.real.written = self.imagined.written = 0

    def next_task(self, capacity: int, share: float) -> None:
        """Begin anew, for another task; at most ``capacity`` of all rows of the tasks so far stay, each as likely as
        any other, and are from now on this ``share`` of a batch's real rows."""
        # A row keeps its key: those with the lowest of all that were drawn are a uniform sample of them.
        key = torch.rand(len(self.real), dtype=torch.float64, generator=self.generator)
        key = key.to(self.device)
        new = {name: column for name, column in self.real.stored().items() if name in STEP}
        together = {n: torch.cat([self.earlier[n], c]) for n, c in (new | {"key": key}).items()}
        kept = together["key"].argsort()[:capacity]
        self.earlier = {name: column[kept] for name, column in together.items()}
        self.earlier_share = share if len(kept) else 0.0
        self.reset()

    def start_episodes(self) -> None:
        """The environments were reset: the next step of each is the first of an episode."""
        self._episode = self.episodes + torch.arange(self.n_envs)
        self._t = torch.zeros(self.n_envs, dtype=torch.int64)
        self.episodes += self.n_envs
        self._begun = True
        if self._ends:
            self._ends = {}

    def add(
        self,
        obs: Array,
        next_obs: Array,
        action: Array,
        reward: Array,
        done: Array,
        infos: list[dict[str, Any]],
    ) -> None:
        """A step of every environment. Raises InvalidInputError for NaN or infinity in it."""
        if not self._begun:
            self.start_episodes()
        next_obs = np.array(next_obs)
        for i in range(self.n_envs):
            next_obs[i] = infos[i].get(RAW_END, next_obs[i])
            where = (int(self._episode[i]), int(self._t[i]))
            require_finite("observation", np.stack([obs[i], next_obs[i]]), *where)
            require_finite("reward", reward[i], *where)
        if self._changes.steps < _WATCHED:
            self._watch_rounding(obs, next_obs)
        dones = torch.from_numpy(np.asarray(done, dtype=np.bool_))
        if self._ends is not None:
            self._watch_ends(self._ends, obs, next_obs, np.flatnonzero(done))
        cut = torch.tensor([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        self.real.add(
            {
                "obs": _float(obs),
                "next_obs": _float(next_obs),
                "action": _float(action).reshape(self.n_envs, self.action_dim),
                "reward": _float(reward),
                "ended": (dones & ~cut).float(),
                "truncated": dones & cut,
                "episode": self._episode,
                "t": self._t,
                "planned": self.actor,
            }
        )
        self._t = torch.where(dones, 0, self._t + 1)
        fresh = int(dones.sum())
        self._episode = self._episode.clone()
        self._episode[dones] = self.episodes + torch.arange(fresh)
        self.episodes += fresh

    def _watch_ends(
        self, ends: dict[int, Array], obs: Array, next_obs: Array, over: npt.NDArray[Any]
    ) -> None:
        """Warns where the first episodes all ended in the very state that the next one begins in."""
        for i in [i for i in ends if self._t[i] == 0]:
            if not np.array_equal(ends.pop(i), obs[i]):
                self._ends = None
                return
            self._overwritten += 1
        ends.update((i, next_obs[i].copy()) for i in over.tolist())
        if self._overwritten >= _ENDS:
            self._ends = None
            warnings.warn(
                f"each of the first {_ENDS} episodes ended with the observation that the next one begins with: "
                "if the environment returns one array again and again, its reset() writes over the end; let it "
                "return a copy",
                stacklevel=3,
            )

    def _watch_rounding(self, obs: Array, next_obs: Array) -> None:
        """Warns of observations whose changes are lost here, once, after the first steps."""
        self._changes.add(obs, next_obs)
        if self._changes.steps >= _WATCHED and len(lost := self._changes.lost()):
            warnings.warn(
                f"observations {lost.tolist()} change by less than float32 can tell at their size, and an "
                "agent works in float32: subtract a constant from them "
                "(gymnasium.wrappers.TransformObservation)",
                stacklevel=3,
            )

    def extend(self, transitions: Transitions) -> None:
        """Append steps recorded elsewhere, as episodes of their own.

        Raises InvalidInputError if they do not fit the spaces.
        """
        found = transitions.obs.shape[1]
        if found != self.obs_shape[0]:
            raise InvalidInputError(
                f"transitions: observations have width {found}, those of the environment "
                f"{self.obs_shape[0]}; give data of this environment"
            )
        require_recorded(self._actions, transitions.action)
        numbers, episode = np.unique(transitions.episode, return_inverse=True)
        self.real.add(
            {
                "obs": torch.from_numpy(transitions.obs),
                "next_obs": torch.from_numpy(transitions.next_obs),
                "action": stored_action(self._actions, torch.from_numpy(transitions.action)),
                "reward": torch.from_numpy(transitions.reward),
                "ended": torch.from_numpy(transitions.terminated).float(),
                "truncated": torch.from_numpy(transitions.truncated),
                "episode": torch.from_numpy(episode.astype(np.int64)) + self.episodes,
                "t": torch.from_numpy(transitions.t),
                "planned": torch.zeros(len(transitions)),
            }
        )
        self.episodes += len(numbers)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Samples:
        """``real_share`` of the rows real, rounded, the others imagined."""
        imagined = 0
        if len(self.imagined) and self.real_share < 1.0:
            imagined = batch_size - round(self.real_share * batch_size)

        def worth(reward: Tensor) -> Tensor:
            if env is None:
                return reward
            return _float(env.normalize_reward(reward.cpu().numpy())).to(self.device)

        real = batch_size - imagined
        earlier = round(self.earlier_share * real)
        parts = [self._real(real - earlier, worth)] if earlier < real else []
        if earlier:
            kept = torch.randint(len(self.earlier["key"]), (earlier,), generator=self.generator)
            kept = kept.to(self.device)
            columns = [self.earlier[name][kept] for name in STEP]
            parts.append(self._of_one_step(columns, worth))
        if imagined:
            parts.append(self._of_one_step(self.imagined.draw(imagined, self.generator), worth))
        obs, action, next_obs, reward, ended, discount, planned = (
            torch.cat(column) for column in zip(*parts, strict=True)
        )
        if env is not None:
            obs, next_obs = (
                _float(env.normalize_obs(part.cpu().numpy())).to(self.device)
                for part in (obs, next_obs)
            )
        ended, reward, discount, planned = (
            column.unsqueeze(1) for column in (ended, reward, discount, planned)
        )
        discounts = None if self.n_steps == 1 else discount
        return Samples(obs, action, next_obs, ended, reward, discounts, planned)

    def _of_one_step(
        self, step: Sequence[Tensor], worth: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """``step``, the columns of ``STEP``, as ``_real`` gives them: nobody planned, and what follows is not known."""
        obs, action, next_obs, reward, ended = step
        count = len(reward)
        discount, planned = reward.new_full((count,), self.gamma), reward.new_zeros(count)
        return [obs, action, next_obs, worth(reward), ended, discount, planned]

    def _real(self, count: int, worth: Callable[[Tensor], Tensor]) -> list[Tensor]:
        """Real rows, each the start of at most ``n_steps`` steps of its episode (Sutton 1988): the
        columns of ``STEP``, the discount of what follows, and whether the first step was planned.

        ``worth`` turns raw rewards into the learner's, each by itself: they may be clipped."""
        index = self.real.places(count, self.generator)
        obs, action, next_obs, reward, ended, planned = self.real.at(index, (*STEP, "planned"))
        discount, reward = reward.new_full((count,), self.gamma), worth(reward)
        going = ended == 0.0
        for _ in range(self.n_steps - 1):
            index, going = self._after(index, going)
            further, payment, end = self.real.at(index, ("next_obs", "reward", "ended"))
            next_obs = torch.where(going[:, None], further, next_obs)
            reward = reward + torch.where(going, discount * worth(payment), 0.0)
            ended = torch.where(going, end, ended)
            discount = torch.where(going, discount * self.gamma, discount)
            going = going & (end == 0.0)
        return [obs, action, next_obs, reward, ended, discount, (planned == PLAN).float()]

    def _after(self, index: Tensor, going: Tensor) -> tuple[Tensor, Tensor]:
        """The row of the next time step of each of ``index`` [n], and whether there is one."""
        ring = self.real
        after = (index + self.n_envs) % ring.capacity
        newest = (ring.written - 1 - torch.arange(self.n_envs, device=index.device)) % ring.capacity
        there = (after < len(ring)) & ~torch.isin(index, newest)
        after = torch.where(there, after, index)
        episode, t = ring.columns["episode"], ring.columns["t"]
        follows = (episode[after] == episode[index]) & (t[after] == t[index] + 1)
        return after, going & there & follows

    def transitions(self) -> Transitions:
        """The real steps, grouped by episode; actions as models see them.

        Raises InvalidInputError if there are none.
        """
        if not len(self.real):
            raise InvalidInputError("no steps were recorded; collect some first")
        return self._record({name: column.cpu() for name, column in self.real.stored().items()})

    def newest(self, count: int) -> tuple[Transitions, npt.NDArray[Any]]:
        """The last ``count`` real steps, grouped by episode, and who acted [N] (``PLAN`` …).

        Raises InvalidInputError if there are not so many.
        """
        if not 1 <= count <= len(self.real):
            raise InvalidInputError(
                f"newest: count must be from 1 to {len(self.real)}, the steps there are; got {count}"
            )
        index = (self.real.written - count + torch.arange(count)) % self.real.capacity
        index = index.to(self.device)
        rows = {name: column[index].cpu() for name, column in self.real.columns.items()}
        return self._record(rows), rows["planned"].numpy()[_order(rows)]

    def _record(self, rows: dict[str, Tensor]) -> Transitions:
        order = _order(rows)
        found = {name: rows[name].numpy()[order] for name in (*STEP, *_RECORD)}
        found["terminated"] = found.pop("ended") > 0.0
        action = model_action(self._actions, torch.from_numpy(found["action"]))
        found["action"] = action.numpy()
        return Transitions(**found)

    def _get_samples(self, batch_inds: Array, env: VecNormalize | None = None) -> Any:
        raise NotImplementedError("rows are drawn by sample() alone")


def _order(rows: Mapping[str, Tensor]) -> npt.NDArray[np.intp]:
    """By episode and time step: a ring that went round begins in its middle, and environments stepped side
    by side take turns."""
    return np.lexsort((rows["t"].numpy(), rows["episode"].numpy()))


def action_ends(space: gym.spaces.Box, device: torch.device) -> tuple[Tensor, Tensor]:
    """The lowest and the highest action, [A] both."""
    return _float(space.low).to(device), _float(space.high).to(device)


def model_action(
    space: ActionSpace, stored: Tensor, ends: tuple[Tensor, Tensor] | None = None
) -> Tensor:
    """Actions [B, ·] as SB3 stores them -> vectors [B, A] in raw units, as models and rules see them. ``ends``: of
    ``action_ends``, where they are at hand."""
    if isinstance(space, gym.spaces.Discrete):
        choice = (stored.flatten() - int(space.start)).long()
        return torch.nn.functional.one_hot(choice, int(space.n)).float()
    low, high = action_ends(space, stored.device) if ends is None else ends
    return low + 0.5 * (stored + 1.0) * (high - low)


def stored_action(space: ActionSpace, vectors: Tensor) -> Tensor:
    """The inverse of ``model_action``."""
    if isinstance(space, gym.spaces.Discrete):
        return (vectors.argmax(-1, keepdim=True) + int(space.start)).float()
    low, high = action_ends(space, vectors.device)
    return 2.0 * (vectors - low) / (high - low) - 1.0


def _float(value: Any) -> Tensor:
    return torch.from_numpy(np.array(value, dtype=np.float32))
