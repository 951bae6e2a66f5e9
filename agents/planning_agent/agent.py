"""The agent: it acts by plan in a learned model, by a policy, or by both, and learns all three on the way.

An off-policy learner of Stable-Baselines3 is held, not subclassed: SB3 acts, stores, logs, calls the
callbacks and updates. Here a model is fitted to what was stored, plans are made in it (LOOP, arXiv
2008.10066; TD-MPC, arXiv 2203.04955), and branches imagined in it join the replay (MBPO, arXiv 1906.08253).
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv
from tqdm.auto import tqdm

from agents.common.callbacks import Presented, as_callback
from agents.common.counts import as_count
from agents.common.first_model import require_enough_for_a_model
from agents.common.rules import RewardChoice, Rules, TerminationChoice
from agents.common.spaces import (
    vector_env,
)
from agents.learners.ahead import Ahead
from agents.learners.fast_sac import FastSAC
from agents.learners.held import acted_in_turns, divergence_told
from agents.learners.normalisation import update_vec_normalize
from agents.planning_agent.acting import ActingAgent
from agents.planning_agent.checkpoint import load_agent, save_agent
from agents.planning_agent.imagined_rows import imagine
from agents.planning_agent.keeping import Earlier, Keeping
from agents.planning_agent.look_ahead import ModelSteps
from agents.planning_agent.old_files import MBPO_AGENT, MPC_AGENT
from agents.planning_agent.progress import Progress
from agents.planning_agent.refits import Refit, Refitted
from agents.planning_agent.settings import ValueSettings
from agents.planning_agent.terminal_value import Value, fit_value
from agents.planning_agent.upkeep import Upkeep
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import FitResult, Transitions
from mbrl_bilevel.base.threads import few_threads
from mbrl_bilevel.imagination.bounds import seen_bounds
from mbrl_bilevel.models.dynamics import DynamicsModel

#: A fit from scratch after so many: none.
_NEVER = 10**7

Array = npt.NDArray[Any]
BoolArray = npt.NDArray[np.bool_]


class PlanningAgent(ActingAgent):
    """An agent that plans with its policy, on a learner of SB3.

    ``env`` is a Gymnasium environment or an SB3 vector environment, with Box observations [O] and Box
    actions [A] of finite bounds or Discrete ones, which models and rules see one-hot; around a
    VecNormalize the model and the planner see raw observations and rewards, the learner normalised ones.
    ``settings`` say what it is made of; without them, and without ``algorithm_kwargs``, the values are those
    of the environment's preset (``agents.presets``). Any field of the settings may be given by its own name as
    well, ``method="nll"`` say, and goes before both. ``algorithm`` is the learner's class (by default a fast SAC,
    of discrete actions DQN), ``algorithm_kwargs`` are its own arguments.

    ``termination`` and ``reward``: functions of (obs [..., O], action [..., A], next_obs [..., O]), in raw units,
    of when an episode ends (bool [...]) and of what a step pays [...]; or "learned", by the model; or "known", of
    an environment that knows them, as those of ``envs.make_env`` do for MuJoCo's tasks, or for the reward
    "approximate". By default (None) an ending that the environment knows is used, and the reward is learned.

    ``seed``: None draws one. ``device``: where models are fitted, plans are imagined and the learner learns; "auto" is
    CUDA where there is one, as in SB3.
    ``tensorboard_log``: a folder, in which each run of ``learn`` or ``learn_offline`` logs in one of its own,
    ``MPC_1`` say. ``verbose`` 1 also writes the log to the terminal. SB3's callbacks see this agent as their
    ``model``, and SB3's own locals. ``model`` may be set to another one to plan in, the true simulator for
    instance; ``refit`` puts a fitted one in its place.

    Raises InvalidInputError for spaces, settings or arguments that it cannot take.
    """

    _reads: ClassVar[tuple[str, ...]] = (MPC_AGENT, MBPO_AGENT)

    def _hold(self, kind: type[OffPolicyAlgorithm]) -> None:
        super()._hold(kind)
        self._ahead: ModelSteps | None = None
        if self.settings.look_ahead:
            assert isinstance(self.algorithm, FastSAC)
            self.algorithm.look_ahead = self._steps_ahead
        self.upkeep = Upkeep(self, lambda: self.refit(), lambda: self.imagine())

    def learn(
        self,
        total_timesteps: int | float,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        tb_log_name: str | None = None,
        reset_num_timesteps: bool = False,
        progress_bar: bool = False,
        *,
        until: int | float | None = None,
    ) -> Self:
        """Act for ``total_timesteps`` real steps, fitting, imagining and updating on the way.

        The arguments are SB3's. ``log_interval``: episodes between two writes of the log; None never writes.
        ``tb_log_name``: the name of the run in ``tensorboard_log``; None is that of the class. Called again, it
        goes on, in new episodes; with ``reset_num_timesteps`` it counts its steps anew, from 0, in a run of its
        own, and what it learned stays. ``until``: the real steps that there will be at the end of a run of
        several calls, by which the learner's schedules go (a learning rate's, DQN's exploration); None: those
        at the end of this call.

        Warns if it ends before ``learning_starts``, without a model that it needs. Raises InvalidInputError if
        the environment returns NaN, ``learning_starts`` is too early for a model, or it is called by a callback
        of itself; DivergedError if no model can be fitted, or the policy runs away.
        """
        given = self._begin_learning(
            total_timesteps,
            callback,
            log_interval,
            tb_log_name,
            reset_num_timesteps,
            progress_bar,
            until,
        )
        with self._random, few_threads(self.widest), divergence_told(self.algorithm):
            self._begin_stretch()
            self.algorithm.learn(**given)
        self._end_learning()
        return self

    def turns(
        self,
        total_timesteps: int | float,
        callback: MaybeCallback = None,
        log_interval: int | None = 4,
        *,
        until: int | float | None = None,
    ) -> Generator[int]:
        """``learn``, where somebody else fits, imagines and updates (``learn_side_by_side``): each turn acts until
        these are due, and gives the number of updates that are to be made. Raises as ``learn``."""
        given = self._begin_learning(
            total_timesteps, callback, log_interval, None, False, False, until
        )
        return self._turns(given)

    def _turns(self, given: dict[str, Any]) -> Generator[int]:
        self.upkeep.put_off = True
        try:
            with self._random:
                self._begin_stretch()
            yield from acted_in_turns(self.algorithm, given, self._random)
        finally:
            self.upkeep.put_off = False
        self._end_learning()

    def draws(self) -> AbstractContextManager[torch.Generator]:
        """The stream that the learner's random numbers come from, for updates that somebody else makes."""
        return self._random.lent()

    def _begin_learning(
        self,
        total_timesteps: int | float,
        callback: MaybeCallback,
        log_interval: int | None,
        tb_log_name: str | None,
        reset_num_timesteps: bool,
        progress_bar: bool,
        until: int | float | None,
    ) -> dict[str, Any]:
        """What ``learn`` checks and logs first; the arguments of the learner's own ``learn``."""
        total_timesteps = as_count("total_timesteps", total_timesteps)
        if log_interval is not None:
            log_interval = as_count("log_interval", log_interval)
        self._require_idle("learn")
        # A task counts its steps from 0.
        reset_num_timesteps = reset_num_timesteps or self.fresh_task
        if until is not None:
            end = total_timesteps + (0 if reset_num_timesteps else self.num_timesteps)
            until = as_count("until", until)
            if until < end:
                raise InvalidInputError(
                    f"until must be at least {end}, the steps at the end of this call; got {until}"
                )
        if self.model is None and self.settings.uses_model:
            require_enough_for_a_model(
                self.settings.members,
                self.settings.learning_starts,
                len(self.experience.real),
                self.settings.real_rows,
            )
        tb_log_name = tb_log_name or type(self).__name__
        self._log_run(tb_log_name, reset_num_timesteps)
        given = [] if callback is None else [Presented(as_callback(callback), self)]
        return {
            "total_timesteps": total_timesteps,
            "callback": [self.upkeep.with_bar(progress_bar, until), *given],
            # SB3 takes None, but does not say so.
            "log_interval": log_interval,
            "tb_log_name": tb_log_name,
            "reset_num_timesteps": reset_num_timesteps,
        }

    def _end_learning(self) -> None:
        self._better = None
        if self.model is None and self.settings.planner is not None:
            warnings.warn(
                f"learn() ended after {len(self.experience)} steps, before learning_starts="
                f"{self.settings.learning_starts}: there is no model yet, and predict() acts at "
                "random; learn for longer",
                stacklevel=3,
            )

    def learn_offline(
        self,
        updates: int | float,
        transitions: Transitions | None = None,
        callback: MaybeCallback = None,
        progress_bar: bool = False,
    ) -> Self:
        """Make ``updates`` updates without the environment, on real steps that are there or given.

        The model is fitted once, before the first update; give ``branching`` of the settings a penalty
        (Yu et al. 2020, MOPO). Between two imaginations the callback is called once. Called again
        without ``transitions``, it goes on; ``learn`` then acts from the first step. A
        VecNormalize that is training learns its statistics from ``transitions``, as from steps.
        Raises InvalidInputError if there is no real step or one does not fit the spaces, DivergedError
        if the model or the policy runs away.
        """
        updates = as_count("updates", updates)
        self._require_idle("learn_offline")
        normalised = self.get_vec_normalize_env()
        if transitions is not None:
            self.experience.extend(transitions)
            # What the old model imagined goes with it.
            self.model = self.fit_start = None
            self.experience.imagined.written = 0
            if normalised is not None:
                update_vec_normalize(normalised, transitions)
        if not len(self.experience.real):
            raise InvalidInputError("no steps were recorded; give transitions, or learn() first")
        self._log_run(type(self).__name__, reset=False)
        hook = Presented(as_callback(callback), self)
        hook.init_callback(self.algorithm)
        # Where a learner draws actions from the space, a file goes on with the same ones.
        self.algorithm.action_space.seed((self.seed + self.progress.offline_updates) % 2**32)
        stretch = self.settings.imagine_every * self.settings.updates_per_step
        bar = tqdm(total=updates, desc="updates", disable=not progress_bar)
        with self._random, few_threads(self.widest), divergence_told(self.algorithm), bar:
            if self.model is None and self.settings.uses_model:
                self.refit()
            hook.on_training_start(locals(), globals())
            left = updates
            while left > 0:
                if self.settings.imagines:
                    self.imagine()
                count = min(stretch, left)
                self.algorithm.train(count, self.algorithm.batch_size)
                left -= count
                self.note(offline_updates=self.progress.offline_updates + count)
                bar.update(count)
                hook.update_locals(locals())
                if not hook.on_step():
                    break
            hook.on_training_end()
        self._better = None
        return self

    def refit(self) -> FitResult:
        """Fit a model, from scratch or going on from the last one (``PlanningSettings.fresh_every``), and
        where it is asked for a fresh value, to all experience so far."""
        return self.take_refit(self.next_refit().fit())

    def refit_due(self) -> Refit | None:
        """What is to be fitted now, if anything is: for agents side by side."""
        return self.next_refit() if self.upkeep.refit_due() else None

    def next_refit(self) -> Refit:
        """What ``refit`` fits now; the value, which comes before, is made."""
        experience = self.experience.transitions()
        self.value = self._fit_value(experience)
        return Refit(
            self.settings,
            experience,
            self.fit_start,
            self.generator,
            self.termination,
            self.reward,
            # One that has learned nothing yet would be noise at the end of each return.
            critic=self.held if self.held.exists and self.algorithm._n_updates else None,
            earlier=None if self.earlier is None else self.earlier.model,
            device=self.device,
        )

    def take_refit(self, found: Refitted) -> FitResult:
        """Go by this fit from now on."""
        model, result, self.fit_start = found
        elites = self.settings.elites
        self.model = model if elites is None else model.elites(result.criterion, elites)
        self.last_fit = result
        if isinstance(self.algorithm, FastSAC) and self.algorithm.standardise:
            # What the model does not go by is imagined anyhow, and a policy's gradient would go by it.
            self.algorithm.hide(~self.model.seen)
        self.note(fitted_on=len(self.experience))
        self.logger.record("model/held_out", float(np.mean(result.criterion)))
        self.logger.record("model/fit_steps", result.steps)
        self.logger.record("model/late_gain", result.late_gain)
        for name, value in result.outer.items():
            self.logger.record(f"model/{name}", value)
        return result

    def imagine(self) -> int:
        """Branches from real states join the replay; how many steps. InvalidInputError: no model."""
        if not isinstance(self.model, DynamicsModel):
            raise InvalidInputError("there is no model to imagine with yet; call refit() first")
        settings, real = self.settings, self.experience.real.stored()
        # The lowest and the highest are found where the rows lie: these may be many.
        seen = (torch.stack(real[name].aminmax(dim=0)) for name in ("obs", "next_obs"))
        ends = seen_bounds(self.observation_space, *(part.cpu().numpy() for part in seen))
        low, high = (torch.from_numpy(end).float().to(self.device) for end in ends)
        branches = settings.rollouts_per_step * settings.imagine_every
        with self._random:
            rows = imagine(
                self.model.to(self.device),
                self.experience.real.draw(branches, self.generator)[0],
                self.act_in_imagination,
                self.action_space,
                settings.rollout.at(self.num_timesteps),
                settings.branching,
                self.generator,
                within=(low, high),
                cut=settings.rollout_cut,
            )
        count = len(rows["reward"])
        if not count:
            raise InvalidInputError(
                "every imagined step is NaN or infinite: the reward rule or the model gives nothing else"
            )
        self.experience.imagined.add(rows)
        self.note(imagined_on=len(self.experience))
        self.logger.record("model/imagined", count)
        return count

    def save(self, path: str | Path) -> None:
        """Write the agent to one file, atomically and without pickle.

        Rules and objects among the arguments are code, and not saved. Raises InvalidInputError for a
        planner that is none of ``agents.planners``, or a model that is not a learned one.
        """
        save_agent(path, self)

    @classmethod
    def load(
        cls,
        path: str | Path,
        env: gym.Env[Any, Any] | VecEnv,
        *,
        algorithm: type[OffPolicyAlgorithm] | None = None,
        algorithm_kwargs: Mapping[str, Any] | None = None,
        termination: TerminationChoice = None,
        reward: RewardChoice = None,
        device: torch.device | str = "auto",
        tensorboard_log: str | Path | None = None,
        verbose: int = 0,
    ) -> Self:
        """The agent in ``path``, for ``env``. Rules that were given by hand, objects it was made with, and a class
        that is not SB3's or ours have to be given again; rules that its environment knew are asked of ``env``.

        ``algorithm``, ``algorithm_kwargs``, ``termination`` and ``reward``: as they were given to the agent that was
        saved, where the file does not say them. ``device``, ``tensorboard_log`` and ``verbose``: of now.

        Raises CheckpointError if the file is damaged, of other spaces, or something is missing; warns if
        it is of another environment with the same spaces.
        """
        choices = {"termination": termination, "reward": reward}
        given = {"device": device, "tensorboard_log": tensorboard_log, "verbose": verbose}
        own = algorithm_kwargs or {}
        return load_agent(cls, path, vector_env(env), algorithm, own, choices, given)

    def set_env(self, env: gym.Env[Any, Any] | VecEnv) -> None:
        """Act in ``env`` from the next ``learn`` on, with what was learned so far.

        Rules that the environment gave are asked of ``env``. Raises InvalidInputError for other spaces, another
        number of environments, a rule that ``env`` does not know, or if it is called by a callback of ``learn``.
        """
        self._require_idle("set_env")
        found = vector_env(env)
        for name in ("observation_space", "action_space", "num_envs"):
            if getattr(found, name) != getattr(self.env, name):
                raise InvalidInputError(
                    f"env: its {name} must be {getattr(self.env, name)}, as before; got {getattr(found, name)}"
                )
        self._take_rules(self.rules.asked_of(found))
        self.env = found
        self.algorithm.set_env(found)
        self._meet_env()

    def next_task(self, env: gym.Env[Any, Any] | VecEnv, keeping: Keeping | None = None) -> None:
        """Go on with ``env``, another task with the same spaces, and keep of the tasks so far what ``keeping`` says (by
        default, the parameters alone); it is the same for all tasks of an agent.

        The next ``learn`` counts its steps from 0, and begins with ``learning_starts`` random ones. From now on the model
        is fitted in the units of the first task and never from scratch, neither shrunk nor perturbed. A file holds no earlier
        tasks: an agent that is loaded keeps nothing of them but parameters. A learned termination is of the present task
        alone.

        Raises InvalidInputError before anything was learned, on another device than the CPU, for what ``set_env`` refuses,
        another ``keeping`` than before, or one that this agent cannot have: of a model of several steps, or without a FastSAC a policy.
        """
        settings, model = self.settings, self.settings.uses_model
        if self.device.type != "cpu":
            raise InvalidInputError(
                'next_task: what is kept of earlier tasks lies on the CPU; make the agent with device="cpu"'
            )
        if not len(self.experience.real) or (model and self.fit_start is None):
            raise InvalidInputError(
                "next_task: nothing was learned of this task yet that could go on; call learn() first, with "
                "fresh_every above 1"
            )
        earlier = self.earlier
        if earlier is None:
            method = settings.method if model else None
            earlier = Earlier.of(keeping or Keeping(), method, self.algorithm)
        elif keeping is not None and keeping != earlier.keeping:
            raise InvalidInputError(
                f"next_task: keeping must be the same for all tasks, {earlier.keeping}; got {keeping}"
            )
        self.set_env(env)
        experience = self.experience.transitions()
        self.earlier = earlier = earlier.after(experience, self.fit_start, self.generator)
        self.experience.next_task(earlier.keeping.replay, earlier.tasks / (earlier.tasks + 1))
        if earlier.keeping.policy:
            assert isinstance(self.algorithm, FastSAC)
            stored = self.experience.earlier["obs"]
            earlier.hold(self.algorithm, stored, self.held.seen, self.generator)
        self.settings = replace(
            settings,
            fresh_every=_NEVER,
            warm_start=replace(settings.warm_start, shrink=1.0, perturb=0.0),
        )
        # Random steps come first, and the model goes on at the first fit.
        self.model = self.value = self.last_fit = self._better = None
        self.progress = Progress()

    @property
    def fresh_task(self) -> bool:
        """Whether nothing was done yet in a task that follows others."""
        return self.earlier is not None and not len(self.experience)

    def _fit_value(self, experience: Transitions) -> Value | None:
        """Of the agent's own planning, once there is enough of it: random steps, which soon fail
        from where planning goes on, would say that being there is bad."""
        settings = self.settings.value
        if not isinstance(settings, ValueSettings) or not experience.terminated.any():
            return None
        first = self.progress.first_planned
        if first is None:
            # The next episode is the first without a random step.
            first = self.experience.episodes
            self.note(first_planned=first)
        planned = experience[experience.episode >= first]
        if len(planned) >= settings.rows_needed() and planned.terminated.any():
            experience = planned
        model = self.model
        # As far as the last model knew: the next one is fitted after this.
        seen = model.seen.cpu() if isinstance(model, DynamicsModel) else None
        return fit_value(experience, settings, self.generator, seen)

    def _steps_ahead(self) -> Ahead | None:
        """The model of now, for the learner's actor to look ahead in; None while there is no learned one."""
        if not isinstance(self.model, DynamicsModel):
            return None
        # Made once for each model: it is asked for at each update.
        if self._ahead is None or not self._ahead.is_of(self.model, self.held):
            self._ahead = ModelSteps(self.model, self.held, self.action_space)
        return Ahead(self._ahead, self.settings.look_ahead, self.settings.look_ahead_lambda)

    def _take_rules(self, rules: Rules) -> None:
        """Go by ``rules``, and let the models that were fitted under the old ones go by them."""

        def moved(model: Any) -> Any:
            if not isinstance(model, DynamicsModel):
                return model
            known = {name: getattr(rules, name) for name in rules.from_env}
            return replace(model, **known)

        self.rules, self.model = rules, moved(self.model)
        if self.fit_start is not None:
            self.fit_start = replace(self.fit_start, model=moved(self.fit_start.model))

    def _require_idle(self, name: str) -> None:
        if self._random.entered:
            raise InvalidInputError(
                f"{name}() was called by a callback of an agent that is learning; call it after learn() or "
                "learn_offline() has returned"
            )
