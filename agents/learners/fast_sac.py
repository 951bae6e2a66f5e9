"""SAC as in Stable-Baselines3, in less time; and what later work adds to it, each as an argument.

With SB3's own values an update is SB3's to round-off, from the same draws in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3 import SAC
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import GymEnv, ReplayBufferSamples
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor

from agents.learners.adam import DirectAdam
from agents.learners.ahead import Ahead
from agents.learners.critics import (
    EnsembleCritic,
    FastCnnPolicy,
    FastMultiInputPolicy,
    FastSACPolicy,
    Standardised,
)
from agents.learners.sac_update import SACUpdate
from mbrl_bilevel.base.errors import InvalidInputError, require_count

Array = npt.NDArray[Any]

#: Observations are standardised anew where the rows are so many times those of the last time.
_GROWN = 1.25


class FastSAC(SACUpdate, SAC):
    """SAC (Haarnoja et al. 2018, arXiv 1801.01290 and 1812.05905) with SB3's arguments and methods.

    Of its own:

    ``actor_every``: the actor and the temperature learn at every n-th update, counted over all calls of
    ``train`` (the delay of TD3, Fujimoto et al. 2018, arXiv 1802.09477, §5.2).
    ``target_critics``: the target is the minimum over so many critics, drawn anew for each update (M of
    REDQ, Chen et al. 2021, arXiv 2101.05982, algorithm 1); None: over all of them.
    ``actor_q``: the actor climbs the critics' "min" (SAC) or "mean" (REDQ, algorithm 1).
    ``standardise``: the replay buffer's observations set the mean and the spread by which all observations are
    standardised, at the first call of ``train`` and again whenever the buffer has grown by a quarter: what is
    reached later lies far from where random actions led. (A buffer that was emptied for another task first has to
    outgrow the one that the units are of.) The root mean square of its rewards at the first call,
    ``reward_scale``, divides all rewards.
    ``imitation``: weight of the pull of the policy towards the actions of a planner (after Wang et al.
    2025, TD-M(PC)², arXiv 2502.03550); a batch marks those by ``planned`` [B, 1], one where its
    action is the planner's and else zero.

    Raises InvalidInputError for a value out of range.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpPolicy": FastSACPolicy,
        "CnnPolicy": FastCnnPolicy,
        "MultiInputPolicy": FastMultiInputPolicy,
    }

    def __init__(
        self,
        policy: str | type[SACPolicy] = "MlpPolicy",
        env: GymEnv | str | None = None,
        *args: Any,
        actor_every: int = 1,
        target_critics: int | None = None,
        actor_q: Literal["min", "mean"] = "min",
        standardise: bool = False,
        imitation: float = 0.0,
        **kwargs: Any,
    ) -> None:
        require_count("actor_every", actor_every)
        if target_critics is not None:
            require_count("target_critics", target_critics)
        if actor_q not in ("min", "mean"):
            raise InvalidInputError(f"actor_q must be 'min' or 'mean'; got {actor_q!r}")
        if type(standardise) is not bool:
            raise InvalidInputError(f"standardise must be True or False; got {standardise!r}")
        if type(imitation) not in (int, float) or not 0.0 <= imitation < math.inf:
            raise InvalidInputError(f"imitation must be a finite number from 0; got {imitation!r}")
        self.actor_every, self.target_critics, self.actor_q = actor_every, target_critics, actor_q
        self.standardise, self.imitation = standardise, float(imitation)
        #: ``standardised_rows``: of how many rows the present units are.
        self.reward_scale, self.standardised_rows = 1.0, 0
        #: Asked at each update of the actor how it looks ahead; None: the critics alone are asked.
        self.look_ahead: Callable[[], Ahead | None] | None = None
        #: How far the actor is from what it was on earlier tasks, a scalar with a gradient; None: nothing is kept.
        self.drift: Callable[[], Tensor] | None = None
        super().__init__(policy, env, *args, **kwargs)  # type: ignore[arg-type]

    def _setup_model(self) -> None:
        self._prepare_policy()
        super()._setup_model()
        if not isinstance(self.critic, EnsembleCritic):
            raise InvalidInputError(
                f"policy must be a FastSACPolicy; got {self.policy_class.__name__}: pass 'MlpPolicy'"
            )
        most = self.critic.n_critics
        if self.target_critics is not None and self.target_critics > most:
            raise InvalidInputError(
                f"target_critics must be at most n_critics, here {most}; got {self.target_critics}: "
                "ask for fewer, or for more by policy_kwargs={'n_critics': …}"
            )
        if self.ent_coef_optimizer is not None and self.log_ent_coef is not None:
            rate = self.lr_schedule(1)
            self.ent_coef_optimizer = DirectAdam([self.log_ent_coef], lr=rate)

    def _prepare_policy(self) -> None:
        if not self.standardise:
            return
        box = self.observation_space
        if not isinstance(box, spaces.Box) or box.dtype == np.uint8:
            raise InvalidInputError(
                f"standardise needs a Box of numbers as observation space; got {box}: leave it out"
            )
        extractor = self.policy_kwargs.setdefault("features_extractor_class", Standardised)
        if extractor is not Standardised:
            raise InvalidInputError(
                f"standardise has a features extractor of its own; got {extractor} in policy_kwargs: "
                "leave one of them out"
            )

    def train(self, gradient_steps: int, batch_size: int = 64) -> None:
        """So many updates on batches from the replay buffer; what they were like goes to the logger."""
        self.begin_updates()
        seen = self.updates(self._n_updates, gradient_steps, lambda: self.sampled(batch_size))
        self.end_updates(gradient_steps, seen)

    def sampled(self, batch_size: int) -> ReplayBufferSamples:
        """A batch from the replay buffer, as this learner sees it."""
        assert self.replay_buffer is not None
        return self.replay_buffer.sample(batch_size, env=self._vec_normalize_env)

    def update(self, batch: ReplayBufferSamples, with_actor: bool) -> dict[str, Tensor]:
        """One update from ``batch``, without that of the target; what it was like."""
        if self.use_sde:
            self.actor.reset_noise()
        return super().update(batch, with_actor)

    def begin_updates(self) -> None:
        """What comes before the updates of a ``train``: units, modes and learning rates."""
        if self.standardise:
            self._standardise()
        self.policy.set_training_mode(True)
        optimizers = [self.actor.optimizer, self.critic.optimizer]
        if self.ent_coef_optimizer is not None:
            optimizers.append(self.ent_coef_optimizer)
        self._update_learning_rate(optimizers)

    def end_updates(self, count: int, seen: Mapping[str, Tensor]) -> None:
        """Count the updates, and log the mean of what they were like."""
        self._n_updates += count
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        for name, values in seen.items():
            self.logger.record(f"train/{name}", values.mean().item())

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the form of ``like``, as SB3 draws them."""
        return torch.randn_like(like)

    def chosen_critics(self) -> Tensor | None:
        """[m]: which critics are asked for the target."""
        if self.target_critics is None:
            return None
        order = torch.randperm(self.critic.n_critics, device=self.device)
        return order[: self.target_critics]

    def sample_actions(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [B, A] of the actor at obs, and their log-probabilities [B]."""
        return self.actor.action_log_prob(obs) if self.use_sde else super().sample_actions(obs)

    def move_target(self) -> None:
        """As SB3's polyak_update; running statistics are copied."""
        super().move_target()
        for mine, other in zip(self.batch_norm_stats_target, self.batch_norm_stats, strict=True):
            mine.copy_(other)

    def _excluded_save_params(self) -> list[str]:
        # A model is its holder's, not the learner's; so are earlier tasks.
        return [*super()._excluded_save_params(), "look_ahead", "drift"]

    def _standardise(self) -> None:
        """Set the statistics of observations and rewards from the rows of the replay buffer, if that is due. What an
        actor was on earlier tasks it was in the units of then, so they stay where it is held to that."""
        first = self.standardised_rows == 0
        grown = _row_count(self.replay_buffer) >= _GROWN * self.standardised_rows
        if not grown or (self.drift is not None and not first):
            return
        obs, reward = standardising_rows(self.replay_buffer)
        obs, reward = self._as_seen(obs, reward)
        for module in self._units():
            module.set(obs)
        size = float(np.sqrt(np.mean(np.square(reward, dtype=np.float64))))
        if first:  # another scale would turn all that the critics have learned into another number
            self.reward_scale = size if size > 0.0 else 1.0
        self.standardised_rows = len(obs)

    def hide(self, hidden: Tensor) -> None:
        """Show policy and critics nothing of the observation's dimensions that are ``hidden`` [O] bool, from now on.

        Raises InvalidInputError for a learner without ``standardise``, before it has any rows, or another shape.
        """
        units, hidden = self._units(), hidden.to(self.device)
        for module in units:
            if hidden.shape != module.scale.shape or hidden.dtype != torch.bool:
                raise InvalidInputError(
                    f"hidden must be bool {tuple(module.scale.shape)}; got {hidden.dtype} {tuple(hidden.shape)}"
                )
        if units and all(torch.equal(module.hidden, hidden) for module in units):
            return
        obs, reward = standardising_rows(self.replay_buffer)
        if not units or not len(obs):
            raise InvalidInputError(
                "hide needs a learner that standardises (standardise=True) and has rows in its replay"
            )
        obs, _ = self._as_seen(obs, reward)
        for module in units:
            module.hide(hidden, obs)

    def _units(self) -> list[Standardised]:
        return [module for module in self.policy.modules() if isinstance(module, Standardised)]

    def _as_seen(self, obs: Array, reward: Array) -> tuple[Array, Array]:
        env = self._vec_normalize_env
        if env is None:
            return obs, reward
        return np.asarray(env.normalize_obs(obs)), env.normalize_reward(reward)


def standardising_rows(buffer: Any) -> tuple[Array, Array]:
    """All observations [N, …] and rewards [N] of a replay buffer: of SB3's, or by its own method
    ``standardising_rows()``. They are raw: not by VecNormalize."""
    own = getattr(buffer, "standardising_rows", None)
    if own is not None:
        obs, reward = own()
        return np.asarray(obs), np.asarray(reward)
    assert isinstance(buffer, BaseBuffer)
    rows = buffer.size()
    obs, reward = buffer.observations[:rows], buffer.rewards[:rows]  # type: ignore[attr-defined]
    return obs.reshape(-1, *obs.shape[2:]), reward.reshape(-1)


def _row_count(buffer: Any) -> int:
    """How many rows ``standardising_rows`` would give."""
    if getattr(buffer, "standardising_rows", None) is not None:
        return int(buffer.size())
    assert isinstance(buffer, BaseBuffer)
    return buffer.size() * buffer.n_envs
