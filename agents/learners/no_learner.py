"""Stable-Baselines3's collection loop around nothing that learns.

An agent that acts by plan alone holds this: SB3 steps, stores, logs and calls the callbacks.
"""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError


class NoPolicy(BasePolicy):
    """A policy without parameters, for what SB3 asks of any policy; it has no action to give."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("use_sde", None)
        super().__init__(*args[:2], squash_output=True, **kwargs)

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        raise InvalidInputError("this agent has no policy: it acts by plan alone; use plan=True")


class NoLearner(OffPolicyAlgorithm):
    """An off-policy algorithm without policy, critics or updates; ``gamma`` is not used."""

    policy_aliases = {"MlpPolicy": NoPolicy}  # noqa: RUF012

    def __init__(
        self,
        policy: str | type[BasePolicy],
        env: Any,
        learning_rate: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        kwargs.pop("_init_setup_model", None)
        super().__init__(
            policy, env, learning_rate, sde_support=False, support_multi_env=True, **kwargs
        )
        self._setup_model()

    def train(self, gradient_steps: int, batch_size: int) -> None:
        """Nothing is learned."""

    def _get_torch_save_params(self) -> tuple[list[str], list[str]]:
        return ["policy"], []
