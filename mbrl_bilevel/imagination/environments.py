"""A model as an environment: Gymnasium's Env and VectorEnv, and Stable-Baselines3's VecEnv.

Episodes start at given real states and are truncated at the horizon; termination and reward are the
model's. What trains in the real environment trains in here unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from stable_baselines3.common.vec_env import VecEnv

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.base.rounding import as_type
from mbrl_bilevel.imagination.bounds import seen_bounds
from mbrl_bilevel.imagination.branches import branch_step, draw_members
from mbrl_bilevel.imagination.particles import StepModel
from mbrl_bilevel.imagination.settings import Branching

Array = npt.NDArray[Any]
Box = gym.spaces.Box
Discrete = gym.spaces.Discrete


class _Episodes:
    """B imagined episodes side by side, each restarted when its caller says so.

    Every draw comes from ``generator``. Observations are kept within the observation space, and where real
    ones leave it within what was seen (``seen_bounds``), actions within the action space; the model sees a
    discrete one as a one-hot vector. Where the model gives NaN or infinity the episode is truncated in the
    state it was in, with reward 0.
    """

    def __init__(
        self,
        model: StepModel,
        starts: Transitions | Array,
        spaces: tuple[Box, Box | Discrete],
        horizon: int,
        branching: Branching | None,
        rows: int,
    ) -> None:
        if horizon < 1 or rows < 1:
            raise InvalidInputError(
                f"horizon and num_envs must be at least 1; got {horizon} and {rows}"
            )
        self.model, self.horizon, self.rows = model.frozen(), horizon, rows
        self.branching = branching or Branching()
        self.observation_space, self.action_space = spaces
        width = (model.obs_dim, model.action_dim)
        observation, action = spaces
        one_hot = isinstance(action, Discrete) and action.n == width[1]
        if observation.shape != (width[0],) or not (one_hot or action.shape == (width[1],)):
            raise InvalidInputError(
                f"observation_space and action_space must have shapes ({width[0]},) and ({width[1]},) "
                f"as the model has, or be Discrete({width[1]}) of actions; got {observation} and {action}"
            )
        states = (
            starts.obs.copy() if isinstance(starts, Transitions) else np.array(starts, np.float32)
        )
        if states.ndim != 2 or len(states) == 0 or states.shape[1] != width[0]:
            raise InvalidInputError(
                f"starts must be Transitions or an array [N, {width[0]}] with N >= 1; "
                f"got shape {states.shape}"
            )
        if not np.isfinite(states).all():
            raise InvalidInputError("starts holds NaN or infinity; leave these states out")
        self.starts = torch.from_numpy(states)
        seen = (states, starts.next_obs) if isinstance(starts, Transitions) else (states,)
        self.bounds = seen_bounds(spaces[0], *seen)
        self._low, self._high = (torch.from_numpy(end).to(self.starts.dtype) for end in self.bounds)
        self.generator, self._seeded = torch.Generator(), False
        self.obs = self.starts.new_zeros(rows, width[0])
        self.member = torch.zeros(rows, dtype=torch.long)
        self.t = np.zeros(rows, dtype=np.int64)

    def seed(self, random: np.random.Generator, *, anew: bool) -> None:
        """Seed all that follows by a draw of ``random``: the first time, and where ``anew``."""
        if anew or not self._seeded:
            self.generator.manual_seed(int(random.integers(2**62)))
            self._seeded = True

    def restart(self, mask: npt.NDArray[np.bool_]) -> None:
        """Begin anew in the rows of ``mask`` [B]."""
        count, where = int(mask.sum()), torch.from_numpy(mask)
        drawn = torch.randint(len(self.starts), (count,), generator=self.generator)
        self.obs[where] = self._inside(self.starts[drawn])
        self.member[where] = draw_members(self.model, count, self.generator)
        self.t[mask] = 0

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array]:
        """reward, terminated, truncated and uncertainty [B] of a step of all rows."""
        action = torch.from_numpy(self._vectors(actions))
        if self.branching.propagation == "ts1":
            self.member = draw_members(self.model, self.rows, self.generator)
        step = branch_step(
            self.model, self.obs, action, self.member, self.branching, self.generator
        )
        lost = step.diverged
        self.obs = torch.where(lost.unsqueeze(1), self.obs, self._inside(step.next_obs))
        reward = torch.where(lost, 0.0, step.reward)
        terminated = step.terminated & ~lost
        self.t += 1
        truncated = (self.t >= self.horizon) | lost.numpy()
        return (
            reward.double().numpy(),
            terminated.numpy(),
            truncated,
            step.uncertainty.double().numpy(),
        )

    def observations(self) -> Array:
        """[B, O], a copy, of the space's own type."""
        # Rounding to the space's type must not leave the bounds either.
        return np.clip(as_type(self.obs.numpy(), self.observation_space.dtype), *self.bounds)

    def holds(self, state: Array) -> bool:
        """Whether ``state`` may be observed: of the shape [O], and within the bounds."""
        found = as_type(state, self.observation_space.dtype)
        low, high = self.bounds
        return found.shape == low.shape and bool(((low <= found) & (found <= high)).all())

    def _vectors(self, actions: Array) -> Array:
        """Actions as the model sees them, [B, A]."""
        space, given = self.action_space, np.asarray(actions)
        expected = (self.rows, *space.shape)  # type: ignore[misc]
        if given.shape != expected:
            raise InvalidInputError(f"action must be {expected}; got {given.shape}")
        if isinstance(space, Discrete):
            choice = given - int(space.start)
            if given.dtype.kind not in "iu" or not ((choice >= 0) & (choice < int(space.n))).all():
                raise InvalidInputError(f"action must be a choice of {space}; got {given}")
            one_hot: Array = np.eye(int(space.n), dtype=np.float32)[choice]
            return one_hot
        given = given.astype(np.float32)
        if np.isnan(given).any():
            raise InvalidInputError("action holds NaN")
        # An action of integers is what the model has seen, whatever a policy makes of the space.
        inside = as_type(np.clip(given, space.low, space.high), space.dtype)
        return inside.astype(np.float32)

    def _inside(self, obs: torch.Tensor) -> torch.Tensor:
        return obs.clamp(self._low, self._high)


