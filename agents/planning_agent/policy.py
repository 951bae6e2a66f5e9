"""What a planner asks of the learner that the agent holds: actions to try, and what a state is worth.

Both in raw units, whatever the learner sees: SAC, TQC and CrossQ (a squashed Gaussian actor), TD3 and
DDPG (a deterministic one), DQN (Q-values of discrete actions).
"""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor

from agents.common.spaces import ActionSpace
from agents.learners.no_learner import NoLearner
from agents.planning_agent.replay import model_action

#: Noise on a deterministic actor's proposals, in half-ranges: TD3's own exploration noise (Fujimoto et al.
#: 2018, arXiv 1802.09477, table 3).
_NOISE = 0.1


class HeldPolicy:
    """The policy and the critics of ``algorithm``, asked at raw observations; actions are vectors [A]."""

    def __init__(
        self,
        algorithm: OffPolicyAlgorithm,
        action_space: ActionSpace,
        normalised: VecNormalize | None,
    ) -> None:
        self._algorithm, self._actions, self._normalised = algorithm, action_space, normalised
        self.exists = not isinstance(algorithm, NoLearner)

    @property
    def device(self) -> torch.device:
        """Where it works."""
        return self._algorithm.device

    @property
    def discount(self) -> float:
        """γ of the critics."""
        return float(self._algorithm.gamma)

    @torch.inference_mode()
    def act(self, obs: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Actions [B, A] at obs [B, O]: drawn by ``generator``, or without one the policy's best guess."""
        policy = self._evaluating()
        seen = self.seen(obs)
        if hasattr(policy, "q_net"):
            return self._choice(policy.q_net(seen), generator).to(obs)
        return model_action(self._actions, _squashed(policy.actor, seen, generator)).to(obs)

    @torch.inference_mode()
    def value(self, obs: Tensor) -> Tensor:
        """What obs [..., O] are worth, [...]: min over critics of Q(s, π(s)), or max over a of Q(s, a)."""
        return self.worth(obs)

    def worth(self, obs: Tensor) -> Tensor:
        """``value``, through which gradients pass."""
        policy = self._evaluating()
        seen = self.seen(obs.reshape(-1, obs.shape[-1]))
        if hasattr(policy, "q_net"):
            found = policy.q_net(seen).amax(1)
        else:
            found = _least(policy.critic(seen, _squashed(policy.actor, seen, None)))
        worth: Tensor = found * self.reward_scale()
        return worth.reshape(obs.shape[:-1]).to(obs)

    @torch.inference_mode()
    def action_value(self, obs: Tensor, stored: Tensor) -> Tensor:
        """Q [B] at obs [B, O] and actions [B, ·] as the replay stores them."""
        policy, seen = self._evaluating(), self.seen(obs)
        if hasattr(policy, "q_net"):
            start = int(getattr(self._actions, "start", 0))
            choice = stored.to(seen.device).long() - start
            found = policy.q_net(seen).gather(1, choice).squeeze(1)
        else:
            found = _least(policy.critic(seen, stored.to(seen)))
        worth: Tensor = found * self.reward_scale()
        return worth.to(obs)

    def _choice(self, q: Tensor, generator: torch.Generator | None) -> Tensor:
        """One-hot [B, A]: the best, or a draw from softmax(Q) in units of Q's spread over actions."""
        if generator is None:
            index = q.argmax(1)
        else:
            spread = q.std(1, keepdim=True, correction=0)
            spread = torch.where(spread > 0.0, spread, 1.0)
            index = torch.multinomial((q / spread).softmax(1).cpu(), 1, generator=generator)[:, 0]
        return torch.nn.functional.one_hot(index, q.shape[1]).float()

    def _evaluating(self) -> Any:
        policy = self._algorithm.policy
        if policy.training:
            policy.set_training_mode(False)
        return policy

    def seen(self, obs: Tensor) -> Tensor:
        """Raw ``obs`` [..., O] as the algorithm sees them: normalised where a VecNormalize stands around the
        environment."""
        obs = obs.to(self._algorithm.device, torch.float32)
        moments = self._normalised
        if moments is None or not moments.norm_obs:
            return obs
        mean, spread = self._moments(moments, obs)
        return ((obs - mean) / spread).clamp(-moments.clip_obs, moments.clip_obs)

    def raw(self, seen: Tensor) -> Tensor:
        """The inverse of ``seen``, but for what is clipped."""
        moments = self._normalised
        if moments is None or not moments.norm_obs:
            return seen
        mean, spread = self._moments(moments, seen)
        return mean + spread * seen

    def reward_scale(self) -> float:
        """Raw reward for one of the critics' units."""
        scale = float(getattr(self._algorithm, "reward_scale", 1.0))
        moments = self._normalised
        if moments is not None and moments.norm_reward:
            scale *= float((moments.ret_rms.var + moments.epsilon) ** 0.5)
        return scale

    @staticmethod
    def _moments(normalised: VecNormalize, like: Tensor) -> tuple[Tensor, Tensor]:
        statistics: Any = normalised.obs_rms
        mean, var = (torch.as_tensor(v).to(like) for v in (statistics.mean, statistics.var))
        return mean, (var + normalised.epsilon).sqrt()


def _squashed(actor: Any, seen: Tensor, generator: torch.Generator | None) -> Tensor:
    """Actions in [−1, 1], [B, A]."""
    if hasattr(actor, "get_action_dist_params"):
        mean, log_std, features = actor.get_action_dist_params(seen)
        if generator is not None:
            std = log_std.exp()
            if actor.use_sde:
                # There log_std is that of the exploration matrix, not of the actions.
                made = actor.action_dist.proba_distribution(mean, log_std, **features)
                std = made.distribution.stddev
            mean = mean + std * _normal(mean, generator)
        found: Tensor = mean.tanh()
        return found
    guess: Tensor = actor(seen)
    if generator is None:
        return guess
    return (guess + _NOISE * _normal(guess, generator)).clamp(-1.0, 1.0)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like)


def _least(q: Any) -> Tensor:
    """[B] of the critics' answers: a tuple of [B, 1], or TQC's quantiles [B, critics, quantiles]."""
    if isinstance(q, Tensor) and q.ndim == 3:
        return q.mean((1, 2))
    return torch.cat(tuple(q), dim=1).amin(1)
