"""SAC's networks as Stable-Baselines3 makes them, in less time: the same parameters, the same updates.

What a profile of an update shows beside the products that must be: the critics' last layer, which has
one output, costs as much as one with 256 (now a matrix times a vector); the actor's loss −Q(s, π(s)) also
gets the gradient of the critics' weights, which is cleared unused (now they are constants there); ReLU
fills fresh memory (now in place); Adam runs over parameters one by one (now fused).
"""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn
from torch.nn import functional


class InPlaceReLU(nn.ReLU):
    """ReLU that overwrites its input."""

    def __init__(self) -> None:
        super().__init__(inplace=True)


class LeanCritic(ContinuousCritic):
    """SB3's critic; where its actions carry a gradient, its own weights do not."""

    def forward(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
        """The Q-values [B, 1] of each critic at obs [B, O] and actions [B, A]."""
        fixed = actions.requires_grad
        with torch.set_grad_enabled(not self.share_features_extractor):
            features = self.extract_features(obs, self.features_extractor)
        x = torch.cat([features, actions], dim=1)
        return tuple(_value(net, x, fixed) for net in self.q_networks)


class LeanSACPolicy(SACPolicy):
    """SB3's ``MlpPolicy`` of SAC, to be passed in its place; the arguments are the same."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("activation_fn", InPlaceReLU)
        if "optimizer_class" not in kwargs and kwargs.get("optimizer_kwargs") is None:
            kwargs["optimizer_kwargs"] = {"fused": True}
        super().__init__(*args, **kwargs)

    def make_critic(
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> ContinuousCritic:
        kwargs = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return LeanCritic(**kwargs).to(self.device)


def _value(net: nn.Module, x: Tensor, fixed: bool) -> Tensor:
    *body, last = net.children()
    for layer in body:
        if isinstance(layer, nn.Linear):
            x = functional.linear(x, *_weights(layer, fixed))
        else:
            x = layer(x)
    weight, bias = _weights(last, fixed)
    return torch.addmv(bias, x, weight.squeeze(0)).unsqueeze(1)


def _weights(layer: nn.Module, fixed: bool) -> tuple[Tensor, Tensor]:
    assert isinstance(layer, nn.Linear)
    weight, bias = layer.weight, layer.bias
    return (weight.detach(), bias.detach()) if fixed else (weight, bias)
