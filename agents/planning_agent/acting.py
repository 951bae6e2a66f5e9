"""How the agent acts: by plan, by its policy, or by the one that does better, in ``predict`` and while it learns."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from torch import Tensor

from agents.common.experience import RandomBehaviour, require_finite
from agents.common.spaces import checked_observation, from_vectors
from agents.planning_agent.base_agent import AgentParts
from agents.planning_agent.plans import Memory
from agents.planning_agent.replay import GUESS, PLAN, POLICY
from agents.planning_agent.turns import REMEMBERED, TURN, Record, draw_turn, record_of
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.threads import few_threads

Array = npt.NDArray[Any]


class ActingAgent(AgentParts):
    """The parts of a ``PlanningAgent``, and how they act."""

    def _hold(self, kind: type[OffPolicyAlgorithm]) -> None:
        super()._hold(kind)
        self._better: bool | None = None
        # SB3's collection loop asks this for every action.
        self._act_as_learner = self.algorithm._sample_action
        self.algorithm._sample_action = self._sample_action  # type: ignore[method-assign]

    def predict(
        self,
        observation: Array | dict[str, Array],
        state: Memory | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
        *,
        plan: bool | None = None,
    ) -> tuple[Array, Memory | None]:
        """The action [A] or [S, A] at ``observation`` [O] or [S, O] (of discrete actions their number,
        or [S]), and the planner's state.

        ``plan``: act by plan (True) or by the policy alone (False); None: by the one that does better
        (``acts_by_plan``), or as the agent is made.
        By plan, the state carries plan and random generator from step to step, as a recurrent policy
        carries its memory; rows where ``episode_start`` is set begin anew; with the same state the same
        action comes out. Unless ``deterministic``, there is exploration, of the policy alone or without a
        state anew at each call, in a sequence that the agent's seed decides. While there is no model, in the
        first steps of ``learn``, planned actions are uniform. Around a VecNormalize, observations are
        normalised, as SB3 gives them.

        Raises InvalidInputError for another shape, NaN or infinity, or before the first ``learn``.
        """
        checked, single = checked_observation(self.observation_space, observation)
        if plan is None:
            plan = self.acts_by_plan
        fresh = not deterministic and (state is None or not plan)
        with few_threads(self.widest), self._exploring if fresh else nullcontext():
            if not plan:
                return self.algorithm.predict(observation, None, None, deterministic)
            if self.settings.planner is None:
                raise InvalidInputError("plan=True: this agent has no planner; leave it out")
            # At a callback of the first step, SB3 has counted it but not yet stored it.
            if self.model is None and not max(len(self.experience), self.num_timesteps):
                raise InvalidInputError("the agent has no model yet; call learn() or load() first")
            obs = torch.from_numpy(self._raw(checked))
            if state is None:
                seed = int(torch.randint(2**62, ())) if fresh else self.seed
                state = self.plans.fresh(self.settings, len(obs), seed)
            vectors, state = self._plan(obs, state, episode_start, explore=not deterministic)
        taken = from_vectors(self.action_space, vectors.numpy())
        return taken[0] if single else taken, state

    def _begin_stretch(self) -> None:
        """New episodes and, where actions are still random, other ones than before."""
        self.algorithm.learning_starts = self._random_steps
        seed = self.seed + self.experience.episodes
        self.env.seed(seed)
        self.algorithm.action_space.seed(seed % 2**32)
        self.algorithm.set_env(self.env, force_reset=True)
        self.experience.start_episodes()
        if self.settings.planner is None:
            return
        noise_seed = int(torch.randint(2**62, (), generator=self.generator).item())
        self._memory = self.plans.fresh(self.settings, self.n_envs, noise_seed)
        self._behaviours = [
            RandomBehaviour(self.action_space, self.noise) for _ in range(self.n_envs)
        ]
        self._actors = np.full(self.n_envs, PLAN if self._always_plans else POLICY)

    def _sample_action(
        self, learning_starts: int, action_noise: ActionNoise | None = None, n_envs: int = 1
    ) -> tuple[Array, Array]:
        """What SB3's loop asks for: the environments' actions, and as the replay stores them."""
        seen: Any = self.algorithm._last_obs
        normalised = self.get_vec_normalize_env() is not None
        raw: Any = self.algorithm._last_original_obs if normalised else seen
        raw = np.array(raw, dtype=np.float32)
        for i in np.flatnonzero(self.experience.starting):
            require_finite("observation", raw[i], self.experience.next_places[i][0], -1)
        if self.settings.planner is None:
            return self._act_as_learner(learning_starts, action_noise, n_envs)
        if self.model is None:
            places = zip(self._behaviours, raw, self.experience.next_places, strict=True)
            action = np.stack([behave(obs, t) for behave, obs, (_, t) in places])
            self.experience.actor = torch.full((n_envs,), POLICY)
        else:
            action = self._learning_action(raw, action_noise)
        if isinstance(self.action_space, gym.spaces.Box):
            # A copy: the environment may write into what it is given.
            return action, np.array(self.algorithm.policy.scale_action(action))
        return action, action.copy()

    def _learning_action(self, raw: Array, action_noise: ActionNoise | None) -> Array:
        """By plan, or where it is the policy's turn as its algorithm explores, or as it guesses best."""
        starting = self.experience.starting
        turn = np.array([t % TURN == 0 for _, t in self.experience.next_places])
        if turn.any():
            before, self._actors = self._actors, np.where(turn, self._drawn(), self._actors)
            # What was planned before another's turn is out of date.
            starting = starting | ((self._actors == PLAN) & (before != PLAN))
        acts = {who: self._actors == who for who in (POLICY, PLAN, GUESS)}
        found: dict[float, Array] = {}
        if acts[POLICY].any():
            found[POLICY], _ = self._act_as_learner(0, action_noise, self.n_envs)
        if acts[GUESS].any():
            seen: Any = self.algorithm._last_obs
            found[GUESS], _ = self.algorithm.predict(seen, deterministic=True)
        if acts[PLAN].any():
            vectors, self._memory = self._plan(torch.from_numpy(raw), self._memory, starting, True)
            found[PLAN] = from_vectors(self.action_space, vectors.numpy())
        action = np.array(next(iter(found.values())))
        for who, theirs in found.items():
            action[acts[who]] = theirs[acts[who]]
        self.experience.actor = torch.from_numpy(self._actors.astype(np.float32))
        return action

    @property
    def record(self) -> Record:
        """How plan and policy have done in their latest turns, by the critics of now."""
        count = min(self.num_timesteps - self._random_steps, REMEMBERED, len(self.experience.real))
        if count <= 0 or not self.held.exists:
            return Record.empty()
        return record_of(*self.experience.newest(count), self.held)

    @property
    def acts_by_plan(self) -> bool:
        """Whether ``predict`` plans where it is not told."""
        share = self.settings.plan_share
        if self.settings.planner is None or (share == 0.0 and self.held.exists):
            return False
        if share != "auto" or not self.held.exists:
            return True
        if self._better is None:
            self._better = self.record.plan_is_better
        return self._better

    @property
    def _random_steps(self) -> int:
        """How many steps come before the first that is not random: none where a policy was learned offline."""
        return 0 if self.progress.offline_updates > 0 else self.settings.learning_starts

    @property
    def _always_plans(self) -> bool:
        return self.settings.plan_share == 1.0 or not self.held.exists

    def _drawn(self) -> Array:
        """Who acts next, in each environment."""
        share = self.settings.plan_share
        if self._always_plans:
            return np.full(self.n_envs, PLAN)
        if share != "auto":
            return np.where(self.noise.random(self.n_envs) < share, PLAN, POLICY)
        record = self.record
        self._better = record.plan_is_better
        for name, worth in vars(record).items():
            if len(worth):
                self.logger.record(f"health/{name}_advantage", float(worth.mean()))
        return np.array([draw_turn(self.noise) for _ in range(self.n_envs)])

    def _plan(
        self, obs: Tensor, memory: Memory, starting: Array | None, explore: bool
    ) -> tuple[Tensor, Memory]:
        return self.plans.act(self.settings, self.model, self.value, obs, memory, starting, explore)

    def _raw(self, obs: Array) -> Array:
        """Observations in raw units, of those that SB3 gives."""
        normalised = self.get_vec_normalize_env()
        if normalised is None:
            return obs
        if normalised.norm_obs and (np.abs(obs) >= normalised.clip_obs).any():
            warnings.warn(
                f"the VecNormalize has clipped an observation at {normalised.clip_obs:g}: plans begin there and "
                "not where the environment is; make it with a larger clip_obs",
                stacklevel=3,
            )
        return np.asarray(normalised.unnormalize_obs(obs), dtype=np.float32)

    def act_in_imagination(self, obs: Tensor) -> Tensor:
        """The present policy's actions at raw ``obs`` [B, O], as the replay stores them."""
        seen: Any = obs.cpu().numpy()
        if np.issubdtype(self.observation_space.dtype, np.floating):
            seen = seen.astype(self.observation_space.dtype)
        normalised = self.get_vec_normalize_env()
        if normalised is not None:
            seen = normalised.normalize_obs(seen)
        space = self.action_space
        if isinstance(self.algorithm, DQN) and isinstance(space, gym.spaces.Discrete):
            # SB3 would draw once for all rows whether they explore.
            greedy, _ = self.algorithm.predict(seen, deterministic=True)
            shape, own = (len(obs),), self.generator
            choice = torch.randint(int(space.n), shape, generator=own)
            explores = torch.rand(shape, generator=own) < self.algorithm.exploration_rate
            taken = torch.where(explores, choice, torch.from_numpy(greedy)).float().unsqueeze(1)
            return taken.to(obs.device)
        action, _ = self.algorithm.predict(seen, deterministic=False)
        if isinstance(space, gym.spaces.Box):
            action = self.algorithm.policy.scale_action(action)
        stored = torch.from_numpy(np.asarray(action, dtype=np.float32)).reshape(len(obs), -1)
        return stored.to(obs.device)
