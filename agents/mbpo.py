"""Model-based policy optimisation: an agent of Stable-Baselines3 that also learns from imagination.

The agent is held, not subclassed: SB3 acts, stores and updates; here a model is fitted to what was
stored, and short branches imagined in it join the replay (Janner et al. 2019, MBPO, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize
from torch import Tensor
from tqdm.auto import tqdm

from agents.common.callbacks import as_callback, open_logger
from agents.common.first_model import require_enough_for_a_model
from agents.common.randomness import OwnRandomness, require_seed
from agents.common.saved import spaces_of
from agents.common.spaces import checked_observation, require_actions, require_box, vector_env
from agents.learners.held import (
    algorithm_to_checkpoint,
    divergence_told,
    fill_algorithm,
    fill_vec_normalize,
    make_algorithm,
    update_vec_normalize,
    vec_normalize_to_checkpoint,
)
from agents.mbpo_checkpoint import (
    Made,
    Progress,
    fill_replay,
    open_agent,
    read_made,
    read_model,
    read_progress,
    read_states,
    write_agent,
)
from agents.mbpo_settings import MBPOSettings, RolloutLength
from agents.planning_agent.imagined_rows import imagine
from agents.planning_agent.replay import MixedReplay
from mbrl_bilevel.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.errors import CheckpointError, InvalidInputError, require_count
from mbrl_bilevel.methods import get_method
from mbrl_bilevel.types import FitResult, Rule, Transitions, require_rules

__all__ = ["MBPO", "MBPOSettings", "RolloutLength"]

Array = npt.NDArray[Any]


class MBPO:
    """An off-policy ``algorithm`` of SB3 (a class) that trains on real and imagined steps.

    ``env`` as for ``agents.mpc.MPC``; around a VecNormalize the model sees raw observations and rewards,
    the algorithm normalised ones. ``algorithm_kwargs`` are the algorithm's own arguments.
    ``termination`` and ``reward`` are known rules; without one the model learns it. SB3's callbacks see
    ``self.algorithm``.
    """

    def __init__(
        self,
        env: gym.Env[Any, Any] | VecEnv,
        settings: MBPOSettings | None = None,
        *,
        algorithm: type[OffPolicyAlgorithm] = SAC,
        algorithm_kwargs: Mapping[str, Any] | None = None,
        termination: Rule | None = None,
        reward: Rule | None = None,
        seed: int = 0,
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
    ) -> None:
        require_seed(seed)
        require_rules(termination, reward)
        self.settings = settings or MBPOSettings()
        self.env = vector_env(env)
        self.action_space = require_actions(self.env.action_space)
        self.observation_space = require_box(self.env.observation_space, "observation")
        self.termination, self.reward, self.seed = termination, reward, seed
        self.algorithm_kwargs = dict(algorithm_kwargs or {})
        self.model: DynamicsModel | None = None
        self.last_fit: FitResult | None = None
        self.progress = Progress()
        self._generator = torch.Generator().manual_seed(seed)
        self._random = OwnRandomness(seed)
        with self._random:
            self.algorithm = make_algorithm(
                algorithm,
                self.env,
                self.algorithm_kwargs,
                seed=seed,
                learning_starts=self.settings.learning_starts,
                gradient_steps=self.settings.updates_per_step * self.env.num_envs,
            )
        self.algorithm.set_logger(open_logger(tensorboard_log, verbose))
        self.experience = MixedReplay(
            self.observation_space,
            self.action_space,
            n_envs=self.env.num_envs,
            real_rows=self.settings.real_rows,
            imagined_rows=self.settings.imagined_rows,
            real_share=self.settings.real_share,
            generator=self._generator,
        )
        self.algorithm.replay_buffer = self.experience  # type: ignore[assignment]

    def get_env(self) -> VecEnv:
        """The training environment, as a vector environment."""
        return self.env

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """The VecNormalize around the training environment, if any."""
        return unwrap_vec_normalize(self.env)

    @property
    def num_timesteps(self) -> int:
        """Real steps taken by ``learn``."""
        return int(self.algorithm.num_timesteps)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        progress_bar: bool = False,
        reset_num_timesteps: bool = False,
        log_interval: int = 4,
    ) -> Self:
        """Act for ``total_timesteps`` real steps, fitting, imagining and updating on the way.

        Called again, it goes on, in new episodes. Raises InvalidInputError if the environment returns
        NaN, or ``learning_starts`` is too early for a model; DivergedError if none can be fitted, or
        the policy runs away.
        """
        require_count("total_timesteps", total_timesteps, 10**12)
        if self.model is None and self.settings.real_share < 1.0:
            require_enough_for_a_model(self.settings, len(self.experience.real))
        given = [as_callback(callback)] if callback is not None else []
        with self._random, divergence_told(self.algorithm):
            self._begin_stretch()
            self.algorithm.learn(
                total_timesteps,
                [_Upkeep(self), *given],
                log_interval=log_interval,
                reset_num_timesteps=reset_num_timesteps,
                progress_bar=progress_bar,
            )
        return self

    def learn_offline(
        self,
        updates: int,
        transitions: Transitions | None = None,
        callback: MaybeCallback = None,
        progress_bar: bool = False,
    ) -> Self:
        """Make ``updates`` updates without the environment, on real steps that are there or given.

        The model is fitted once, before the first update; give ``MBPOSettings.branching`` a penalty
        (Yu et al. 2020, MOPO). Between two imaginations the callback is called once. Called again
        without ``transitions``, it goes on; ``learn`` then acts by its policy from the first step. A
        VecNormalize that is training learns its statistics from ``transitions``, as from steps.
        Raises InvalidInputError if there is no real step or one does not fit the spaces, DivergedError
        if the model or the policy runs away.
        """
        require_count("updates", updates, 10**12)
        normalised = self.get_vec_normalize_env()
        if transitions is not None:
            self.experience.extend(transitions)
            self.model = None
            if normalised is not None:
                update_vec_normalize(normalised, transitions)
        if not len(self.experience.real):
            raise InvalidInputError("no steps were recorded; give transitions, or learn() first")
        hook = as_callback(callback)
        hook.init_callback(self.algorithm)
        stretch = self.settings.imagine_every * self.settings.updates_per_step
        bar = tqdm(total=updates, desc="updates", disable=not progress_bar)
        with self._random, divergence_told(self.algorithm), bar:
            if self.model is None and self.settings.real_share < 1.0:
                self.refit()
            hook.on_training_start(locals(), globals())
            left = updates
            while left > 0:
                if self.model is not None:
                    self.imagine()
                count = min(stretch, left)
                self.algorithm.train(count, self.algorithm.batch_size)
                left -= count
                self._note(offline_updates=self.progress.offline_updates + count)
                bar.update(count)
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
    ) -> tuple[Array, tuple[Array, ...] | None]:
        """What the held algorithm does at ``observation`` [O] or [S, O].

        Raises InvalidInputError for another shape, NaN or infinity.
        """
        checked_observation(self.observation_space, observation)
        return self.algorithm.predict(observation, state, episode_start, deterministic)

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
        self._note(fitted_on=self.experience.real.written)
        logger = self.algorithm.logger
        logger.record("model/held_out", float(np.mean(result.criterion)))
        logger.record("model/fit_steps", result.steps)
        return result

    def imagine(self) -> int:
        """Branches from real states join the replay; how many steps. InvalidInputError: no model."""
        if self.model is None:
            raise InvalidInputError("there is no model to imagine with yet; call refit() first")
        settings = self.settings
        branches = settings.rollouts_per_step * settings.imagine_every
        starts = self.experience.real.draw(branches, self._generator)[0]
        space = self.observation_space
        rows = imagine(
            self.model,
            starts,
            self._act,
            self.action_space,
            settings.rollout.at(self.num_timesteps),
            settings.branching,
            self._generator,
            within=(torch.from_numpy(space.low).float(), torch.from_numpy(space.high).float()),
        )
        count = len(rows["reward"])
        if not count:
            raise InvalidInputError(
                "every imagined step is NaN or infinite: the reward rule or the model gives nothing else"
            )
        self.experience.imagined.add(rows)
        self._note(imagined_on=self.experience.real.written)
        self.algorithm.logger.record("model/imagined", count)
        return count

    def save(self, path: str | Path) -> None:
        """Write the agent to one file; rules and objects among the arguments are not saved."""
        parts: dict[str, Any] = {"algorithm": algorithm_to_checkpoint(self.algorithm)}
        normalised = self.get_vec_normalize_env()
        if normalised is not None:
            parts["vec_normalize"] = vec_normalize_to_checkpoint(normalised)
        write_agent(
            path,
            Made(
                self.settings,
                type(self.algorithm),
                self.algorithm_kwargs,
                spaces_of(self.env),
                tuple(name for name in ("termination", "reward") if getattr(self, name)),
                self.seed,
            ),
            self.progress,
            self.experience,
            self.model,
            self._generator.get_state(),
            self._random.states,
            parts,
        )

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: gym.Env[Any, Any] | VecEnv,
        *,
        algorithm: type[OffPolicyAlgorithm] | None = None,
        algorithm_kwargs: Mapping[str, Any] | None = None,
        termination: Rule | None = None,
        reward: Rule | None = None,
    ) -> Self:
        """The agent in ``path``, for ``env``; rules, objects it was made with, and a class that is not
        SB3's own are asked for again.

        Raises CheckpointError if the file is damaged, of other spaces, or something is missing; warns if
        it is of another environment with the same spaces.
        """
        checkpoint = open_agent(path)
        env = vector_env(env)
        spaces = spaces_of(env)
        made = read_made(checkpoint, spaces, algorithm, algorithm_kwargs or {}, termination, reward)
        rules: dict[str, Any] = {"termination": termination, "reward": reward}
        agent = cls(
            env,
            made.settings,
            algorithm=made.algorithm,
            algorithm_kwargs=made.algorithm_kwargs,
            seed=made.seed,
            **rules,
        )
        fill_algorithm(checkpoint, "algorithm", agent.algorithm)
        agent.model = read_model(checkpoint, spaces, termination, reward)
        agent.progress = read_progress(checkpoint)
        fill_replay(checkpoint, agent.experience)
        own, states = read_states(checkpoint)
        try:
            agent._generator.set_state(own)
            agent._random.states = states
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise CheckpointError(
                f"checkpoint {path}: its random states are damaged: {error}"
            ) from None
        fill_vec_normalize(checkpoint, "vec_normalize", agent.get_vec_normalize_env())
        return agent

    def _begin_stretch(self) -> None:
        """New episodes and, where actions are still random, other ones than before."""
        # A policy that was learned offline needs no random steps first.
        offline = self.progress.offline_updates > 0
        self.algorithm.learning_starts = 0 if offline else self.settings.learning_starts
        seed = self.seed + self.progress.stretches
        self.env.seed(seed)
        self.algorithm.action_space.seed(seed % 2**32)
        self.algorithm.set_env(self.env, force_reset=True)
        self.experience.start_episodes()
        self._note(stretches=self.progress.stretches + 1)

    def _keep_up(self) -> None:
        """After real steps: fit and imagine where that is due."""
        settings, progress, steps = self.settings, self.progress, self.experience.real.written
        if settings.real_share == 1.0 or steps < settings.learning_starts:
            return

        def due(last: int, every: int) -> bool:
            # With several environments the count moves in strides: a multiple may be crossed.
            first = settings.learning_starts
            return (steps - first) // every > (last - first) // every

        refit = self.model is None or due(progress.fitted_on, settings.refit_every)
        if refit:
            self.refit()
        if refit or due(progress.imagined_on, settings.imagine_every):
            self.imagine()

    def _act(self, obs: Tensor) -> Tensor:
        """The present policy's actions at raw ``obs`` [B, O], as the replay stores them."""
        seen: Any = obs.numpy().astype(self.observation_space.dtype)
        normalised = self.get_vec_normalize_env()
        if normalised is not None:
            seen = normalised.normalize_obs(seen)
        action, _ = self.algorithm.predict(seen, deterministic=False)
        if isinstance(self.action_space, gym.spaces.Box):
            action = self.algorithm.policy.scale_action(action)
        return torch.from_numpy(np.asarray(action, dtype=np.float32)).reshape(len(obs), -1)

    def _note(self, **counts: int) -> None:
        self.progress = replace(self.progress, **counts)


class _Upkeep(BaseCallback):
    """Called by SB3 between acting and updating."""

    def __init__(self, agent: MBPO) -> None:
        super().__init__()
        self._agent = agent

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self._agent._keep_up()
