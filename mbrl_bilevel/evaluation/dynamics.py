"""How good a dynamics model is on data it has not seen: errors, likelihood, CRPS, calibration.

One step ahead and k steps open-loop, in raw units; likelihood in nats per target dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.evaluation.levels import LEVELS
from mbrl_bilevel.evaluation.mixture_scores import Normals
from mbrl_bilevel.imagination.particles import imagined_trajectories
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.models.regression import Regression
from mbrl_bilevel.policies.distributions import DiagonalGaussian
from mbrl_bilevel.policies.mixture import GaussianMixture

#: Least standard deviation of particles, in units of the observations' own.
_LEAST_WIDTH = 1e-4


@dataclass(frozen=True)
class OneStep:
    """One-step test metrics of an ensemble, over the target dimensions that vary in training.

    ``rmse`` and ``crps`` (raw units, mean over dimensions); ``nrmse`` and ``ncrps`` in units of the
    training targets' standard deviation; ``nll`` in nats per dimension; ``calibration_error`` the mean
    over LEVELS of |covered − level|; ``coverage`` [len(LEVELS)] what the central intervals cover. All
    of the mixture of the members; under ``member_`` the mean over the members, each as a model alone.

    ``scaled_nll`` is that of a Gaussian with the mixture's mean and variance, the latter times one
    factor found on the other half of the test rows: what is left of the differences if every method may
    correct its over- or underdispersion by one number. ``dispersion`` is the square root of that
    factor on all rows: above one, the ensemble is too sure of itself.
    """

    rmse: float
    nrmse: float
    nll: float
    crps: float
    ncrps: float
    calibration_error: float
    member_rmse: float
    member_nrmse: float
    member_nll: float
    member_crps: float
    member_ncrps: float
    member_calibration_error: float
    scaled_nll: float
    dispersion: float
    coverage: tuple[float, ...]

    @property
    def coverage_90(self) -> float:
        """What the 90 % interval covers."""
        return self.coverage[LEVELS.index(0.9)]


@torch.inference_mode()
def evaluate_one_step(
    model: DynamicsModel,
    transitions: Transitions,
    chunk: int = 4096,
    *,
    observations: Sequence[int] | None = None,
) -> OneStep:
    """One-step metrics of ``model`` on ``transitions``, which training must not have seen; of these
    ``observations`` and the reward, if it is learned, alone (None: of all).

    ``chunk`` rows at a time go through the model. Raises InvalidInputError if there are no transitions.
    """
    if len(transitions) == 0:
        raise InvalidInputError("evaluate_one_step: transitions is empty; give at least one")
    obs, action = torch.from_numpy(transitions.obs), torch.from_numpy(transitions.action)
    place = model.active.nonzero().squeeze(1)
    y = model.target_values(transitions)
    kept = None
    if observations is not None:
        kept = torch.isin(place, torch.tensor(observations)) | (place >= model.obs_dim)
        place, y = place[kept], y[:, kept]

    def scored(one: DynamicsModel) -> _Scores:
        def dist_at(rows: slice) -> Any:
            dist = one.dist(obs[rows], action[rows])
            # A policy of one's own need not part its dimensions.
            return dist if kept is None else dist.only(kept)

        return _scores(dist_at, y, chunk)

    found = [scored(one) for one in (model, *_alone(model))]
    return _one_step(found, model.targets.scale[place])


@torch.inference_mode()
def evaluate_regression(model: Regression, x: Tensor, y: Tensor, chunk: int = 4096) -> OneStep:
    """The same metrics of ``model`` on rows x [N, X], y [N, D] that training must not have seen.

    Raises InvalidInputError if there are none.
    """
    if len(x) == 0:
        raise InvalidInputError("evaluate_regression: x is empty; give at least one row")
    active = y[:, model.active]

    def scored(one: Regression) -> _Scores:
        return _scores(lambda rows: one.dist(x[rows]), active, chunk)

    found = [scored(one) for one in (model, *_alone(model))]
    return _one_step(found, model.targets.scale[model.active])


Model = TypeVar("Model", DynamicsModel, Regression)


def _alone(model: Model) -> list[Model]:
    """Each member as a model of its own."""
    return [model.only([k]) for k in range(model.members)]


@dataclass(frozen=True)
class _Scores:
    """Of one model at each of N rows: ``nll`` [N] a dimension; ``error`` (squared), ``crps``, ``cdf``,
    ``z`` (the error in standard deviations) and ``std``, [N, D]."""

    nll: Tensor
    error: Tensor
    crps: Tensor
    cdf: Tensor
    z: Tensor
    std: Tensor

    @property
    def coverage(self) -> tuple[float, ...]:
        distance = (self.cdf - 0.5).abs()
        return tuple((distance <= level / 2.0).double().mean().item() for level in LEVELS)

    @property
    def calibration_error(self) -> float:
        return float(np.mean(np.abs(np.subtract(self.coverage, LEVELS))))


def _scores(
    dist_at: Callable[[slice], DiagonalGaussian | GaussianMixture], y: Tensor, chunk: int
) -> _Scores:
    parts = []
    for start in range(0, len(y), chunk):
        rows = slice(start, start + chunk)
        dist, truth = dist_at(rows), y[rows]
        joint = dist.log_prob(truth)
        nll = -(joint.logsumexp(0) - math.log(len(joint))) / y.shape[-1]
        normals = Normals.of(dist)
        mean, std = normals.moments()
        error = truth - mean
        parts.append(
            (nll, error.square(), normals.crps(truth), normals.cdf(truth), error / std, std)
        )
    return _Scores(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _one_step(found: Sequence[_Scores], scale: Tensor) -> OneStep:
    """From the ensemble's scores and each member's, targets of standard deviation ``scale`` [D]."""
    together, *members = (
        {
            "rmse": s.error.mean().sqrt().item(),
            "nrmse": (s.error / scale.square()).mean().sqrt().item(),
            "nll": s.nll.mean().item(),
            "crps": s.crps.mean().item(),
            "ncrps": (s.crps / scale).mean().item(),
            "calibration_error": s.calibration_error,
        }
        for s in found
    )
    alone = {f"member_{name}": float(np.mean([m[name] for m in members])) for name in together}
    ensemble = found[0]
    return OneStep(
        **together,
        **alone,
        scaled_nll=_scaled_nll(ensemble),
        dispersion=ensemble.z.square().mean().sqrt().item(),
        coverage=ensemble.coverage,
    )


def _scaled_nll(scores: _Scores) -> float:
    """Each half of the rows with the factor of the other; both halves with their own for one row."""
    square = scores.z.square().mean(-1)
    half = (len(square) + 1) // 2
    first, second = square[:half].mean(), square[len(square) - half :].mean()
    factor = torch.cat([second.expand(half), first.expand(len(square) - half)])
    log_std = scores.std.log().mean(-1) + 0.5 * factor.log()
    return (0.5 * square / factor + log_std + 0.5 * math.log(2.0 * math.pi)).mean().item()


@dataclass(frozen=True)
class OpenLoop:
    """k-step open-loop metrics at each of ``steps``, of the Gaussian with the particles' mean and variance:
    ``nrmse`` of the mean observation, in units of the observations' standard deviation over the test
    data; ``nll`` in nats per dimension of observations in these units; and the share of
    true observations in the central 90 % interval."""

    steps: tuple[int, ...]
    nrmse: tuple[float, ...]
    nll: tuple[float, ...]
    coverage_90: tuple[float, ...]


@torch.inference_mode()
def evaluate_open_loop(
    model: DynamicsModel,
    transitions: Transitions,
    *,
    generator: torch.Generator,
    steps: Sequence[int] = (1, 5, 20),
    windows: int = 200,
    particles_per_member: int = 10,
) -> OpenLoop:
    """Roll the true actions of random windows of an episode of ``transitions`` open-loop through the model.

    ``steps``: after how many of them to look; ``windows``: how many at most; ``particles_per_member``: rollouts of
    each member from each window's start; ``generator`` draws windows and particles.

    The interval is of the Gaussian with the particles' mean and variance. Observation dimensions
    that never vary in the test data, or never change in training, are left out. Raises InvalidInputError if no episode is long
    enough for the longest of ``steps``, or a count is below one.
    """
    if min((windows, particles_per_member, *steps)) < 1 or not steps:
        raise InvalidInputError(
            f"steps, windows and particles_per_member must be at least 1; "
            f"got {list(steps)}, {windows} and {particles_per_member}"
        )
    index = _windows(transitions, max(steps), windows, generator)
    obs = torch.from_numpy(transitions.obs[index[:, 0]])
    actions = torch.from_numpy(transitions.action[index])
    truth = torch.from_numpy(transitions.next_obs[index])
    imagination = Imagination(particles=particles_per_member * model.members, sample=True)
    particles, _ = imagined_trajectories(model, obs, actions, imagination, generator)
    units = Normaliser.fit(torch.from_numpy(transitions.next_obs))
    # What never moves in an episode is predicted as it was: no interval, nothing to cover.
    varies, spread = ~units.constant & model.active[: model.obs_dim], units.scale
    mean, std = particles.mean(0), particles.std(0)
    half = 1.6448536 * std
    inside = ((truth - mean).abs() <= half)[..., varies]
    error = ((truth - mean) / spread)[..., varies].square()
    # Particles that all fell together (a mean that is sure of itself) still have a density.
    width = (std / spread)[..., varies].clamp_min(_LEAST_WIDTH)
    nll = 0.5 * error / width.square() + width.log() + 0.5 * math.log(2.0 * math.pi)
    at = [k - 1 for k in steps]
    return OpenLoop(
        tuple(steps),
        tuple(error[:, at].mean((0, 2)).sqrt().tolist()),
        tuple(nll[:, at].mean((0, 2)).tolist()),
        tuple(inside[:, at].double().mean((0, 2)).tolist()),
    )


@torch.inference_mode()
def evaluate_returns(
    model: DynamicsModel,
    transitions: Transitions,
    *,
    generator: torch.Generator,
    steps: int,
    windows: int = 500,
    particles_per_member: int = 10,
) -> float:
    """Root mean squared error of the return of ``steps`` recorded actions, as the particles' mean predicts it open
    loop from random starts, in standard deviations of the true returns: 1 is what their mean would do.

    Raises InvalidInputError if no episode is long enough.
    """
    index = _windows(transitions, steps, windows, generator)
    obs = torch.from_numpy(transitions.obs[index[:, 0]])
    actions = torch.from_numpy(transitions.action[index])
    truth = torch.from_numpy(transitions.reward[index]).double().sum(1)
    imagination = Imagination(particles=particles_per_member * model.members, sample=True)
    _, rewards = imagined_trajectories(model, obs, actions, imagination, generator)
    error = rewards.double().sum(2).mean(0) - truth
    spread = truth.std(correction=0).clamp_min(1e-8)
    return (error.square().mean().sqrt() / spread).item()


def _windows(
    transitions: Transitions, horizon: int, most: int, generator: torch.Generator
) -> npt.NDArray[np.int64]:
    """Rows [W, H] of at most so many random windows of an episode."""
    starts = window_starts(transitions, horizon)
    if len(starts) == 0:
        raise InvalidInputError(
            f"steps: no episode of the test data holds {horizon} steps in a row; ask for fewer"
        )
    order = torch.randperm(len(starts), generator=generator)[:most].numpy()
    found: npt.NDArray[np.int64] = starts[order][:, None] + np.arange(horizon)
    return found


@torch.inference_mode()
def rollout_band(
    model: DynamicsModel,
    transitions: Transitions,
    steps: int,
    *,
    generator: torch.Generator,
    particles_per_member: int = 20,
) -> dict[str, Tensor]:
    """One stretch of ``steps`` true steps and what ``model`` predicts open-loop: ``truth``, ``mean``,
    ``low`` and ``high`` (the particles' central 90 %), each [steps, O] in raw units.

    Raises InvalidInputError if no episode is long enough.
    """
    starts = window_starts(transitions, steps)
    if len(starts) == 0:
        raise InvalidInputError(
            f"steps: no episode of the test data holds {steps} steps in a row; ask for fewer"
        )
    rows = slice(starts[len(starts) // 2], starts[len(starts) // 2] + steps)
    obs = torch.from_numpy(transitions.obs[rows][:1])
    actions = torch.from_numpy(transitions.action[rows]).unsqueeze(0)
    imagination = Imagination(particles=particles_per_member * model.members, sample=True)
    particles, _ = imagined_trajectories(model, obs, actions, imagination, generator)
    cloud = particles[:, 0]
    low, high = torch.quantile(cloud, torch.tensor([0.05, 0.95], dtype=cloud.dtype), dim=0)
    truth = torch.from_numpy(transitions.next_obs[rows])
    return {"truth": truth, "mean": cloud.mean(0), "low": low, "high": high}


def window_starts(transitions: Transitions, horizon: int) -> npt.NDArray[np.int64]:
    """Rows from which ``horizon`` steps of one episode follow each other without a gap."""
    rows = np.arange(max(0, len(transitions) - horizon + 1))
    follows = (np.diff(transitions.episode) == 0) & (np.diff(transitions.t) == 1)
    breaks = np.concatenate([[0], np.cumsum(~follows)])
    kept: npt.NDArray[np.int64] = rows[breaks[rows + horizon - 1] == breaks[rows]]
    return kept
