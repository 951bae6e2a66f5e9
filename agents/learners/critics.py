"""The critics of SAC in one module: a tensor a layer holds the weights of all of them.

They take the place of Stable-Baselines3's, start from the same draws, and may have LayerNorm and dropout.
"""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import (
    BaseFeaturesExtractor,
    CombinedExtractor,
    NatureCNN,
)
from stable_baselines3.common.type_aliases import PyTorchObs
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import Tensor, nn
from torch.nn import functional

from agents.learners.adam import DirectAdam
from agents.learners.perceptrons import Layer, values
from mbrl_bilevel.base.errors import InvalidInputError, require_count

#: The unit of what is hidden: in single precision nothing is left of an observation. Finite, since files hold no infinity.
_HIDDEN = 1e30
#: Standardised observations stay within this many spreads of their mean.
_LIMIT = 10.0
#: A dimension whose spread is below this share of its size says nothing but how numbers are rounded.
_CONSTANT = 1e-6


class InPlaceReLU(nn.ReLU):
    """ReLU that overwrites its input."""

    def __init__(self) -> None:
        super().__init__(inplace=True)


class EnsembleCritic(ContinuousCritic):
    """``n_critics`` networks Q(s, a) whose weights lie in one tensor [n, in, out] a layer.

    The arguments are those of SB3's critic, and the networks start from the same draws. With
    ``layer_norm`` a LayerNorm stands behind each hidden layer, before the activation; with ``dropout``
    a share of the hidden layer's outputs is dropped before that (Hiraoka et al. 2022, arXiv 2110.02034,
    figure 1).
    """

    def __init__(
        self,
        *args: Any,
        activation_fn: type[nn.Module] = nn.ReLU,
        layer_norm: bool = False,
        dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **{"activation_fn": activation_fn, **kwargs})
        self.dropout = dropout
        # What changes its input only is safe behind a product, which keeps its inputs alone.
        self.activation = InPlaceReLU() if activation_fn is nn.ReLU else activation_fn()
        layers = self._layers_of(self.q_networks)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for alike in layers:
            weight = _side_by_side(alike, "weight").transpose(1, 2).contiguous()
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(_side_by_side(alike, "bias").unsqueeze(1)))
        self.norm_weights, self.norm_biases = nn.ParameterList(), nn.ParameterList()
        for bias in list(self.biases)[:-1] if layer_norm else []:
            self.norm_weights.append(nn.Parameter(torch.ones_like(bias)))
            self.norm_biases.append(nn.Parameter(torch.zeros_like(bias)))
        for index in range(self.n_critics):
            delattr(self, f"qf{index}")
        self.q_networks = []

    def forward(self, obs: PyTorchObs, actions: Tensor) -> tuple[Tensor, ...]:
        """The Q-values [B, 1] of each critic at obs [B, O] and actions [B, A]."""
        return tuple(self.values(obs, actions).unsqueeze(2).unbind(0))

    def q1_forward(self, obs: PyTorchObs, actions: Tensor) -> Tensor:
        """The Q-values [B, 1] of the first critic."""
        return self.values(obs, actions, torch.zeros(1, dtype=torch.int64)).squeeze(0).unsqueeze(1)

    def values(
        self,
        obs: PyTorchObs,
        actions: Tensor,
        subset: Tensor | None = None,
        *,
        fixed: bool = False,
    ) -> Tensor:
        """The Q-values [n, B] of all critics, or of those in ``subset`` (indices [m]): [m, B].

        ``fixed`` takes the weights for constants: the values can be differentiated in ``actions`` alone.
        """
        # As in SB3: what is shared with the actor learns from the actor's loss alone.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.share_features_extractor):
            features = self.extract_features(obs, self.features_extractor)
        x = torch.cat([features, actions], dim=1)

        layers = self._layers(subset, fixed)
        if self.dropout == 0.0 and isinstance(self.activation, nn.ReLU):
            return values(x, layers).squeeze(2)
        return self._chain(x, layers).squeeze(2)

    def _layers(self, subset: Tensor | None, fixed: bool) -> list[Layer]:
        def chosen_of(tensor: Tensor) -> Tensor:
            tensor = tensor.detach() if fixed else tensor
            return tensor if subset is None else tensor[subset]

        columns = (self.weights, self.biases, self.norm_weights, self.norm_biases)
        chosen = [[chosen_of(tensor) for tensor in column] for column in columns]
        # The last layer has no LayerNorm, and the others may have none.
        return [Layer(*(part for part in row if part is not None)) for row in zip_longest(*chosen)]

    def _chain(self, x: Tensor, layers: list[Layer]) -> Tensor:
        """As ``values``, for any activation and with dropout: [n, B, 1]."""
        x = x.expand(len(layers[0].weight), -1, -1)
        for layer in layers[:-1]:
            x = torch.baddbmm(layer.bias, x, layer.weight)
            if self.dropout > 0.0:
                x = functional.dropout(x, self.dropout, self.training)
            if layer.scale is not None and layer.shift is not None:
                normal = functional.layer_norm(x, x.shape[-1:])
                x = torch.addcmul(layer.shift, normal, layer.scale)
            x = self.activation(x)
        return torch.baddbmm(layers[-1].bias, x, layers[-1].weight)

    def copy_from(self, critic: ContinuousCritic) -> None:
        """Take over the weights of SB3's critic of the same sizes."""
        with torch.no_grad():
            for index, alike in enumerate(self._layers_of(critic.q_networks)):
                self.weights[index].copy_(_side_by_side(alike, "weight").transpose(1, 2))
                self.biases[index].copy_(_side_by_side(alike, "bias").unsqueeze(1))

    @staticmethod
    def _layers_of(networks: list[nn.Module]) -> list[tuple[nn.Module, ...]]:
        linear = [[m for m in net.children() if isinstance(m, nn.Linear)] for net in networks]
        return list(zip(*linear, strict=True))


