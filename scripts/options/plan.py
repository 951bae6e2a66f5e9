"""The options of plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mbrl_bilevel.base.errors import InvalidInputError
from options.shared import EpisodeArgs, RepeatedArgs, require_device

if TYPE_CHECKING:
    from agents.planners import Planner

#: Who uses an option, where not all planners do.
USED_BY_PLANNERS: dict[str, tuple[str, ...]] = {
    "noise_beta": ("icem",),
    **dict.fromkeys(("add_middle", "elite_fraction"), ("icem", "cem")),
}


@dataclass(frozen=True, kw_only=True)
class Args(EpisodeArgs, RepeatedArgs):
    """Options of plan."""

    env_id: tuple[str, ...] = ("HalfCheetah-v5",)
    """Gymnasium environments; of MuJoCo where the model is the oracle."""
    model: str = "oracle"
    """oracle: the true simulator; or the file of an agent that train saved (planning, mpc or mbpo). Of mbpo
    it is planned in the model alone, without a value."""
    termination: str | None = None
    """The rule the saved agent was trained with, module:function; standard tasks have theirs."""
    reward: str | None = None
    """Likewise: known, approximate, or module:function; none: the reward was learned."""
    precision: Literal["float32", "bfloat16", "auto"] | None = None
    """What a saved agent's model is imagined in; none: as it was saved."""
    screen: float | None = None
    """The part of the candidates that all members of a saved agent's model judge, those that one member finds best; none:
    as it was saved."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where a saved agent's plans are imagined; auto: on a CUDA device where there is one."""
    planners: tuple[Literal["icem", "cem", "mppi", "random"], ...] = ("icem", "cem", "random")
    """Which planners; random tries all its plans at once (random shooting)."""
    plans: int = 192
    """Candidate plans scored at each step, the same for every planner, refinements and all."""
    horizon: int = 15
    """Steps planned ahead."""
    iterations: int = 3
    """Refinements of a plan."""
    elite_fraction: float = 0.15
    """Part of the candidates that icem and cem are refitted to."""
    noise_beta: float = 0.25
    """Colour of icem's noise: 0 is white, 2 and more for slow systems."""
    add_middle: bool = False
    """Let doing nothing compete among the plans of icem and cem: where control costs, as on Pusher."""
    video: bool = False
    """Film the first episode of each planner, beside what the saved agent's model imagined: videos/."""
    seeds: int = 3
    """Episodes of each planner: --seed, --seed + 1, …."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "plans", "horizon", "iterations", most=10**6)
        of_an_agent = self.termination or self.reward or self.precision or self.device != "auto"
        if self.model == "oracle" and (of_an_agent or self.screen is not None):
            raise InvalidInputError(
                "--termination, --reward, --precision, --screen and --device are of a saved agent; the oracle needs none"
            )
        if self.screen is not None and not 0.0 < self.screen <= 1.0:
            raise InvalidInputError(f"--screen must be above 0 and at most 1; got {self.screen}")
        require_device(self.device)
        self.refuse_unused(USED_BY_PLANNERS, "--planners", self.planners)
        for kind in self.planners:
            self.planner(kind)

    def planner(self, kind: str) -> Planner:
        """That kind of planner, within the budget of --plans."""
        from work.planner_budget import (
            planner_within,  # once options are read: it brings in PyTorch
        )

        return planner_within(
            self.plans,
            kind,
            horizon=self.horizon,
            iterations=self.iterations,
            noise_beta=self.noise_beta,
            elite_fraction=self.elite_fraction,
            add_middle=self.add_middle,
        )
