"""What all planners share: ``planner.plan(score, state, generator) -> (action, state, info)``.

The state is explicit, batched over S start states, and made new by ``reset``. A score that is not
finite counts as −∞: it never wins. A planner is its settings: PyTorch is imported when it plans.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agents.planners.checks import require
from mbrl_bilevel.base.errors import require_count

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

    from agents.planners.actions import ActionSet

#: ``score(actions [S, N, H, A]) -> [S, N]``: the predicted return of each candidate. The actions
#: are float32: in the environment's units and within its bounds, or one-hot where they are discrete.
#: The score must not write to them.
Score = Callable[["Tensor"], "Tensor"]

#: More candidate actions than this are taken for a slip, or for a hostile checkpoint.
_MOST_ACTIONS = 10**8


@dataclass(frozen=True)
class PlannerState:
    """What a planner remembers between two time steps, for each of S start states.

    ``mean`` [S, H, A] is where the next search starts: actions, or the probabilities of discrete
    ones; ``elites`` [S, M, H, A] are the sequences kept from the last one (M = 0 but for iCEM), and
    ``elite_valid`` [S, M] bool says which of them hold something. Both are already shifted to the
    next time step. ``actions`` are those to choose among. All float32.
    """

    mean: Tensor
    elites: Tensor
    elite_valid: Tensor
    actions: ActionSet


@dataclass(frozen=True)
class PlanInfo:
    """How the last iteration of one ``plan`` ended, and how many scores were unusable.

    ``best_score`` and ``elite_score`` [S]: the best and the mean score among the elites (of MPPI: the
    weighted mean over all), −inf for a start without a finite score. ``nonfinite``: NaN and ±inf
    scores over all starts and iterations. ``std`` [S, H, A]: the final σ of the search.
    """

    best_score: Tensor
    elite_score: Tensor
    nonfinite: int
    std: Tensor


@dataclass(frozen=True)
class Planner(ABC):
    """A planner, with what all of them are told. One of your own is a frozen dataclass with a ``search``:
    ``examples/my_planner.py``; ``planners.register_planner`` gives it a name.

    Raises InvalidInputError where a field is out of its range.
    """

    horizon: int = 20
    """Steps planned ahead."""
    population: int = 200
    """Candidate action sequences in a planner's first iteration."""

    def __post_init__(self) -> None:
        require_count("horizon", self.horizon, 10_000)
        require_count("population", self.population, 10**6)
        size = self.population * self.horizon
        require(size <= _MOST_ACTIONS, "population times horizon", size, "at most 100,000,000")

    @property
    def num_kept(self) -> int:
        """M, the sequences that compete again at the next time step."""
        return 0

    def populations(self) -> tuple[int, ...]:
        """Candidates scored per start in each iteration: their sum is the budget of a plan."""
        return (self.population,)

    def initial_state(self, num_starts: int, actions: ActionSet) -> PlannerState:
        """The state of ``num_starts`` new episodes: μ in the middle, nothing kept."""
        import torch

        require_count("num_starts", num_starts)
        steps = (self.horizon, actions.width)
        return PlannerState(
            mean=actions.middle.expand(num_starts, *steps).clone(),
            elites=actions.middle.expand(num_starts, self.num_kept, *steps).clone(),
            elite_valid=torch.zeros(
                num_starts, self.num_kept, dtype=torch.bool, device=actions.device
            ),
            actions=actions,
        )

    def reset(self, state: PlannerState, mask: Tensor | npt.NDArray[np.bool_]) -> PlannerState:
        """The state with the starts where ``mask`` [S] bool is true made new, the others as before.

        Raises InvalidInputError for a mask of another type or shape, or another planner's state.
        """
        import torch

        self._check(state)
        mask = torch.as_tensor(mask, device=state.mean.device)
        starts = len(state.mean)
        ok = mask.dtype == torch.bool and mask.shape == (starts,)
        require(ok, "mask", f"{mask.dtype} {tuple(mask.shape)}", f"bool of shape ({starts},)")
        fresh = self.initial_state(starts, state.actions)
        return replace(
            state,
            mean=torch.where(mask[:, None, None], fresh.mean, state.mean),
            elites=torch.where(mask[:, None, None, None], fresh.elites, state.elites),
            elite_valid=state.elite_valid & ~mask[:, None],
        )

    def plan(
        self,
        score: Score,
        state: PlannerState,
        generator: torch.Generator,
        proposals: Tensor | None = None,
    ) -> tuple[Tensor, PlannerState, PlanInfo]:
        """The action [S, A] to execute, the state for the next time step, and how the search went.

        ``generator`` makes every draw and lives on the state's device. A non-finite score counts as
        −inf; a start whose scores are all non-finite executes and keeps its μ. No gradients.
        ``proposals`` [S, M, H, A] are candidates from elsewhere, a policy's say, that compete in every
        iteration beside the planner's own (LOOP, arXiv 2008.10066; TD-MPC, arXiv 2203.04955, alg. 1).

        Raises InvalidInputError for a score or proposals of the wrong shape, another planner's state,
        or a generator on another device.
        """
        import torch

        self._check(state)
        device = state.mean.device.type
        require(generator.device.type == device, "generator", generator.device, f"on {device}")
        if proposals is not None:
            shape, mean = tuple(proposals.shape), tuple(state.mean.shape)
            ok = len(shape) == 4 and (shape[0], *shape[2:]) == mean
            require(ok, "proposals", f"shape {shape}", f"[S, M, H, A] with S, H, A = {mean}")
        with torch.no_grad():
            return self.search(score, state, generator, proposals)

    @abstractmethod
    def search(
        self,
        score: Score,
        state: PlannerState,
        generator: torch.Generator,
        proposals: Tensor | None,
    ) -> tuple[Tensor, PlannerState, PlanInfo]:
        """What ``plan`` does once its arguments are checked, without gradients.

        Score candidates [S, N, H, A] made of ``state.actions`` (and the ``proposals``, if there are any), and
        return the action [S, A] to execute, ``replace(state, mean=…)`` with the sequence [S, H, A] that the
        next time step starts from, and a PlanInfo. ``candidates.finite_scores`` counts what is not finite.
        """

    def _check(self, state: PlannerState) -> None:
        starts, actions = len(state.mean), state.actions.width
        for name, part in (("mean", ()), ("elites", (self.num_kept,))):
            shape = tuple(getattr(state, name).shape)
            wanted = (starts, *part, self.horizon, actions)
            require(shape == wanted, f"state.{name}", shape, f"{wanted}: use initial_state")
