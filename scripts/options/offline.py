"""The options of offline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from options.shared import (
    MODEL_IS_METHOD,
    EpisodeArgs,
    NetworkArgs,
    RepeatedArgs,
    require_methods,
)


@dataclass(frozen=True, kw_only=True)
class Args(EpisodeArgs, RepeatedArgs, NetworkArgs):
    """Options of offline."""

    renamed: ClassVar[Mapping[str, str]] = MODEL_IS_METHOD

    minari: str
    """Minari data set to learn from, by id or folder."""
    env_id: str = "HalfCheetah-v5"
    """Gymnasium environment it comes from, to evaluate in; with --max-episode-steps where its data has shorter
    episodes."""
    termination: str | None = None
    """Your own rule, module:function of (obs, action, next_obs); standard tasks have theirs."""
    policies: tuple[Literal["mopo", "mbpo", "clone"], ...] = ("mopo", "mbpo", "clone")
    """What is learned."""
    method: str = "bilevel"
    """How the model is trained, as in train."""
    penalty: float = 1.0
    """Of mopo: what comes off an imagined reward, times the model's uncertainty there."""
    updates: int = 20_000
    """Of mopo and mbpo: updates of actor and critics."""
    rollout_length: int = 5
    """Of mopo and mbpo: steps of an imagined branch."""
    policy_hidden: tuple[int, ...] = (128, 128)
    """Of mopo and mbpo: width of each hidden layer of actor and critics."""
    policy_learning_rate: float = 3e-4
    """Of mopo and mbpo: Adam's step size for actor, critics and temperature."""
    train_steps: int = 3000
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    seeds: int = 3
    """Repeats of each policy: --seed, --seed + 1, …."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_methods("--method", [self.method])
        self.require_at_least(1, "policy_hidden", most=100_000)
        self.require_at_least(1, "updates", "eval_episodes")
        self.require_at_least(1, "rollout_length", most=1000)
        self.require_positive("penalty", zero=True)
        self.require_positive("policy_learning_rate")
