"""The options of demo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mbrl_bilevel.studies.arguments import RunArgs
from options.shared import require_methods

#: The learner of the planning agent without its model.
ALONE = "learner alone"


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of demo."""

    grows: ClassVar[tuple[str, ...]] = ("steps", "seeds")

    env_id: str = "Reacher-v5"
    """A Gymnasium MuJoCo environment."""
    methods: tuple[str, ...] = ("bilevel", "nll", "mse")
    """How the models of the comparison are trained."""
    agents: tuple[str, ...] = ("bilevel", "nll", "learner alone")
    """What is trained: the planning agent with a model of this method, or its learner without a model."""
    steps: int = 1500
    """Real steps of each agent."""
    eval_every: int = 500
    """Real steps between evaluations."""
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    n_train: int = 1000
    """Training transitions of the model comparison."""
    seeds: int = 2
    """Repeats of the model comparison."""
    reference_episodes: int = 6
    """Episodes of planning with the true simulator."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_methods("--methods", self.methods)
        require_methods("--agents", [name for name in self.agents if name != ALONE])
        self.require_at_least(
            1, "steps", "eval_every", "eval_episodes", "seeds", "reference_episodes"
        )
