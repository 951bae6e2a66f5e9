"""Model-predictive control: learn a dynamics model, plan in it at every step, refit as data comes.

The habits of Stable-Baselines3: learn, predict, save, load; its ``evaluate_policy`` and callbacks
work unchanged. The loop is that of PETS (Chua et al. 2018, algorithm 1).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    ConvertCallback,
    ProgressBarCallback,
)
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from agents.collect import RandomBehaviour, Recorder
from agents.planners import CEM, ICEM, PlannerState
from mbrl_bilevel.checkpoint import load_checkpoint, save_checkpoint
from mbrl_bilevel.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.dynamics_checkpoint import model_from_checkpoint, model_to_checkpoint
from mbrl_bilevel.errors import CheckpointError, InvalidInputError
from mbrl_bilevel.fit import Schedule
from mbrl_bilevel.methods import get_method
from mbrl_bilevel.model_env import Imagination, imagined_returns
from mbrl_bilevel.types import FitResult, Rule, Transitions

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class MPCSettings:
    """What an MPC agent is made of.

    ``method``: how its model is trained (``mbrl_bilevel.methods``). ``learning_starts`` random
    steps come first; then the model is fitted from scratch every ``refit_every`` steps, to all
    experience. While learning, Gaussian noise of ``exploration`` half-ranges is added to actions.
    """

    method: str = "bilevel"
    planner: CEM = ICEM(horizon=20, population=80, iterations=4, elite_fraction=0.15)
    imagination: Imagination = Imagination()
    members: int = 5
    hidden: tuple[int, ...] = (200, 200)
    schedule: Schedule = Schedule(steps=1500)
    learning_starts: int = 250
    refit_every: int = 250
    exploration: float = 0.1

    def __post_init__(self) -> None:
        get_method(self.method)
        if self.learning_starts < 1 or self.refit_every < 1:
            raise InvalidInputError(
                "learning_starts and refit_every must be at least 1; "
                f"got {self.learning_starts} and {self.refit_every}"
            )
        if not 0.0 <= self.exploration < float("inf"):
            raise InvalidInputError(f"exploration must be >= 0; got {self.exploration}")


class MPC:
    """A planning agent on a learned dynamics model.

    ``env`` is a Gymnasium environment, or an SB3 vector environment, with Box observations [O] and
    Box actions [A] of finite bounds. ``termination`` and ``reward`` are known rules, batched over
    (obs, action, next_obs); without one the model learns it.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any] | VecEnv,
        settings: MPCSettings | None = None,
        *,
        termination: Rule | None = None,
        reward: Rule | None = None,
        seed: int = 0,
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
    ) -> None:
        self.settings = settings or MPCSettings()
        self.env: VecEnv = env if isinstance(env, VecEnv) else DummyVecEnv([lambda: env])
        self.action_space = _box(self.env.action_space, "action")
        self.observation_space = _box(self.env.observation_space, "observation")
        self.termination, self.reward, self.seed = termination, reward, seed
        self.verbose = verbose
        formats = (["stdout"] if verbose else []) + (["tensorboard"] if tensorboard_log else [])
        self.logger: Logger = configure(str(tensorboard_log) if tensorboard_log else None, formats)
        self.model: DynamicsModel | None = None
        self.last_fit: FitResult | None = None
        self.experience = Recorder()
        self.num_timesteps = 0
        self._episodes = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._noise = np.random.default_rng([seed, 1])

    def get_env(self) -> VecEnv:
        """The training environment, as a vector environment (SB3's callbacks ask for it)."""
        return self.env

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

        Called again, it goes on with the experience gathered so far. Raises InvalidInputError if
        the environment returns NaN, DivergedError if the model cannot be fitted.
        """
        if total_timesteps < 1:
            raise InvalidInputError(f"total_timesteps must be at least 1; got {total_timesteps}")
        if reset_num_timesteps:
            self.num_timesteps = 0
        hook = _hook(callback, progress_bar)
        hook.init_callback(self)  # type: ignore[arg-type]
        self._total_timesteps = total_timesteps + self.num_timesteps
        self._num_timesteps_at_start = self.num_timesteps
        hook.on_training_start(locals(), globals())
        run = _Run(self)
        while self.num_timesteps < self._total_timesteps:
            run.step()
            hook.update_locals(locals())
            if not hook.on_step():
                break
        hook.on_training_end()
        return self

    def predict(
        self,
        observation: Array | dict[str, Array],
        state: tuple[Array, ...] | None = None,
        episode_start: Array | None = None,
        deterministic: bool = False,
    ) -> tuple[Array, tuple[Array, ...]]:
        """Plan from ``observation`` [O] or [S, O]: the action [A] or [S, A], and the planner's state.

        The state carries the plan and the random generator from step to step, as a recurrent policy
        carries its memory; rows where ``episode_start`` is set begin anew. With the same inputs the
        same action comes out. Unless ``deterministic``, exploration noise is added.

        Raises InvalidInputError for a wrong shape, or before the first ``learn``.
        """
        obs, single = self._checked(observation)
        planner, generator = self.settings.planner, torch.Generator()
        low, high = self.action_space.low, self.action_space.high
        if state is None:
            memory = planner.initial_state(len(obs), low, high)
            generator.manual_seed(self.seed)
        else:
            mean, elites, valid, random = (torch.from_numpy(part) for part in state)
            bounds = (torch.from_numpy(low).float(), torch.from_numpy(high).float())
            memory = PlannerState(mean, elites, valid, *bounds)
            generator.set_state(random)
            if episode_start is not None:
                memory = planner.reset(memory, np.asarray(episode_start, dtype=np.bool_))
        action, memory = self._plan(obs, memory, generator)
        if not deterministic:
            half = (high - low) / 2.0
            noise = torch.randn(action.shape, generator=generator).numpy()
            action = np.clip(action + self.settings.exploration * half * noise, low, high)
        new_state = (memory.mean, memory.elites, memory.elite_valid, generator.get_state())
        action = action.astype(self.action_space.dtype)
        return action[0] if single else action, tuple(part.numpy() for part in new_state)

    def save(self, path: str | Path) -> None:
        """Write model, experience and settings to one file; rules are code, and not saved."""
        tensors: dict[str, torch.Tensor | Array] = {}
        config: dict[str, Any] = {
            "settings": _settings_to_json(self.settings),
            "seed": self.seed,
            "num_timesteps": self.num_timesteps,
            "episodes": self._episodes,
            "obs_dim": int(self.observation_space.shape[0]),
            "action_low": self.action_space.low.tolist(),
            "action_high": self.action_space.high.tolist(),
            "rules": [name for name in ("termination", "reward") if getattr(self, name)],
            "noise": self._noise.bit_generator.state,
            "model": None,
        }
        tensors["generator"] = self._generator.get_state()
        if len(self.experience):
            for name, value in vars(self.experience.transitions()).items():
                tensors[f"experience.{name}"] = value
        if self.model is not None:
            parts, config["model"] = model_to_checkpoint(self.model)
            tensors |= {f"model.{name}": value for name, value in parts.items()}
        save_checkpoint(path, "mpc agent", tensors, config)

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: gym.Env[Any, Any] | VecEnv,
        *,
        termination: Rule | None = None,
        reward: Rule | None = None,
    ) -> Self:
        """The agent in ``path``, for ``env``; rules it was trained with are asked for again.

        Raises CheckpointError if the file is damaged, of another environment, or lacks a rule.
        """
        checkpoint = load_checkpoint(path, "mpc agent")
        given = {"termination": termination, "reward": reward}
        for name in checkpoint.setting("rules", list):
            if given.get(str(name)) is None:
                raise CheckpointError(
                    f"checkpoint {path}: the agent was trained with a known {name}; "
                    f"pass {name}= to load()"
                )
        settings = _settings_from_json(checkpoint.setting("settings", dict), path)
        agent = cls(
            env,
            settings,
            termination=termination,
            reward=reward,
            seed=checkpoint.setting("seed", int),
        )
        agent._check_same_spaces(checkpoint.config, path)
        agent.num_timesteps = checkpoint.setting("num_timesteps", int)
        agent._episodes = checkpoint.setting("episodes", int)
        agent._generator.set_state(checkpoint.require("generator", dtype=torch.uint8))
        agent._noise.bit_generator.state = checkpoint.setting("noise", dict)
        columns: dict[str, Any] = {
            name.removeprefix("experience."): tensor.numpy()
            for name, tensor in checkpoint.tensors.items()
            if name.startswith("experience.")
        }
        if columns:
            try:
                agent.experience.extend(Transitions(**columns))
            except (TypeError, InvalidInputError) as error:
                raise CheckpointError(
                    f"checkpoint {path}: its experience is damaged: {error}"
                ) from None
        if checkpoint.config.get("model") is not None:
            agent.model = model_from_checkpoint(checkpoint, "model", termination, reward)
        return agent

    def refit(self) -> FitResult:
        """Fit a fresh model to all experience so far."""
        self.model, result = fit_dynamics(
            self.experience.transitions(),
            get_method(self.settings.method),
            generator=self._generator,
            members=self.settings.members,
            hidden=self.settings.hidden,
            schedule=self.settings.schedule,
            termination=self.termination,
            reward=self.reward,
        )
        self.last_fit = result
        self.logger.record("model/held_out", float(np.mean(result.criterion)))
        self.logger.record("model/fit_steps", result.steps)
        for name, value in result.outer.items():
            self.logger.record(f"model/{name}", value)
        self.logger.dump(self.num_timesteps)
        return result

    def _plan(
        self, obs: torch.Tensor, memory: PlannerState, generator: torch.Generator
    ) -> tuple[Array, PlannerState]:
        if self.model is None:
            raise InvalidInputError("the agent has no model yet; call learn() or load() first")
        model, imagination = self.model, self.settings.imagination

        def score(actions: torch.Tensor) -> torch.Tensor:
            return imagined_returns(model, obs, actions, imagination, generator)

        action, memory, _ = self.settings.planner.plan(score, memory, generator)
        return action.numpy(), memory

    def _checked(self, observation: Array | dict[str, Array]) -> tuple[torch.Tensor, bool]:
        if isinstance(observation, dict):
            raise InvalidInputError("observation must be an array [O] or [S, O]; got a dict")
        obs = np.asarray(observation, dtype=np.float32)
        expected = int(self.observation_space.shape[0])
        if obs.ndim not in (1, 2) or obs.shape[-1] != expected:
            raise InvalidInputError(
                f"observation must be [{expected}] or [S, {expected}]; got {obs.shape}"
            )
        if not np.isfinite(obs).all():
            raise InvalidInputError("observation holds NaN or infinity")
        return torch.from_numpy(np.atleast_2d(obs)), obs.ndim == 1

    def _check_same_spaces(self, config: dict[str, Any], path: str | Path) -> None:
        ours = {
            "obs_dim": int(self.observation_space.shape[0]),
            "action_low": self.action_space.low.tolist(),
            "action_high": self.action_space.high.tolist(),
        }
        for name, value in ours.items():
            if config.get(name) != value:
                raise CheckpointError(
                    f"checkpoint {path}: it is of another environment: its {name} is "
                    f"{config.get(name)}, this env has {value}; load it with the env it was made for"
                )


class _Run:
    """One call of ``learn``: the environment's present state, and one real step at a time."""

    def __init__(self, agent: MPC) -> None:
        self.agent = agent
        # Another stretch of learning starts other episodes, by a seed of its own.
        agent.env.seed(agent.seed + agent.num_timesteps)
        self.obs = np.asarray(agent.env.reset())
        self.starts = np.ones(agent.n_envs, dtype=np.bool_)
        self.t = np.zeros(agent.n_envs, dtype=np.int64)
        self.episode = agent._episodes + np.arange(agent.n_envs)
        agent._episodes += agent.n_envs
        self.random = [
            RandomBehaviour(agent.action_space, agent._noise) for _ in range(agent.n_envs)
        ]
        self.plan: tuple[Array, ...] | None = None

    def step(self) -> None:
        agent = self.agent
        self._refit_if_due()
        action = self._action()
        stepped, rewards, dones, infos = agent.env.step(action)
        next_obs = np.asarray(stepped)
        for i, info in enumerate(infos):
            truncated = bool(dones[i] and info.get("TimeLimit.truncated", False))
            agent.experience.add(
                self.obs[i],
                action[i],
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

    def _action(self) -> Array:
        agent = self.agent
        if agent.model is None:
            pairs = zip(self.random, self.obs, self.t, strict=True)
            return np.stack([behave(obs, int(t)) for behave, obs, t in pairs])
        if self.plan is None:
            self.starts[:] = True
        action, self.plan = agent.predict(self.obs, self.plan, self.starts, deterministic=False)
        return action

    def _refit_if_due(self) -> None:
        agent, settings = self.agent, self.agent.settings
        since = len(agent.experience) - settings.learning_starts
        if since < 0:
            return
        # With several environments the count moves in strides: due when a multiple was crossed.
        if agent.model is None or since % settings.refit_every < agent.n_envs:
            agent.refit()

    def _log_episode(self, info: dict[str, Any]) -> None:
        if "episode" in info:
            self.agent.logger.record("rollout/ep_rew", float(info["episode"]["r"]))
            self.agent.logger.record("rollout/ep_len", int(info["episode"]["l"]))
            self.agent.logger.dump(self.agent.num_timesteps)


def _hook(callback: MaybeCallback, progress_bar: bool) -> BaseCallback:
    if isinstance(callback, list):
        callback = CallbackList(callback)
    hook = callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)
    return CallbackList([hook, ProgressBarCallback()]) if progress_bar else hook


def _box(space: gym.Space[Any], what: str) -> gym.spaces.Box:
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        raise InvalidInputError(
            f"the {what} space must be a one-dimensional Box; got {space}: "
            "wrap the environment, for example with gymnasium.wrappers.FlattenObservation"
        )
    if what == "action" and not space.is_bounded():
        raise InvalidInputError(
            f"the action space must have finite bounds; got {space}: "
            "wrap the environment with gymnasium.wrappers.RescaleAction or ClipAction"
        )
    return space


def _settings_to_json(settings: MPCSettings) -> dict[str, Any]:
    return asdict(settings) | {"planner_kind": type(settings.planner).__name__}


def _settings_from_json(config: dict[str, Any], path: str | Path) -> MPCSettings:
    known: dict[str, type[CEM]] = {"CEM": CEM, "ICEM": ICEM}
    config = dict(config)
    try:
        planner = known[config.pop("planner_kind")](**config.pop("planner"))
        return MPCSettings(
            planner=planner,
            imagination=Imagination(**config.pop("imagination")),
            schedule=Schedule(**config.pop("schedule")),
            hidden=tuple(config.pop("hidden")),
            **config,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: its settings are damaged: {error}") from None
