"""What a planning agent holds: environment, learner, replay, model, random states, and its progress.

What looks at an agent from outside, its file, its health and its upkeep, knows this much of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, unwrap_vec_normalize

from agents.common.counts import as_seed
from agents.common.device import chosen_device
from agents.common.randomness import OwnRandomness
from agents.common.rules import RewardChoice, TerminationChoice, chosen_rules
from agents.common.run_log import open_logger, silent_logger
from agents.common.spaces import (
    action_bounds,
    action_set,
    require_actions,
    require_box,
    vector_env,
)
from agents.learners.fast_sac import FastSAC
from agents.learners.held import make_algorithm
from agents.learners.no_learner import NoLearner
from agents.planning_agent.keeping import Earlier
from agents.planning_agent.plans import Plans
from agents.planning_agent.policy import HeldPolicy
from agents.planning_agent.progress import Progress
from agents.planning_agent.refits import FitStart
from agents.planning_agent.replay import MixedReplay
from agents.planning_agent.settings import PlanningSettings
from agents.planning_agent.terminal_value import Value
from agents.presets.preset import learner_defaults, preset_for, with_values
from mbrl_bilevel.base.checks import tried
from mbrl_bilevel.base.errors import InvalidInputError, look_up, require_count
from mbrl_bilevel.base.records import FitResult, Rule
from mbrl_bilevel.imagination.particles import StepModel

S = TypeVar("S", bound=PlanningSettings)


class AgentParts:
    """The parts of a ``PlanningAgent``, which documents the arguments.

    Raises InvalidInputError for spaces, settings or arguments that it cannot take.
    """

    _settings: ClassVar[type[PlanningSettings]] = PlanningSettings
    #: Whether what is not given comes from the environment's preset, or is the class's own default.
    _from_preset: ClassVar[bool] = True
    #: The learner's class where there is no choice.
    _algorithm: ClassVar[type[OffPolicyAlgorithm] | None] = None
    #: Files of version 0.1 that ``load`` reads.
    _reads: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        env: gym.Env[Any, Any] | VecEnv,
        settings: PlanningSettings | None = None,
        *,
        algorithm: type[OffPolicyAlgorithm] | None = None,
        algorithm_kwargs: Mapping[str, Any] | None = None,
        termination: TerminationChoice = None,
        reward: RewardChoice = None,
        seed: int | None = 0,
        device: torch.device | str = "auto",
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
        **changes: Any,
    ) -> None:
        self.seed = seed = as_seed(seed)
        self.env = vector_env(env)
        self.action_space = require_actions(self.env.action_space)
        self.observation_space = require_box(self.env.observation_space, "observation")
        self.rules = chosen_rules(self.env, termination, reward)
        self._try_rules()
        self.device, self.verbose = chosen_device(device), verbose
        kind = algorithm or self._algorithm or self._fitting_learner()
        found, self.algorithm_kwargs = self._chosen(kind, settings, algorithm_kwargs)
        self.settings = _changed(found, changes)
        self.model: StepModel | None = None
        self.value: Value | None = None
        self.last_fit: FitResult | None = None
        self.fit_start: FitStart | None = None
        #: What is left of earlier tasks; None in the first.
        self.earlier: Earlier | None = None
        self.progress = Progress()
        #: Of all that is drawn as tensors: fits, minibatches, imagined rows.
        self.generator = torch.Generator().manual_seed(seed)
        #: Of random actions, and of whose turn it is.
        self.noise = np.random.default_rng([seed, 1])
        self._random = OwnRandomness(seed, self.device)
        #: Of the noise in ``predict``: it disturbs no learning, wherever it is called.
        self._exploring = OwnRandomness(seed, self.device)
        self._hold(kind)
        self.tensorboard_log = tensorboard_log
        #: The run that is logged now; None before the first, or where the user gave a logger.
        self._run: str | None = None
        self._own_logger = True
        self.algorithm.set_logger(silent_logger())

    def _chosen(
        self,
        kind: type[OffPolicyAlgorithm],
        settings: PlanningSettings | None,
        kwargs: Mapping[str, Any] | None,
    ) -> tuple[PlanningSettings, dict[str, Any]]:
        """What was given; for what was not, the preset of the environment (``agents.presets``)."""
        if settings is not None and not isinstance(settings, PlanningSettings):
            raise InvalidInputError(f"settings must be {self._settings.__name__}; got {settings!r}")
        if kwargs is not None and not isinstance(kwargs, Mapping):
            raise InvalidInputError(
                f"algorithm_kwargs must be a mapping of names to values; got {kwargs!r}"
            )
        if not self._from_preset:
            return self._settings() if settings is None else settings, dict(kwargs or {})
        preset = preset_for(self.env)
        if settings is None:
            settings = with_values(self._settings(), preset.settings_for(kind))
        return settings, learner_defaults(kind, preset) if kwargs is None else dict(kwargs)

    def _try_rules(self) -> None:
        """A rule given by hand is asked for one step, before the first real one: about zero, within the spaces.
        Raises InvalidInputError as ``tried``."""
        box, (low, high) = self.observation_space, action_bounds(self.action_space)
        obs, action = (np.clip(0.0, *ends)[None] for ends in ((box.low, box.high), (low, high)))
        step = [torch.from_numpy(np.asarray(part, np.float32)) for part in (obs, action, obs)]
        for name in ("termination", "reward"):
            rule = getattr(self.rules, name)
            if rule is not None and name not in self.rules.from_env:
                tried(name, rule, *step)

    def _fitting_learner(self) -> type[OffPolicyAlgorithm]:
        return DQN if isinstance(self.action_space, gym.spaces.Discrete) else FastSAC

    def _hold(self, kind: type[OffPolicyAlgorithm]) -> None:
        """Make the learner, give it the replay, and let plans act in its place where they should."""
        settings = self.settings
        if getattr(self.action_space, "start", 0) != 0 and kind is not NoLearner:
            raise InvalidInputError(
                f"the learners of SB3 count discrete actions from 0; got {self.action_space}: wrap the "
                "environment with gymnasium.wrappers.TransformAction, or act by plan alone (agents.MPC)"
            )
        if settings.imagines and kind is NoLearner:
            raise InvalidInputError(
                f"real_share must be 1 without a learner, which has no use for imagined rows; got "
                f"{settings.real_share!r}: leave it out, or take a learner (agents.PlanningAgent)"
            )
        if settings.look_ahead and not issubclass(kind, FastSAC):
            raise InvalidInputError(
                f"look_ahead must be 0 for {kind.__name__}: only the actor of FastSAC learns through a model; got "
                f"{settings.look_ahead}"
            )
        _require_sound(self.algorithm_kwargs)
        with self._random:
            self.algorithm = make_algorithm(
                kind,
                self.env,
                self.algorithm_kwargs,
                seed=self.seed,
                learning_starts=settings.learning_starts,
                gradient_steps=settings.updates_per_step * self.env.num_envs,
                device=self.device,
            )
        self.experience = MixedReplay(
            self.observation_space,
            self.action_space,
            n_envs=self.env.num_envs,
            real_rows=settings.real_rows,
            imagined_rows=settings.imagined_rows,
            real_share=1.0 if settings.real_share == "auto" else settings.real_share,
            generator=self.generator,
            n_steps=settings.n_steps,
            gamma=float(self.algorithm.gamma),
            device=self.device,
        )
        self.algorithm.replay_buffer = self.experience  # type: ignore[assignment]
        self._meet_env()

    def _meet_env(self) -> None:
        self.held = HeldPolicy(self.algorithm, self.action_space, self.get_vec_normalize_env())
        self.plans = Plans(action_set(self.action_space), self.held, self.device)

    def _log_run(self, name: str, reset: bool) -> None:
        """Log a run of this ``name``, or go on with the one that is logged.

        As in SB3, each run has a folder of its own, and goes on in it unless steps are counted anew (``reset``).
        """
        if self._own_logger and (reset or name != self._run):
            new_run = reset or self.num_timesteps == 0
            logger = open_logger(self.tensorboard_log, name, self.verbose, new_run=new_run)
            self.algorithm.set_logger(logger)
            self._run = name

    def set_logger(self, logger: Logger) -> None:
        """Log to ``logger``, whatever ``tensorboard_log`` and ``verbose`` say."""
        self._own_logger = False
        self.algorithm.set_logger(logger)

    def get_env(self) -> VecEnv:
        """The training environment, as a vector environment (SB3's callbacks ask for it)."""
        return self.env

    def get_vec_normalize_env(self) -> VecNormalize | None:
        """The VecNormalize around the training environment, if any (SB3's callbacks ask for it)."""
        return unwrap_vec_normalize(self.env)

    @property
    def termination(self) -> Rule | None:
        """The rule of when an episode ends; None: the model learns it."""
        return self.rules.termination

    @property
    def reward(self) -> Rule | None:
        """The rule of what a step pays; None: the model learns it."""
        return self.rules.reward

    @property
    def n_envs(self) -> int:
        """How many environments are stepped side by side."""
        return self.env.num_envs

    @property
    def num_timesteps(self) -> int:
        """Real steps taken by ``learn``."""
        return int(self.algorithm.num_timesteps)

    @property
    def logger(self) -> Logger:
        """SB3's logger."""
        return self.algorithm.logger

    @property
    def policy(self) -> BasePolicy:
        """The learner's policy."""
        return self.algorithm.policy

    @property
    def ep_info_buffer(self) -> Any:
        """Returns and lengths of the last episodes, as SB3 keeps them."""
        return self.algorithm.ep_info_buffer

    @property
    def _total_timesteps(self) -> int:
        return self.algorithm._total_timesteps

    @property
    def _num_timesteps_at_start(self) -> int:
        return self.algorithm._num_timesteps_at_start

    def dump_logs(self) -> None:
        """Write out what was logged since the last time (SB3's callbacks ask for it)."""
        self.algorithm.dump_logs()

    @property
    def widest(self) -> int:
        """Units of the widest layer, by which the number of threads is chosen."""
        layers = (self.algorithm_kwargs.get("policy_kwargs") or {}).get("net_arch", [256])
        nets = layers.values() if isinstance(layers, Mapping) else [layers]
        widths = [width for net in nets if isinstance(net, list | tuple) for width in net]
        return max(*self.settings.hidden, 1, *(w for w in widths if isinstance(w, int)))

    def note(self, **counts: int | float | None) -> None:
        """Write down how far it has come."""
        self.progress = replace(self.progress, **counts)  # type: ignore[arg-type]


def _changed(settings: S, changes: Mapping[str, Any]) -> S:
    """``settings`` with these fields in place of their own. Raises InvalidInputError for another name."""
    names = dict.fromkeys(each.name for each in fields(settings))
    for name in changes:
        try:
            look_up(names, name, "unknown argument")
        except InvalidInputError as error:
            raise InvalidInputError(
                f"{error}; arguments of the learner go into algorithm_kwargs"
            ) from None
    plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in changes.items()}
    return replace(settings, **plain)


def _require_sound(kwargs: Mapping[str, Any]) -> None:
    """Raises InvalidInputError for what SB3 takes without a word."""
    gamma = kwargs.get("gamma", 0.99)
    number = not isinstance(gamma, bool) and isinstance(gamma, Real)
    if not (number and 0.0 <= float(gamma) <= 1.0):
        raise InvalidInputError(
            f"algorithm_kwargs['gamma'] must be a number from 0 to 1; got {gamma!r}"
        )
    require_count("algorithm_kwargs['batch_size']", kwargs.get("batch_size", 1))
