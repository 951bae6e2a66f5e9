"""Model-predictive control: learn a dynamics model, plan in it at every step, refit as data comes.

The habits of Stable-Baselines3: learn, predict, save, load; its ``evaluate_policy`` and callbacks
work unchanged. The loop is that of PETS (Chua et al. 2018, algorithm 1).
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecNormalize,
    unwrap_vec_normalize,
)
from tqdm.auto import tqdm

from agents.common.callbacks import as_callback, open_logger
from agents.common.device import Moved, planning_device
from agents.common.experience import RandomBehaviour, Recorder, require_finite
from agents.common.first_model import require_enough_for_a_model
from agents.common.randomness import require_seed
from agents.common.saved import spaces_of
from agents.common.spaces import (
    action_set,
    checked_observation,
    from_vectors,
    require_actions,
    require_box,
    to_vector,
    vector_env,
)
from agents.mpc_checkpoint import Snapshot, read_snapshot, write_snapshot
from agents.mpc_settings import MPCSettings
from agents.planners.base import PlannerState, Score
from agents.planners.replanning import replan
from agents.planning_agent.terminal_value import Value, fit_value
from mbrl_bilevel.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.errors import CheckpointError, InvalidInputError, require_count
from mbrl_bilevel.methods import get_method
from mbrl_bilevel.model_env import StepModel, imagined_returns
from mbrl_bilevel.types import FitResult, Rule, Transitions, require_rules

__all__ = ["MPC", "MPCSettings"]

Array = npt.NDArray[Any]


class MPC:
    """A planning agent on a learned dynamics model.

    ``env`` is a Gymnasium environment, or an SB3 vector environment, with Box observations [O] and
    Box actions [A] of finite bounds or Discrete ones, which models and rules see one-hot. ``termination`` and ``reward`` are known rules, batched over
    (obs, action, next_obs); without one the model learns it. ``model`` may be set to another one to
    plan in, the true simulator for instance; ``refit`` puts a fitted one in its place.

    ``device``: where plans are imagined; "auto" is CUDA where there is one, as in SB3. There a copy of
    the model does it, made when ``model`` is set, and rules get tensors there. Fits stay on the CPU, and so
    do all draws, which are the same on both.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any] | VecEnv,
        settings: MPCSettings | None = None,
        *,
        termination: Rule | None = None,
        reward: Rule | None = None,
        seed: int = 0,
        device: torch.device | str = "auto",
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
    ) -> None:
        require_seed(seed)
        require_rules(termination, reward)
        self.settings = settings or MPCSettings()
        self.env = vector_env(env)
        self.action_space = require_actions(self.env.action_space)
        self.observation_space = require_box(self.env.observation_space, "observation")
        self._actions = action_set(self.action_space)
        self.termination, self.reward, self.seed = termination, reward, seed
        self.device = planning_device(device)
        self._moved: Moved | None = None
        self.verbose = verbose
        self.logger: Logger = open_logger(tensorboard_log, verbose)
        self.model: StepModel | None = None
        self.value: Value | None = None
        self.last_fit: FitResult | None = None
        self.experience = Recorder()
        self.num_timesteps = 0
        self._episodes = 0
        self._fitted_on = 0
        self._first_planned: int | None = None
        self._generator = torch.Generator().manual_seed(seed)
        self._noise = np.random.default_rng([seed, 1])

    def get_env(self) -> VecEnv:
        """The training environment, as a vector environment (SB3's callbacks ask for it)."""
        return self.env

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """The VecNormalize around the training environment, if any (SB3's callbacks ask for it)."""
        return unwrap_vec_normalize(self.env)

    def dump_logs(self) -> None:
        """Write out what was logged since the last time (SB3's callbacks ask for it)."""
        self.logger.dump(self.num_timesteps)

    @property
    def n_envs(self) -> int:
        """How many environments are stepped side by side."""
        return self.env.num_envs

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = False,
    ) -> Self:
        """Act for ``total_timesteps`` real steps, refitting the model on the way.

        Called again, it goes on with the experience gathered so far. Warns if it ends before
        ``learning_starts``, without a model. Raises InvalidInputError if the environment returns
        NaN, or ``learning_starts`` is too early for a model; DivergedError if none can be fitted.
        """
        require_count("total_timesteps", total_timesteps, 10**12)
        if self.model is None:
            require_enough_for_a_model(self.settings, len(self.experience))
        if reset_num_timesteps:
            self.num_timesteps = 0
        # As in SB3, callbacks see the count at which learning will end.
        total_timesteps += self.num_timesteps
        hook = as_callback(callback)
        hook.init_callback(self)  # type: ignore[arg-type]
        self._total_timesteps = total_timesteps
        self._num_timesteps_at_start = self.num_timesteps
        hook.on_training_start(locals(), globals())
        run = _Run(self)
        # A fit that was interrupted is made up for.
        self._refit_if_due()
        with tqdm(
            total=total_timesteps,
            initial=self.num_timesteps,
            desc="learn",
            disable=not progress_bar,
        ) as bar:
            while self.num_timesteps < total_timesteps:
                run.step()
                self._refit_if_due()
                bar.update(self.n_envs)
                hook.update_locals(locals())
                if not hook.on_step():
                    break
        hook.on_training_end()
        if self.model is None:
            warnings.warn(
                f"learn() ended after {len(self.experience)} steps, before learning_starts="
                f"{self.settings.learning_starts}: there is no model yet, and predict() acts at "
                "random; learn for longer",
                stacklevel=2,
            )
        return self

    def predict(
        self,
        observation: Array | dict[str, Array],
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, tuple[Array, ...]]:
        """Plan from ``observation`` [O] or [S, O]: the action [A] or [S, A] (of discrete actions their
        number, or [S]), and the planner's state.

        The state carries the plan and the random generator from step to step, as a recurrent policy
        carries its memory; rows where ``episode_start`` is set begin anew. With the same inputs the
        same action comes out. Unless ``deterministic``, there is exploration.

        During the first steps of ``learn`` there is no model: actions are uniform, as they are in
        learning. Raises InvalidInputError for a wrong shape, or before the first ``learn``.
        """
        checked, single = checked_observation(self.observation_space, observation)
        obs = torch.from_numpy(checked)
        if state is None:
            state = self._fresh_state(len(obs), self.seed)
        mean, elites, valid, age, random = (torch.from_numpy(part) for part in state)
        if len(mean) != len(obs):
            raise InvalidInputError(
                f"state is of {len(mean)} observations but {len(obs)} came; "
                "pass the state that predict returned for them, or None"
            )
        memory = PlannerState(mean, elites, valid, self._actions)
        generator = torch.Generator()
        generator.set_state(random)
        if episode_start is not None:
            mask = np.atleast_1d(np.asarray(episode_start, dtype=np.bool_))
            memory = self.settings.planner.reset(memory, mask)
            age = torch.where(torch.from_numpy(mask), 0, age)
        action, memory, age = self._act(obs, memory, age, generator)
        if not deterministic:
            action = self._actions.explored(action, self.settings.exploration, generator)
        taken = from_vectors(self.action_space, action.numpy())
        return taken[0] if single else taken, _state(memory, age, generator)

    def save(self, path: str | Path) -> None:
        """Write model, experience and settings to one file; rules are code, and not saved.

        Raises InvalidInputError for a model that is not a learned one.
        """
        model = self.model
        if model is not None and not isinstance(model, DynamicsModel):
            raise InvalidInputError(
                f"save: model is a {type(model).__name__}, and only a learned one fits in a file; "
                "set model to None before"
            )
        write_snapshot(
            path,
            Snapshot(
                settings=self.settings,
                spaces=spaces_of(self.env),
                rules=tuple(name for name in ("termination", "reward") if getattr(self, name)),
                seed=self.seed,
                num_timesteps=self.num_timesteps,
                episodes=self._episodes,
                fitted_on=self._fitted_on,
                first_planned=self._first_planned,
                generator=self._generator.get_state(),
                noise=dict(self._noise.bit_generator.state),
                experience=self.experience.transitions() if len(self.experience) else None,
                model=model,
                value=self.value,
            ),
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: gym.Env[Any, Any] | VecEnv,
        *,
        termination: Rule | None = None,
        reward: Rule | None = None,
        device: torch.device | str = "auto",
    ) -> Self:
        """The agent in ``path``, for ``env``; rules it was trained with are asked for again.

        Raises CheckpointError if the file is damaged, of other spaces, or a rule is missing; warns if it
        is of another environment with the same spaces.
        """
        agent = cls(env, termination=termination, reward=reward, device=device)
        saved = read_snapshot(path, spaces_of(agent.env), termination, reward)
        agent.settings, agent.seed = saved.settings, saved.seed
        agent.model, agent.value = saved.model, saved.value
        agent.num_timesteps, agent._episodes = saved.num_timesteps, saved.episodes
        agent._fitted_on, agent._first_planned = saved.fitted_on, saved.first_planned
        try:
            agent._generator.set_state(saved.generator)
            agent._noise.bit_generator.state = saved.noise
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointError(
                f"checkpoint {path}: its random states are damaged: {error}"
            ) from None
        if saved.experience is not None:
            agent.experience.extend(saved.experience)
        return agent

    def refit(self) -> FitResult:
        """Fit a fresh model, and where episodes end a fresh value, to all experience so far."""
        experience = self.experience.transitions()
        self.value = self._fit_value(experience)
        model, result = fit_dynamics(
            experience,
            get_method(self.settings.method),
            generator=self._generator,
            members=self.settings.members,
            hidden=self.settings.hidden,
            schedule=self.settings.schedule,
            termination=self.termination,
            reward=self.reward,
        )
        elites = self.settings.elites
        self.model = model if elites is None else model.elites(result.criterion, elites)
        self.last_fit, self._fitted_on = result, len(self.experience)
        self.logger.record("model/held_out", float(np.mean(result.criterion)))
        self.logger.record("model/fit_steps", result.steps)
        for name, value in result.outer.items():
            self.logger.record(f"model/{name}", value)
        self.logger.dump(self.num_timesteps)
        return result

    def _fit_value(self, experience: Transitions) -> Value | None:
        """Of the agent's own planning, once there is enough of it: random steps, which soon fail
        from where planning goes on, would say that being there is bad."""
        settings = self.settings.value
        if settings is None or not experience.terminated.any():
            return None
        if self._first_planned is None:
            # The next episode is the first without a random step.
            self._first_planned = self._episodes
        planned = experience[experience.episode >= self._first_planned]
        if len(planned) >= settings.rows_needed() and planned.terminated.any():
            experience = planned
        return fit_value(experience, settings, self._generator)

    def _refit_if_due(self) -> None:
        first, every = self.settings.learning_starts, self.settings.refit_every
        steps = len(self.experience)
        # With several environments the count moves in strides: due when a multiple was crossed.
        crossed = (steps - first) // every > (self._fitted_on - first) // every
        if steps >= first and (self.model is None or crossed):
            self.refit()

    def _fresh_state(self, starts: int, seed: int) -> tuple[Array, ...]:
        memory = self.settings.planner.initial_state(starts, self._actions)
        age = torch.zeros(starts, dtype=torch.int64)
        return _state(memory, age, torch.Generator().manual_seed(seed))

    def _act(
        self,
        obs: torch.Tensor,
        memory: PlannerState,
        age: torch.Tensor,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, PlannerState, torch.Tensor]:
        if self.model is None:
            if len(self.experience) == 0:
                raise InvalidInputError("the agent has no model yet; call learn() or load() first")
            return memory.actions.uniform((len(obs),), generator), memory, age
        imagination = self.settings.imagination
        model, value = self._on_device(self.model)

        def score_of(rows: torch.Tensor) -> Score:
            return lambda actions: imagined_returns(
                model, obs[rows], actions, imagination, generator, value
            )

        settings = self.settings
        return replan(settings.planner, settings.replan_every, score_of, memory, age, generator)

    def _on_device(self, model: StepModel) -> tuple[StepModel, Value | None]:
        """Model and value where plans are imagined; moved there when one of them is another."""
        if self._moved is None or not self._moved.is_of(model, self.value):
            self._moved = Moved.to(self.device, model, self.value)
        return self._moved.there


