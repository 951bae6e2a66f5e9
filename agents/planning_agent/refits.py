"""One fit of an agent's model after another: from scratch, or going on from the last one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.common.saved import Spaces, read_model
from agents.planning_agent.policy import HeldPolicy
from agents.planning_agent.settings import PlanningSettings
from mbrl_bilevel.base.checkpoint import Checkpoint
from mbrl_bilevel.base.errors import BilevelError, CheckpointError, InvalidInputError
from mbrl_bilevel.base.records import FitResult, Rule, Transitions
from mbrl_bilevel.continual.keeping import Keep
from mbrl_bilevel.data.growing_folds import GrowingFolds
from mbrl_bilevel.data.splits import Folds
from mbrl_bilevel.models.dynamics import (
    DynamicsModel,
    fit_dynamics,
    prepare_dynamics,
    warn_if_underfitted,
)
from mbrl_bilevel.models.dynamics_checkpoint import model_to_checkpoint
from mbrl_bilevel.models.prepared import Prepared, attempted, fit_each
from mbrl_bilevel.models.regression import draw_seed
from mbrl_bilevel.training.method import Method
from mbrl_bilevel.training.methods import get_method


@dataclass(frozen=True)
class FitStart:
    """From where the next fit may go on: the ``model`` with all of its members, the ``folds`` that it was
    fitted with, and how many ``fits`` it goes back to the last one from scratch, that one included."""

    model: DynamicsModel
    folds: GrowingFolds
    fits: int


#: A model of all members, what its fit did, and from where the next one may go on: None where each is from scratch.
Refitted = tuple[DynamicsModel, FitResult, FitStart | None]


@dataclass(frozen=True)
class Refit:
    """What a fit is made of: all ``experience`` so far, and ``start``, the last fit, from where it may go on.

    A method that is about returns ends them with what the ``critic`` says. With ``earlier`` tasks the fit is in the
    units of ``start``, and keeps of them what this says. It is made on ``device``, with draws of ``generator``.
    """

    settings: PlanningSettings
    experience: Transitions
    start: FitStart | None
    generator: torch.Generator
    termination: Rule | None
    reward: Rule | None
    critic: HeldPolicy | None = None
    earlier: Keep | None = None
    device: torch.device | str = "cpu"

    def fit(self) -> Refitted:
        """Raises as ``fit_dynamics``."""
        job = self._job()
        return job.ended(*fit_dynamics(self.experience, job.method, **job.arguments))

    def _job(self) -> _Job:
        settings, start = self.settings, self.start
        method = get_method(settings.method)
        if self.critic is not None:
            method = method.valuing(self.critic.worth, self.critic.discount)
        more: dict[str, Any] = {}
        if self.earlier is not None:
            keep, units = self.earlier, None if start is None else start.model
            method = keep.method(method)
            more = {"units": units, "joined": lambda new: keep.data(new, self.generator)}
        if settings.fresh_every > 1:
            random = np.random.default_rng(draw_seed(self.generator))
            start = _usable(settings, self.experience, start, random)
            folds = (
                GrowingFolds.of(
                    self.experience.episode, self.experience.t, settings.members, random
                )
                if start is None
                else start.folds
            )
            model = None if start is None else start.model
            more |= {"folds": folds, "start": model, "warm_start": settings.warm_start}
        arguments = {
            "generator": self.generator,
            "members": settings.members,
            "hidden": settings.hidden,
            "schedule": settings.schedule,
            "termination": self.termination,
            "reward": self.reward,
            "direct": settings.direct,
            "device": self.device,
            **more,
        }
        return _Job(self.experience, method, arguments, start)


@dataclass(frozen=True)
class _Job:
    """A call of ``fit_dynamics``, and the fit that it goes on from."""

    experience: Transitions
    method: Method
    arguments: dict[str, Any]
    start: FitStart | None

    def prepared(self) -> Prepared[DynamicsModel]:
        return prepare_dynamics(self.experience, self.method, **self.arguments)

    def ended(self, model: DynamicsModel, result: FitResult) -> Refitted:
        if "folds" not in self.arguments:
            return model, result, None
        fits = 1 if self.start is None else self.start.fits + 1
        return model, result, FitStart(model, self.arguments["folds"], fits)


def fit_side_by_side(refits: Sequence[Refit]) -> list[Refitted | BilevelError]:
    """What becomes of each, where it is made as ``Refit.fit`` makes it, all of them as one larger ensemble; those
    of other forms, or whose returns end with what the critics of now say, each by itself."""
    ended: dict[int, Refitted | BilevelError] = {}
    jobs: dict[int, _Job] = {}
    for k, refit in enumerate(refits):
        job = attempted(refit._job)
        if isinstance(job, BilevelError):
            ended[k] = job
        else:
            jobs[k] = job
    for method in _distinct([job.method for job in jobs.values()]):
        alike = {k: job for k, job in jobs.items() if job.method == method}
        found = fit_each(method, [job.prepared for job in alike.values()], False, or_apart=True)
        for (k, job), made in zip(alike.items(), found, strict=True):
            ended[k] = made if isinstance(made, BilevelError) else job.ended(*made)
            if not isinstance(made, BilevelError):
                warn_if_underfitted(made[1])
    return [ended[k] for k in range(len(refits))]


def _distinct(methods: Sequence[Method]) -> list[Method]:
    found: list[Method] = []
    for method in methods:
        found += [] if method in found else [method]
    return found


def _usable(
    settings: PlanningSettings,
    experience: Transitions,
    start: FitStart | None,
    random: np.random.Generator,
) -> FitStart | None:
    """``start`` with its folds grown; None where a fit from scratch is due, or a replay that forgets has left
    a member nothing to hold out."""
    if start is None or start.fits >= settings.fresh_every:
        return None
    folds = start.folds.grown(experience.episode, experience.t, random)
    found: Folds = folds.folds(experience.episode, experience.t)
    if min(map(len, (*found.stop, *found.outer))) == 0:
        return None
    return FitStart(start.model, folds, start.fits)


def start_to_checkpoint(start: FitStart) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the settings that ``start_from_checkpoint`` needs."""
    tensors, facts = model_to_checkpoint(start.model.to("cpu"))
    tensors["stretches"] = torch.from_numpy(start.folds.stretches)
    return tensors, facts | {"fits": start.fits}


def start_from_checkpoint(
    checkpoint: Checkpoint,
    name: str,
    rules: Mapping[str, Rule | None],
    spaces: Spaces,
    settings: PlanningSettings,
) -> FitStart | None:
    """What is stored under ``name``; None where nothing is. Raises CheckpointError for damage, or if it is
    not of these spaces and settings."""
    model = read_model(checkpoint, name, spaces, rules["termination"], rules["reward"])
    if model is None:
        return None
    alike = (model.members, model.direct) == (settings.members, settings.direct)
    fits = checkpoint.setting(name, dict).get("fits")
    stretches = checkpoint.require(f"{name}.stretches", (None, 4), torch.int64).numpy()
    try:
        folds = GrowingFolds(model.members, stretches)
    except InvalidInputError as error:
        raise CheckpointError(f"checkpoint {checkpoint.path}: {error}") from None
    if not alike or type(fits) is not int or not 1 <= fits < 2**31:
        raise CheckpointError(
            f"checkpoint {checkpoint.path}: its {name} is damaged; restore a good copy or save it again"
        )
    return FitStart(model, folds, fits)