class ImaginedEnv(gym.Env[Array, Any]):
    """One imagined episode after another.

    ``action_space`` is a Box [A], or Discrete(A) where the model was fitted to one-hot actions, as agents fit theirs.
    ``starts`` are real states (all observations of Transitions, or an array [N, O]) from which
    ``reset`` draws; ``reset(options={"state": obs [O]})`` starts there. ``info["uncertainty"]`` is
    u(s, a) where ``branching`` has a penalty. Raises InvalidInputError for parts that do not fit the
    model.
    """

    def __init__(
        self,
        model: StepModel,
        starts: Transitions | Array,
        observation_space: Box,
        action_space: Box | Discrete,
        *,
        horizon: int,
        branching: Branching | None = None,
    ) -> None:
        self.metadata = {"render_modes": []}
        self.render_mode = None
        self.observation_space, self.action_space = observation_space, action_space
        spaces = (observation_space, action_space)
        self._episodes = _Episodes(model, starts, spaces, horizon, branching, 1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """A state drawn from ``starts``; with ``seed``, all that follows is reproducible."""
        super().reset(seed=seed)
        # Of np_random, so that Gymnasium's ways of seeding hold here too.
        self._episodes.seed(self.np_random, anew=seed is not None)
        self._episodes.restart(np.ones(1, dtype=np.bool_))
        if options is not None and "state" in options:
            state = np.array(options["state"], dtype=self._episodes.starts.numpy().dtype)
            if not self._episodes.holds(state):
                raise InvalidInputError(
                    f"options['state'] must lie in {self.observation_space}; got {state}"
                )
            self._episodes.obs = torch.from_numpy(state).unsqueeze(0)
        return self._episodes.observations()[0], {}

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """One imagined step. Raises InvalidInputError for an action of another shape, or NaN."""
        reward, terminated, truncated, doubt = self._episodes.step(np.asarray(action)[None])
        info = {"uncertainty": float(doubt[0])} if self._episodes.branching.penalty else {}
        obs = self._episodes.observations()[0]
        return obs, float(reward[0]), bool(terminated[0]), bool(truncated[0]), info


class ImaginedVectorEnv(gym.vector.VectorEnv[Array, Array, Array]):
    """``num_envs`` imagined episodes, one batched step of the model for all.

    The arguments are ImaginedEnv's; ``autoreset_mode`` is Gymnasium's: by default an episode that
    ended restarts at the next step, whose action is ignored. One ``seed`` serves all.
    """

    def __init__(
        self,
        model: StepModel,
        starts: Transitions | Array,
        observation_space: Box,
        action_space: Box | Discrete,
        *,
        num_envs: int,
        horizon: int,
        branching: Branching | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
    ) -> None:
        super().__init__()
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.num_envs = num_envs
        self.metadata = {"render_modes": [], "autoreset_mode": self.autoreset_mode}
        spaces = (observation_space, action_space)
        self._episodes = _Episodes(model, starts, spaces, horizon, branching, num_envs)
        self.single_observation_space, self.single_action_space = spaces
        self.observation_space = batch_space(observation_space, num_envs)
        self.action_space = batch_space(action_space, num_envs)
        self._ended = np.zeros(num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """All restart, or those of ``options["reset_mask"]`` [num_envs] bool."""
        super().reset(seed=seed)
        self._episodes.seed(self.np_random, anew=seed is not None)
        mask = np.ones(self.num_envs, dtype=np.bool_)
        if options is not None and "reset_mask" in options:
            mask = options["reset_mask"]
            if not (isinstance(mask, np.ndarray) and mask.dtype == np.bool_):
                raise InvalidInputError(f"options['reset_mask'] must be a bool array; got {mask!r}")
            if mask.shape != (self.num_envs,) or not mask.any():
                raise InvalidInputError(
                    f"options['reset_mask'] must be [{self.num_envs}] with a True in it; got {mask}"
                )
        self._episodes.restart(mask)
        self._ended[mask] = False
        return self._episodes.observations(), {}

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One step of all; see ``autoreset_mode`` for the episodes that ended.

        Under SAME_STEP ``infos["final_obs"]`` and ``infos["final_info"]`` hold what they ended with.
        """
        mode, episodes = self.autoreset_mode, self._episodes
        if mode is AutoresetMode.DISABLED and self._ended.any():
            raise InvalidInputError(
                "step: some episodes have ended; reset them with options={'reset_mask': ended}"
            )
        fresh = self._ended if mode is AutoresetMode.NEXT_STEP else np.zeros_like(self._ended)
        reward, terminated, truncated, doubt = episodes.step(actions)
        if fresh.any():
            episodes.restart(fresh)
            reward[fresh] = 0.0
            terminated, truncated = terminated & ~fresh, truncated & ~fresh
        ended = terminated | truncated
        infos: dict[str, Any] = {}
        restart = mode is AutoresetMode.SAME_STEP and ended.any()
        final = episodes.observations() if restart else None
        if restart:
            episodes.restart(ended)
        for i in range(self.num_envs):
            own = {"uncertainty": float(doubt[i])} if episodes.branching.penalty else {}
            if final is not None and ended[i]:
                infos = self._add_info(infos, {"final_obs": final[i], "final_info": own}, i)
            elif own and not fresh[i]:
                infos = self._add_info(infos, own, i)
        self._ended = ended
        return episodes.observations(), reward, terminated, truncated, infos


class ImaginedVecEnv(VecEnv):
    """The same for Stable-Baselines3: an episode that ends restarts in the same step.

    The arguments are ImaginedEnv's. ``infos[i]["terminal_observation"]`` is what an episode ended
    with, ``infos[i]["TimeLimit.truncated"]`` whether it was cut and not terminated. One ``seed``
    serves all; wrap it in SB3's VecMonitor for returns of whole episodes.
    """

    def __init__(
        self,
        model: StepModel,
        starts: Transitions | Array,
        observation_space: Box,
        action_space: Box | Discrete,
        *,
        num_envs: int,
        horizon: int,
        branching: Branching | None = None,
    ) -> None:
        if isinstance(action_space, Discrete) and action_space.start != 0:
            raise InvalidInputError(
                f"action_space: SB3 counts discrete actions from 0; got {action_space}: give "
                f"Discrete({action_space.n}), the model's choices in the same order"
            )
        spaces = (observation_space, action_space)
        self._episodes = _Episodes(model, starts, spaces, horizon, branching, num_envs)
        self._actions: Array | None = None
        self.render_mode = None
        super().__init__(num_envs, observation_space, action_space)

    def reset(self) -> Array:
        """All restart."""
        seed = self._seeds[0]
        self._episodes.seed(np.random.default_rng(seed), anew=seed is not None)
        self._reset_seeds()
        self._reset_options()
        self._episodes.restart(np.ones(self.num_envs, dtype=np.bool_))
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return self._episodes.observations()

    def step_async(self, actions: Array) -> None:
        """Take note of the actions [num_envs, A]."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> tuple[Array, Array, Array, list[dict[str, Any]]]:
        """The step of these actions."""
        if self._actions is None:
            raise InvalidInputError("step_wait: call step_async first")
        episodes = self._episodes
        reward, terminated, truncated, doubt = episodes.step(self._actions)
        self._actions = None
        dones = terminated | truncated
        infos: list[dict[str, Any]] = []
        for i in range(self.num_envs):
            info: dict[str, Any] = {"TimeLimit.truncated": bool(truncated[i] and not terminated[i])}
            if episodes.branching.penalty:
                info["uncertainty"] = float(doubt[i])
            infos.append(info)
        if dones.any():
            final = episodes.observations()
            for i in np.flatnonzero(dones).tolist():
                infos[i]["terminal_observation"] = final[i]
                self.reset_infos[i] = {}
            episodes.restart(dones)
        return episodes.observations(), reward.astype(np.float32), dones, infos

    def close(self) -> None:
        """Nothing to free."""

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """The attribute of this object, once for each environment asked for."""
        value = getattr(self, attr_name)
        return [value for _ in self._get_indices(indices)]

    def set_attr(
        self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None
    ) -> None:
        """Refused: all environments share one model and one set of attributes."""
        raise InvalidInputError(
            f"set_attr({attr_name!r}): imagined environments share all attributes; make another one"
        )

    def env_method(
        self,
        method_name: str,
        *method_args: Any,
        indices: int | Iterable[int] | None = None,
        **method_kwargs: Any,
    ) -> list[Any]:
        """Refused: there are no environments inside to call."""
        raise InvalidInputError(f"env_method({method_name!r}): imagined environments are one batch")

    def env_is_wrapped(
        self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None
    ) -> list[bool]:
        """False for each: there are no environments inside to wrap."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[Array | None]:
        """None for each: there is nothing to see."""
        return [None for _ in range(self.num_envs)]