class _Run:
    """One call of ``learn``: the environment's present state, and one real step at a time."""

    def __init__(self, agent: MPC) -> None:
        self.agent = agent
        # Another stretch of learning starts other episodes and draws other noise.
        agent.env.seed(agent.seed + agent._episodes)
        noise_seed = int(torch.randint(2**62, (), generator=agent._generator).item())
        self.plan = agent._fresh_state(agent.n_envs, noise_seed)
        self.obs = np.asarray(agent.env.reset())
        self.starts = np.ones(agent.n_envs, dtype=np.bool_)
        self.t = np.zeros(agent.n_envs, dtype=np.int64)
        self.episode = agent._episodes + np.arange(agent.n_envs)
        agent._episodes += agent.n_envs
        self.random = [
            RandomBehaviour(agent.action_space, agent._noise) for _ in range(agent.n_envs)
        ]
        self._require_finite_starts()

    def step(self) -> None:
        agent = self.agent
        action = self._action()
        stepped, rewards, dones, infos = agent.env.step(action)
        next_obs = np.asarray(stepped)
        for i, info in enumerate(infos):
            truncated = bool(dones[i] and info.get("TimeLimit.truncated", False))
            agent.experience.add(
                self.obs[i],
                to_vector(agent.action_space, action[i]),
                float(rewards[i]),
                info["terminal_observation"] if dones[i] else next_obs[i],
                terminated=bool(dones[i]) and not truncated,
                truncated=truncated,
                episode=int(self.episode[i]),
                t=int(self.t[i]),
            )
            self._log_episode(info)
            self.t[i] = 0 if dones[i] else self.t[i] + 1
            if dones[i]:
                self.episode[i] = agent._episodes
                agent._episodes += 1
        self.obs, self.starts = next_obs, np.asarray(dones, dtype=np.bool_)
        agent.num_timesteps += agent.n_envs
        self._require_finite_starts()

    def _action(self) -> Array:
        agent = self.agent
        if agent.model is None:
            pairs = zip(self.random, self.obs, self.t, strict=True)
            return np.stack([behave(obs, int(t)) for behave, obs, t in pairs])
        action, self.plan = agent.predict(self.obs, self.plan, self.starts, deterministic=False)
        return action

    def _require_finite_starts(self) -> None:
        for i in np.flatnonzero(self.starts):
            require_finite("observation", self.obs[i], int(self.episode[i]), -1)

    def _log_episode(self, info: dict[str, Any]) -> None:
        if "episode" in info:
            self.agent.logger.record("rollout/ep_rew", float(info["episode"]["r"]))
            self.agent.logger.record("rollout/ep_len", int(info["episode"]["l"]))
            self.agent.logger.dump(self.agent.num_timesteps)


def _state(
    memory: PlannerState, age: torch.Tensor, generator: torch.Generator
) -> tuple[Array, ...]:
    parts = (memory.mean, memory.elites, memory.elite_valid, age, generator.get_state())
    return tuple(part.numpy() for part in parts)
