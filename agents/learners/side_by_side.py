"""Updates of several learners alike as one: each layer's weights of all K lie in one tensor [K, …]."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.sac.policies import LOG_STD_MAX, LOG_STD_MIN
from torch import Tensor, nn
from torch.nn import functional

from agents.learners.adam import DirectAdam
from agents.learners.ahead import Ahead, StepsAhead
from agents.learners.critics import Standardised
from agents.learners.fast_sac import FastSAC
from agents.learners.sac_update import SACUpdate, parameters_of
from mbrl_bilevel.base.errors import InvalidInputError

#: The models of K learners as one, of rows [K, B, …].
Join = Callable[[Sequence[Any]], StepsAhead]

#: What must be the same, besides the networks.
_SETTINGS = (
    *("gamma", "tau", "target_entropy", "actor_every", "actor_q", "target_critics", "imitation"),
    *("standardise", "target_update_interval", "_n_updates", "device", "ent_coef", "batch_size"),
)


@contextmanager
def side_by_side(learners: Sequence[FastSAC], join: Join) -> Iterator[SideBySide]:
    """``learners`` whose updates are made as one inside the block; behind it each has tensors of its own again.

    ``join`` makes one model of those that they look ahead in. Raises InvalidInputError for learners that do not go
    together: they must be FastSACs of the same settings, sizes and number of updates, on flat observations, without dropout and
    gSDE.
    """
    require_alike(learners)
    together = SideBySide(learners, join)
    try:
        yield together
    finally:
        together.part()


class SideBySide(SACUpdate):
    """The update of SAC for K learners: made by ``side_by_side``.

    Their tensors are parts of larger ones, so that each of them acts, and is saved, as it is now.
    """

    def __init__(self, learners: Sequence[FastSAC], join: Join) -> None:
        first = learners[0]
        self._learners, self._join, self.device = list(learners), join, first.device
        self.actor = _Actors([learner.actor for learner in learners])
        self.critic = _Critics([learner.critic for learner in learners])
        self.critic_target = _Critics([each.critic_target for each in learners], learn=False)
        self._stacks = [net.stack for net in (self.actor, self.critic, self.critic_target)]
        self.log_ent_coef, self.ent_coef_optimizer = None, None
        if first.log_ent_coef is not None:
            temperature = _Stack(
                [{"log α": learner.log_ent_coef} for learner in learners],
                [learner.ent_coef_optimizer for learner in learners],
            )
            self._stacks.append(temperature)
            self.log_ent_coef = temperature.tensors["log α"]
            self.ent_coef_optimizer = temperature.optimizer
        self.ent_coef_tensor = getattr(first, "ent_coef_tensor", None)
        self.target_entropy, self.gamma, self.tau = first.target_entropy, first.gamma, first.tau
        self.actor_every, self.actor_q = first.actor_every, first.actor_q
        self.target_update_interval = first.target_update_interval
        self.imitation, self.drift, self.look_ahead = first.imitation, None, self._ahead
        self._target_critics = first.target_critics
        self._draws: Sequence[torch.Generator] = ()
        self._models: tuple[StepsAhead, ...] = ()
        self._joined: StepsAhead | None = None

    def train(self, count: int, batch_size: int, draws: Sequence[torch.Generator]) -> None:
        """As ``train`` of each, whose own random numbers come from its one of the generators ``draws``."""
        first, self._draws = self._learners[0], draws
        for learner in self._learners:
            learner.begin_updates()
        self._take_over()
        learners = self._learners
        seen = self.updates(
            first._n_updates,
            count,
            lambda: _one_batch([each.sampled(batch_size) for each in learners]),
        )
        for stack in self._stacks:
            stack.share_states()
        for k, learner in enumerate(learners):
            # A temperature that is fixed is one for all.
            own = {name: v[:, k] if v.ndim > 1 else v for name, v in seen.items()}
            learner.end_updates(count, own)

    def part(self) -> None:
        """Give each learner tensors of its own, and its optimisers their states."""
        for stack in self._stacks:
            stack.part()

    def noise(self, like: Tensor) -> Tensor:
        """Of the form [K, …] of ``like``, each learner's from its own generator."""
        form = like.shape[1:]
        draws = [torch.randn(form, generator=own, device=own.device) for own in self._draws]
        return torch.stack(draws).to(like)

    def chosen_critics(self) -> Tensor | None:
        """[K, m]: which critics are asked for the target."""
        if self._target_critics is None:
            return None
        count = self.critic.count
        orders = [torch.randperm(count, generator=own, device=own.device) for own in self._draws]
        return torch.stack(orders)[:, : self._target_critics].to(self.device)

    def _take_over(self) -> None:
        """What each learner decides for itself: its units, the learning rate of now."""
        first = self._learners[0]
        scales = [[learner.reward_scale] for learner in self._learners]
        self.reward_scale = torch.tensor(scales, device=self.device)
        for net in (self.actor, self.critic, self.critic_target):
            net.take_units()
        pairs = [(self.actor.optimizer, first.actor.optimizer)]
        pairs.append((self.critic.optimizer, first.critic.optimizer))
        if self.ent_coef_optimizer is not None:
            pairs.append((self.ent_coef_optimizer, first.ent_coef_optimizer))
        for whole, own in pairs:
            whole.param_groups[0]["lr"] = own.param_groups[0]["lr"]

    def _ahead(self) -> Ahead | None:
        """Of the models of now; None while there are none."""
        found = [each.look_ahead() for each in self._learners if each.look_ahead is not None]
        aheads = [ahead for ahead in found if ahead is not None]
        if not aheads:
            return None
        assert len(aheads) == len(self._learners)
        models = tuple(ahead.model for ahead in aheads)
        # Made once for all updates between two fits.
        if self._joined is None or any(
            a is not b for a, b in zip(models, self._models, strict=True)
        ):
            self._models, self._joined = models, self._join(models)
        return Ahead(self._joined, aheads[0].steps, aheads[0].lam)


