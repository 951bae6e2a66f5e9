"""How good a dynamics model is on data it has not seen: errors, likelihood, CRPS, calibration.

One step ahead and k steps open-loop, in raw units; likelihood in nats per target dimension.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mbrl_bilevel.distributions import DiagonalGaussian
from mbrl_bilevel.dynamics import DynamicsModel
from mbrl_bilevel.errors import InvalidInputError
from mbrl_bilevel.mixture import GaussianMixture
from mbrl_bilevel.model_env import Imagination, imagined_trajectories
from mbrl_bilevel.regression import Regression
from mbrl_bilevel.types import Transitions

#: Central intervals at which calibration is read.
LEVELS: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True)
class OneStep:
    """One-step test metrics of an ensemble, over the target dimensions that vary in training.

    ``rmse`` and ``crps`` (raw units, mean over dimensions); ``nrmse`` in units of the training
    targets' standard deviation; ``nll`` in nats per dimension, of the members' mixture;
    ``member_nll`` the members' own mean; ``calibration_error`` the mean over LEVELS of
    |covered − level|; ``coverage`` [len(LEVELS)] what the central intervals cover.
    """

    rmse: float
    nrmse: float
    nll: float
    member_nll: float
    crps: float
    calibration_error: float
    coverage: tuple[float, ...]

    @property
    def coverage_90(self) -> float:
        """What the 90 % interval covers."""
        return self.coverage[LEVELS.index(0.9)]


@torch.inference_mode()
def evaluate_one_step(model: DynamicsModel, transitions: Transitions, chunk: int = 4096) -> OneStep:
    """One-step metrics of ``model`` on ``transitions``, which training must not have seen.

    CRPS and coverage are of the Gaussian with the mixture's mean and variance. CRPS: Gneiting &
    Raftery 2007, eq. 21. Raises InvalidInputError if there are no transitions.
    """
    if len(transitions) == 0:
        raise InvalidInputError("evaluate_one_step: transitions is empty; give at least one")
    parts = (transitions[slice(i, i + chunk)] for i in range(0, len(transitions), chunk))
    pairs = (
        (
            model.dist(torch.from_numpy(rows.obs), torch.from_numpy(rows.action)),
            model.target_values(rows),
        )
        for rows in parts
    )
    return _one_step(pairs, model.targets.scale[model.active])


@torch.inference_mode()
def evaluate_regression(model: Regression, x: Tensor, y: Tensor, chunk: int = 4096) -> OneStep:
    """The same metrics of ``model`` on rows x [N, X], y [N, D] that training must not have seen.

    Raises InvalidInputError if there are none.
    """
    if len(x) == 0:
        raise InvalidInputError("evaluate_regression: x is empty; give at least one row")
    parts = (slice(i, i + chunk) for i in range(0, len(x), chunk))
    pairs = ((model.dist(x[part]), y[part][:, model.active]) for part in parts)
    return _one_step(pairs, model.targets.scale[model.active])


def _one_step(
    pairs: Iterable[tuple[DiagonalGaussian | GaussianMixture, Tensor]], scale: Tensor
) -> OneStep:
    """Of the members' distributions [E, B, D] and the truth [B, D], both in raw units."""
    squared, nll, member_nll, crps, pit = [], [], [], [], []
    for dist, y in pairs:
        joint = dist.log_prob(y)
        nll.append(-(joint.logsumexp(0) - math.log(len(joint))) / y.shape[-1])
        member_nll.append(-joint.mean(0) / y.shape[-1])
        each, own = dist.marginals()
        mean = each.mean(0)
        std = (own.square().mean(0) + each.var(0, correction=0)).sqrt()
        squared.append((y - mean).square())
        z = (y - mean) / std
        density = torch.exp(-0.5 * z.square()) / math.sqrt(2.0 * math.pi)
        cdf = torch.special.ndtr(z)
        crps.append(std * (z * (2.0 * cdf - 1.0) + 2.0 * density - 1.0 / math.sqrt(math.pi)))
        pit.append(cdf)
    error = torch.cat(squared)
    coverage = _coverage(torch.cat(pit))
    return OneStep(
        rmse=error.mean().sqrt().item(),
        nrmse=(error / scale.square()).mean().sqrt().item(),
        nll=torch.cat(nll).mean().item(),
        member_nll=torch.cat(member_nll).mean().item(),
        crps=torch.cat(crps).mean().item(),
        calibration_error=float(np.mean(np.abs(np.subtract(coverage, LEVELS)))),
        coverage=coverage,
    )


@dataclass(frozen=True)
class OpenLoop:
    """k-step open-loop metrics at each of ``steps``: ``nrmse`` of the particles' mean observation,
    in units of the observations' standard deviation over the test data, and the share of true
    observations in the particles' central 90 % interval."""

    steps: tuple[int, ...]
    nrmse: tuple[float, ...]
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
    """Roll the true actions of random windows of an episode open-loop through the model.

    The interval is of the Gaussian with the particles' mean and variance. Observation dimensions
    that never vary in the test data, or never change in training, are left out. Raises InvalidInputError if no episode is long
    enough for the longest of ``steps``, or a count is below one.
    """
    if min((windows, particles_per_member, *steps)) < 1 or not steps:
        raise InvalidInputError(
            f"steps, windows and particles_per_member must be at least 1; "
            f"got {list(steps)}, {windows} and {particles_per_member}"
        )
    horizon = max(steps)
    starts = _window_starts(transitions, horizon)
    if len(starts) == 0:
        raise InvalidInputError(
            f"steps: no episode of the test data holds {horizon} steps in a row; ask for fewer"
        )
    order = torch.randperm(len(starts), generator=generator)[:windows].numpy()
    index = starts[order][:, None] + np.arange(horizon)
    obs = torch.from_numpy(transitions.obs[index[:, 0]])
    actions = torch.from_numpy(transitions.action[index])
    truth = torch.from_numpy(transitions.next_obs[index])
    imagination = Imagination(particles=particles_per_member * model.members, sample=True)
    particles, _ = imagined_trajectories(model, obs, actions, imagination, generator)
    spread = torch.from_numpy(transitions.next_obs.std(0))
    # What never moves in an episode is predicted as it was: no interval, nothing to cover.
    varies = (spread > 1e-6) & model.active[: model.obs_dim]
    mean, std = particles.mean(0), particles.std(0)
    half = 1.6448536 * std
    inside = ((truth - mean).abs() <= half)[..., varies]
    error = ((truth - mean) / spread.clamp_min(1e-6))[..., varies].square()
    at = [k - 1 for k in steps]
    return OpenLoop(
        tuple(steps),
        tuple(error[:, at].mean((0, 2)).sqrt().tolist()),
        tuple(inside[:, at].double().mean((0, 2)).tolist()),
    )


def _coverage(pit: Tensor) -> tuple[float, ...]:
    distance = (pit - 0.5).abs()
    return tuple((distance <= level / 2.0).double().mean().item() for level in LEVELS)


def _window_starts(transitions: Transitions, horizon: int) -> npt.NDArray[np.int64]:
    """Rows from which ``horizon`` steps of one episode follow each other without a gap."""
    rows = np.arange(max(0, len(transitions) - horizon + 1))
    follows = (np.diff(transitions.episode) == 0) & (np.diff(transitions.t) == 1)
    breaks = np.concatenate([[0], np.cumsum(~follows)])
    kept: npt.NDArray[np.int64] = rows[breaks[rows + horizon - 1] == breaks[rows]]
    return kept
