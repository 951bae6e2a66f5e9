"""One update of SAC, of one learner or of several alike at once.

Written for tensors whose last dimensions are a learner's own: rows [..., B], a critic a row of [..., n, B]. What stands
before them are learners (``side_by_side.py``), and one by itself has nothing there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from torch import Tensor

from agents.learners.adam import DirectAdam
from agents.learners.ahead import Ahead, climbed
from agents.learners.critics import squashed_sample


class SACUpdate:
    """The networks, the settings and the draws of SAC, and what an update makes of them."""

    # Annotated as loosely as SB3's classes and the stacks of several need.
    actor: Any
    critic: Any
    critic_target: Any
    log_ent_coef: Any
    ent_coef_tensor: Any
    ent_coef_optimizer: Any
    target_entropy: Any
    gamma: float
    tau: float
    actor_every: int
    target_update_interval: int
    actor_q: Literal["min", "mean"]
    imitation: float
    #: Divides all rewards; a number, or [K, 1] of K learners.
    reward_scale: Any
    look_ahead: Callable[[], Ahead | None] | None
    drift: Callable[[], Tensor] | None

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the form of ``like``."""
        raise NotImplementedError

    def chosen_critics(self) -> Tensor | None:
        """[..., m]: which critics are asked for the target, drawn anew; None: all."""
        raise NotImplementedError

    def updates(
        self, done: int, count: int, sample: Callable[[], ReplayBufferSamples]
    ) -> dict[str, Tensor]:
        """``count`` updates after ``done`` earlier ones, each from a new ``sample``; what they were like, [count, ...] by
        name, or fewer of what not every update has."""
        seen: dict[str, list[Tensor]] = {}
        for step in range(count):
            batch = sample()
            with_actor = (done + step) % self.actor_every == 0
            for name, value in self.update(batch, with_actor).items():
                seen.setdefault(name, []).append(value)
            if step % self.target_update_interval == 0:
                self.move_target()
        return {name: torch.stack(values) for name, values in seen.items()}

    def update(self, batch: ReplayBufferSamples, with_actor: bool) -> dict[str, Tensor]:
        """One update from ``batch``, without that of the target; what it was like, [...]."""
        seen: dict[str, Tensor] = {}
        if self.log_ent_coef is None:
            ent_coef = self.ent_coef_tensor
        else:
            # A copy: the temperature's own step comes first, the losses below see the one before.
            ent_coef = self.log_ent_coef.detach().exp()
        seen["ent_coef"] = ent_coef.squeeze(-1)
        if with_actor:
            actions, log_prob = self.sample_actions(batch.observations)
            if self.log_ent_coef is not None:
                seen["ent_coef_loss"] = self._update_temperature(log_prob.detach())
        seen["critic_loss"] = self._update_critics(batch, ent_coef)
        if with_actor:
            seen["actor_loss"] = self.update_actor(batch, actions, log_prob, ent_coef)
        return seen

    def sample_actions(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Actions [..., B, A] of the actor at obs, and their log-probabilities [..., B]."""
        mean, log_std, _ = self.actor.get_action_dist_params(obs)
        return squashed_sample(mean, log_std, self.noise(mean))

    def _update_temperature(self, log_prob: Tensor) -> Tensor:
        """A step on −log α · (log π + target entropy) (arXiv 1812.05905, equation 18, in log α as in SB3);
        the loss before it."""
        slope = -(log_prob + self.target_entropy).mean(-1)
        loss: Tensor = slope * self.log_ent_coef.detach().squeeze(-1)
        gradient = slope.reshape(self.log_ent_coef.shape)
        _step(self.ent_coef_optimizer, [self.log_ent_coef], (gradient,))
        return loss

    def _update_critics(self, batch: ReplayBufferSamples, ent_coef: Tensor) -> Tensor:
        """A step on half the squared TD error (arXiv 1812.05905, equation 5), summed over the critics;
        the loss before it."""
        target = self.target(batch, ent_coef)
        q = self.critic.values(batch.observations, batch.actions)
        error = q.detach() - target.unsqueeze(-2)
        parameters = parameters_of(self.critic.optimizer)
        slope = error / target.shape[-1]
        _step(self.critic.optimizer, parameters, torch.autograd.grad(q, parameters, slope))
        loss: Tensor = 0.5 * (error * slope).sum((-2, -1))
        return loss

    @torch.no_grad()
    def target(self, batch: ReplayBufferSamples, ent_coef: Tensor) -> Tensor:
        """What the critics should say [..., B]: r + γ(1 − d)(min Q − α log π) at the next observations (arXiv
        1812.05905, equation 3)."""
        next_actions, next_log_prob = self.sample_actions(batch.next_observations)
        next_q = self.critic_target.values(
            batch.next_observations, next_actions, self.chosen_critics()
        ).amin(dim=-2)
        next_q = next_q - ent_coef * next_log_prob
        discounts = self.gamma if batch.discounts is None else batch.discounts.squeeze(-1)
        rewards = batch.rewards.squeeze(-1) / self.reward_scale
        found: Tensor = rewards + (1.0 - batch.dones.squeeze(-1)) * discounts * next_q
        return found

    def update_actor(
        self, batch: ReplayBufferSamples, actions: Tensor, log_prob: Tensor, ent_coef: Tensor
    ) -> Tensor:
        """A step on α log π − Q (arXiv 1812.05905, equation 9); the loss before it."""
        climbed = self.climbed(batch.observations, actions, ent_coef)
        loss = (ent_coef * log_prob[..., : climbed.shape[-1]] - climbed).mean(-1)
        planned = getattr(batch, "planned", None)
        if self.imitation > 0.0 and planned is not None:
            spread = climbed.detach().std(-1, correction=0)
            loss = loss + self.imitation * spread * _distance(actions, batch.actions, planned)
        if self.drift is not None:
            loss = loss + climbed.detach().std(-1, correction=0) * self.drift()
        parameters = parameters_of(self.actor.optimizer)
        gradients = torch.autograd.grad(loss.sum(), parameters, allow_unused=True)
        _step(self.actor.optimizer, parameters, gradients)
        return loss.detach()

    def climbed(self, obs: Tensor, actions: Tensor, ent_coef: Tensor) -> Tensor:
        """What the actor climbs, differentiable in its actions [..., B, A] at obs: the critics' Q [..., B]; with
        ``look_ahead`` that of ``ahead.climbed``, for as many rows as the model's members can share."""
        ahead = None if self.look_ahead is None else self.look_ahead()
        if ahead is None:
            return self._critics_say(obs, actions)
        return climbed(
            ahead, obs, actions, self._critics_say, self.sample_actions, self.gamma, ent_coef
        )

    def _critics_say(self, obs: Tensor, actions: Tensor) -> Tensor:
        """Q [..., B], with a gradient for actions [..., B, A] and obs alone."""
        q: Tensor = self.critic.values(obs, actions, fixed=True)
        # Where critics agree amin would share the gradient, and SB3 does not.
        return q.min(dim=-2).values if self.actor_q == "min" else q.mean(dim=-2)

    @torch.no_grad()
    def move_target(self) -> None:
        """Target += τ (critic − target), as SB3's polyak_update."""
        torch._foreach_lerp_(
            list(self.critic_target.parameters()), list(self.critic.parameters()), self.tau
        )


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What it moves, in its order."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _distance(actions: Tensor, planned_actions: Tensor, planned: Tensor) -> Tensor:
    """Mean over the planned rows of the squared distance between actions [..., B, A]; zero without any."""
    mask = planned.squeeze(-1)
    squares = (actions - planned_actions).square().sum(dim=-1)
    return (mask * squares).sum(-1) / mask.sum(-1).clamp_(min=1.0)


def _step(
    optimizer: torch.optim.Optimizer,
    parameters: list[Tensor],
    gradients: tuple[Tensor | None, ...],
) -> None:
    alike = [_laid_as(*pair) for pair in zip(gradients, parameters, strict=True)]
    if isinstance(optimizer, DirectAdam):
        optimizer.step_along(alike)
        return
    for parameter, gradient in zip(parameters, alike, strict=True):
        parameter.grad = gradient
    optimizer.step()


def _laid_as(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    # The fused Adam reads memory as it lies.
    if gradient is None or gradient.stride() == parameter.stride():
        return gradient
    return torch.empty_like(parameter).copy_(gradient)