class _Stack:
    """Tensors of K owners alike, by name, [K, …]: theirs are parts of these. ``optimizer`` moves what the owners' own
    ``optimizers`` move, from their states on; None where they have none."""

    def __init__(
        self, tensors: Sequence[Mapping[str, Tensor]], optimizers: Sequence[Any] | None
    ) -> None:
        self._own, self._optimizers = list(tensors), optimizers
        self.tensors: dict[str, Tensor] = {}
        for name in tensors[0]:
            whole = torch.stack([own[name].detach() for own in tensors])
            self.tensors[name] = whole.requires_grad_()
            for own, part in zip(tensors, whole.detach(), strict=True):
                own[name].data = part
        self.optimizer = None if optimizers is None else self._stacked(optimizers)
        self._shared = False

    def share_states(self) -> None:
        """Let the owners' optimisers have the states that there are, as parts of the larger ones: they are saved with
        them. Those of a first step came with that."""
        if self.optimizer is None or self._optimizers is None or self._shared:
            return
        moved = parameters_of(self.optimizer)
        for k, optimizer in enumerate(self._optimizers):
            for own, whole in zip(parameters_of(optimizer), moved, strict=True):
                for name, value in self.optimizer.state[whole].items():
                    optimizer.state[own][name] = value if name == "step" else value[k]
        # An actor that learns at every n-th update may have none yet.
        self._shared = all(self.optimizer.state[whole] for whole in moved)

    def part(self) -> None:
        """Give each owner tensors, and its optimiser a state, of its own."""
        for k, own in enumerate(self._own):
            for name, whole in self.tensors.items():
                own[name].data = whole.detach()[k].clone()
        for optimizer in self._optimizers or ():
            for state in optimizer.state.values():
                state |= {name: value.clone() for name, value in state.items()}

    def _stacked(self, optimizers: Sequence[Any]) -> DirectAdam:
        """One that goes on from where these are."""
        names = {id(own): name for name, own in self._own[0].items()}
        moved = [self.tensors[names[id(own)]] for own in parameters_of(optimizers[0])]
        group = optimizers[0].param_groups[0]
        made = DirectAdam(
            moved, **{name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
        )
        for place, whole in enumerate(moved):
            states = [each.state.get(parameters_of(each)[place]) for each in optimizers]
            for name, value in (states[0] or {}).items():
                alike = [state[name] for state in states]
                made.state[whole][name] = value.clone() if name == "step" else torch.stack(alike)
        return made


class _Net:
    """What the stacked networks of actors and critics have in common: ``stack``, and how they see observations."""

    def __init__(self, modules: Sequence[Any], *, learn: bool = True) -> None:
        optimizers = [module.optimizer for module in modules] if learn else None
        self.stack = _Stack([dict(module.named_parameters()) for module in modules], optimizers)
        self.optimizer = self.stack.optimizer
        self._extractors = [module.features_extractor for module in modules]
        self._units: tuple[Tensor, Tensor, Tensor] | None = None

    def parameters(self) -> list[Tensor]:
        """Of all networks, [K, …]."""
        return list(self.stack.tensors.values())

    def take_units(self) -> None:
        """How each of them sees observations now."""
        if isinstance(self._extractors[0], Standardised):
            mean, scale, limit = (
                torch.stack([getattr(each, name) for each in self._extractors])
                for name in ("mean", "scale", "limit")
            )
            self._units = mean.unsqueeze(1), scale.unsqueeze(1), limit.reshape(-1, 1, 1)

    def features(self, obs: Tensor) -> Tensor:
        """[K, B, O] of observations [K, B, O], as the networks see them."""
        obs = obs.float()
        if self._units is None:
            return obs
        mean, scale, limit = self._units
        return torch.clamp((obs - mean) / scale, -limit, limit)


class _Actors(_Net):
    """K actors of SB3's SAC."""

    def __init__(self, actors: Sequence[Any]) -> None:
        super().__init__(actors)
        self._layers = list(actors[0].latent_pi.named_children())

    def get_action_dist_params(self, obs: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Mean and log of the standard deviation [K, B, A] at obs [K, B, O], before they are squashed."""
        x = self.features(obs)
        for name, module in self._layers:
            linear = isinstance(module, nn.Linear)
            x = self._linear(f"latent_pi.{name}", x) if linear else module(x)
        log_std = torch.clamp(self._linear("log_std", x), LOG_STD_MIN, LOG_STD_MAX)
        return self._linear("mu", x), log_std, {}

    def _linear(self, name: str, x: Tensor) -> Tensor:
        weight, bias = (self.stack.tensors[f"{name}.{part}"] for part in ("weight", "bias"))
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


class _Critics(_Net):
    """The critics of K learners, each an ``EnsembleCritic`` of ``count``."""

    def __init__(self, critics: Sequence[Any], *, learn: bool = True) -> None:
        super().__init__(critics, learn=learn)
        self.count, self._depth = critics[0].n_critics, len(critics[0].weights)
        self._activation = critics[0].activation

    def values(
        self, obs: Tensor, actions: Tensor, subset: Tensor | None = None, *, fixed: bool = False
    ) -> Tensor:
        """The Q-values [K, n, B] at obs [K, B, O] and actions [K, B, A]; as of ``EnsembleCritic``, of those in
        ``subset`` [K, m]."""

        def chosen(name: str, layer: int) -> Tensor:
            whole = self.stack.tensors[f"{name}.{layer}"]
            whole = whole.detach() if fixed else whole
            if subset is None:
                return whole
            learner = torch.arange(len(subset), device=subset.device).unsqueeze(1)
            return whole[learner, subset]

        x = torch.cat([self.features(obs), actions], dim=-1).unsqueeze(1)
        for layer in range(self._depth):
            x = torch.matmul(x, chosen("weights", layer)) + chosen("biases", layer)
            if layer == self._depth - 1:
                break
            if f"norm_weights.{layer}" in self.stack.tensors:
                normal = functional.layer_norm(x, x.shape[-1:])
                x = chosen("norm_biases", layer) + normal * chosen("norm_weights", layer)
            x = self._activation(x)
        return x.squeeze(-1)


def _one_batch(batches: Sequence[Any]) -> Any:
    """One of [K, B, …] of K batches."""
    columns = zip(*batches, strict=True)
    return type(batches[0])(*(None if c[0] is None else torch.stack(c) for c in columns))


def require_alike(learners: Sequence[Any]) -> None:
    """Raises InvalidInputError for learners that ``side_by_side`` refuses."""
    for learner in learners:
        what = _unfit(learner) or _difference(learners[0], learner)
        if what:
            raise InvalidInputError(
                f"learners side by side must be FastSACs alike: {what}; train them one after another"
            )


def _unfit(learner: Any) -> str | None:
    """What stands in the way of stacking it with any other."""
    if type(learner) is not FastSAC:
        return f"one is a {type(learner).__name__}"
    if learner.use_sde:
        return "one has use_sde"
    if learner.critic.dropout > 0.0:
        return "one has dropout"
    if learner.drift is not None:
        return "one keeps what it was on earlier tasks"
    if type(learner.actor.features_extractor) not in (Standardised, FlattenExtractor):
        return f"one has a {type(learner.actor.features_extractor).__name__}"
    if len(learner.observation_space.shape or ()) != 1:
        return "one has observations that are not flat"
    others = [m for m in learner.actor.latent_pi if not isinstance(m, nn.Linear)]
    if any(list(module.parameters()) for module in (*others, learner.critic.activation)):
        return "one has an activation that learns"
    for optimizer in _optimizers(learner):
        if type(optimizer) is not DirectAdam:
            return f"one is moved by {type(optimizer).__name__}"
    return None


def _optimizers(learner: Any) -> list[Any]:
    found = [learner.actor.optimizer, learner.critic.optimizer, learner.ent_coef_optimizer]
    return [optimizer for optimizer in found if optimizer is not None]


def _difference(one: Any, other: Any) -> str | None:
    for name in _SETTINGS:
        mine, theirs = getattr(one, name), getattr(other, name)
        if mine != theirs:
            return f"{name.lstrip('_')} is {mine} and {theirs}"
    rates = [[learner.lr_schedule(left) for left in (1.0, 0.5, 0.0)] for learner in (one, other)]
    if rates[0] != rates[1]:
        return f"learning_rate is {rates[0][0]} and {rates[1][0]}"
    pairs = zip(_optimizers(one), _optimizers(other), strict=True)
    for mine, theirs in ((a.param_groups[0], b.param_groups[0]) for a, b in pairs):
        for name in ("betas", "eps", "weight_decay"):
            if mine[name] != theirs[name]:
                return f"their optimisers' {name} is {mine[name]} and {theirs[name]}"
    if repr(one.policy) != repr(other.policy):  # it shows layers, their sizes and activations
        return "they have other networks"
    return None