def _side_by_side(layers: tuple[nn.Module, ...], name: str) -> Tensor:
    return torch.stack([getattr(layer, name).detach() for layer in layers])


class FastSACPolicy(SACPolicy):
    """SB3's ``MlpPolicy`` of SAC with an ``EnsembleCritic``, and Adam in one pass over the parameters.

    ``n_critics``, ``layer_norm`` and ``dropout`` are the critic's; every other argument is SB3's.
    Raises InvalidInputError where ``n_critics`` is no count or ``dropout`` is outside [0, 1).
    """

    def __init__(
        self, *args: Any, layer_norm: bool = False, dropout: float = 0.0, **kwargs: Any
    ) -> None:
        require_count("n_critics", kwargs.get("n_critics", 2), 1000)
        if type(layer_norm) is not bool:
            raise InvalidInputError(f"layer_norm must be True or False; got {layer_norm!r}")
        if not isinstance(dropout, float | int) or not 0.0 <= dropout < 1.0:
            raise InvalidInputError(f"dropout must be from 0 to below 1; got {dropout!r}")
        self.layer_norm, self.dropout = layer_norm, float(dropout)
        super().__init__(*args, **{"optimizer_class": DirectAdam, **kwargs})

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        if kwargs["activation_fn"] is nn.ReLU:
            kwargs["activation_fn"] = InPlaceReLU
        return Actor(**kwargs).to(self.device)

    def make_critic(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> EnsembleCritic:
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        own: dict[str, Any] = {"layer_norm": self.layer_norm, "dropout": self.dropout}
        return EnsembleCritic(**kwargs, **own).to(self.device)

    def set_training_mode(self, mode: bool) -> None:
        """As in SB3; dropout is on in the target's critics too (arXiv 2110.02034, algorithm 2)."""
        super().set_training_mode(mode)
        self.critic_target.training = mode and self.dropout > 0.0

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"layer_norm": self.layer_norm, "dropout": self.dropout}
        return super()._get_constructor_parameters() | own


class FastCnnPolicy(FastSACPolicy):
    """``FastSACPolicy`` on images, as SB3's ``CnnPolicy``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": NatureCNN, **kwargs})


class FastMultiInputPolicy(FastSACPolicy):
    """``FastSACPolicy`` on dictionaries of observations, as SB3's ``MultiInputPolicy``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"features_extractor_class": CombinedExtractor, **kwargs})


class Standardised(BaseFeaturesExtractor):
    """Flat observations less ``mean``, in units of ``scale``, within ±10; as they are until ``set`` is
    called. Those that ``hide`` names are nothing."""

    mean: Tensor
    scale: Tensor
    limit: Tensor

    def __init__(self, observation_space: gym.Space[Any]) -> None:
        size = get_flattened_obs_dim(observation_space)
        super().__init__(observation_space, size)
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        # A tensor, so that it is saved with the others; the largest finite number limits nothing.
        self.register_buffer("limit", torch.tensor(torch.finfo(torch.float32).max))

    def set(self, rows: npt.NDArray[Any]) -> None:
        """Standardise by the mean and the spread (standard deviation) of these observations [N, …]; what is hidden
        stays so.

        A dimension that is constant there, up to rounding, is shifted but not stretched.
        """
        self._set(~self.hidden, rows)
        self.limit.fill_(_LIMIT)

    def hide(self, hidden: Tensor, rows: npt.NDArray[Any]) -> None:
        """Show nothing of the dimensions that are ``hidden`` [O] bool; those that no longer are, are standardised by
        these observations [N, …]."""
        self._set(self.hidden & ~hidden, rows)
        self.scale[hidden] = _HIDDEN

    @property
    def hidden(self) -> Tensor:
        """[O] bool: the dimensions of which nothing is shown."""
        return self.scale >= _HIDDEN

    def _set(self, which: Tensor, rows: npt.NDArray[Any]) -> None:
        flat = rows.reshape(len(rows), -1).astype(np.float64)
        spread = flat.std(axis=0)
        varies = spread > _CONSTANT * np.abs(flat).max(axis=0)
        mean = torch.from_numpy(flat.mean(axis=0)).to(self.mean)
        scale = torch.from_numpy(np.where(varies, spread, 1.0)).to(self.scale)
        self.mean.copy_(torch.where(which, mean, self.mean))
        self.scale.copy_(torch.where(which, scale, self.scale))

    def forward(self, observations: Tensor) -> Tensor:
        x = (observations.flatten(start_dim=1) - self.mean) / self.scale
        return torch.clamp(x, -self.limit, self.limit)


def squashed_sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions tanh(u) [..., B, A] for u = mean + std · noise, and their log-probabilities [..., B].

    From Haarnoja et al. 2018, arXiv 1801.01290, equation 21; as in SB3, 10⁻⁶ keeps the logarithm finite.
    """
    actions = torch.tanh(torch.addcmul(mean, noise, log_std.exp()))
    # (u − mean)/std is the noise itself: no gradient runs through it.
    density = noise.square().mul_(-0.5).sub_(0.5 * math.log(2.0 * math.pi)) - log_std
    squashing = torch.log(1.0 - actions.square() + 1e-6)
    return actions, (density - squashing).sum(dim=-1)
