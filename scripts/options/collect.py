"""The options of collect."""

from __future__ import annotations

from dataclasses import dataclass

from mbrl_bilevel.base.errors import InvalidInputError
from options.shared import EnvironmentArgs


@dataclass(frozen=True, kw_only=True)
class Args(EnvironmentArgs):
    """Options of collect."""

    dataset: str
    """Minari id of the data set to write, such as halfcheetah/mixed-v0; it must be new."""
    env_id: str = "HalfCheetah-v5"
    """Gymnasium environment with Box observations and actions."""
    rows: int = 80_000
    """Steps to save."""
    sac_steps: int = 12_000
    """Steps that SAC is trained for before; an update every other step."""
    policy_share: tuple[float, ...] = (0.0, 0.5, 1.0)
    """Shares of steps on which the policy acts; each episode draws one of them."""
    max_episode_steps: int = 200
    """Episodes of the data set are cut at this many steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "rows", "sac_steps", "max_episode_steps")
        if not self.policy_share or not all(0.0 <= s <= 1.0 for s in self.policy_share):
            raise InvalidInputError(
                f"--policy-share: give shares between 0 and 1; got {self.policy_share}"
            )
