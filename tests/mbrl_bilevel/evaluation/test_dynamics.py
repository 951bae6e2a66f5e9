"""The metrics against scipy, numerical integration and models whose errors are known."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import integrate, special, stats

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.evaluation.dynamics import (
    LEVELS,
    evaluate_one_step,
    evaluate_open_loop,
    rollout_band,
    window_starts,
)
from mbrl_bilevel.evaluation.mixture_scores import Normals
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.policies.distributions import DiagonalGaussian
from mbrl_bilevel.policies.mixture import GaussianMixture

Array = npt.NDArray[Any]
LinearModel = Callable[..., DynamicsModel]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def records(obs: Array, action: Array, reward: Array, next_obs: Array, length: int) -> Transitions:
    """Rows in episodes of ``length`` steps."""
    arrays = (np.asarray(v, dtype=np.float32) for v in (obs, action, reward, next_obs))
    never, row = np.zeros(len(obs), dtype=np.bool_), np.arange(len(obs))
    return Transitions(*arrays, never, never, row // length, row % length)


@pytest.fixture
def ensemble(linear_model: LinearModel) -> DynamicsModel:
    """Three members that disagree, over targets (Δobs, reward) of very different units."""
    g = seeded(1)
    weight, bias = torch.randn(3, 2, 2, generator=g), torch.randn(3, 2, generator=g)
    never = torch.zeros(2, dtype=torch.bool)
    return linear_model(
        weight,
        bias,
        torch.rand(3, 2, generator=g) + 0.4,
        1,
        Normaliser(torch.tensor([0.5, 0.0]), torch.tensor([2.0, 0.5]), never),
        Normaliser(torch.tensor([0.1, -30.0]), torch.tensor([0.2, 10.0]), never),
    )


@pytest.fixture
def rows() -> Transitions:
    g = np.random.default_rng(2)
    obs = g.normal(size=(60, 1))
    return records(
        obs,
        g.uniform(-1, 1, size=(60, 1)),
        g.normal(-30.0, 12.0, size=60),
        obs + g.normal(0.1, 0.3, size=(60, 1)),
        10,
    )


def by_hand(model: DynamicsModel, rows: Transitions) -> tuple[Array, Array, Array]:
    """Raw targets [B, D], and the members' means [E, B, D] and stds [E, 1, D], in float64."""
    weight = model.policy.network.last.weight.detach().double().numpy()
    bias = model.policy.network.last.bias.detach().double().numpy()
    x = np.hstack([rows.obs, rows.action]).astype(np.float64)
    x = (x - model.inputs.shift.numpy()) / model.inputs.scale.numpy()
    scale, shift = model.targets.scale.double().numpy(), model.targets.shift.double().numpy()
    mean = (np.einsum("bx,exd->ebd", x, weight) + bias) * scale + shift
    unit = model.policy.dist(torch.zeros(model.members, 1, 2)).std.detach().double().numpy()
    y = np.hstack([rows.next_obs - rows.obs, rows.reward[:, None]]).astype(np.float64)
    return y, mean, unit * scale


def test_one_step_metrics_against_scipy(ensemble: DynamicsModel, rows: Transitions) -> None:
    y, mean, std = by_hand(ensemble, rows)
    found = evaluate_one_step(ensemble, rows)
    center = mean.mean(0)
    spread = np.sqrt((std**2 + mean**2).mean(0) - center**2)
    close = {"rel": 1e-4}
    assert found.rmse == pytest.approx(np.sqrt(np.mean((y - center) ** 2)), **close)
    scaled = (y - center) / np.array([0.2, 10.0])
    assert found.nrmse == pytest.approx(np.sqrt(np.mean(scaled**2)), **close)
    joint = stats.norm.logpdf(y, mean, std).sum(-1)
    mixture = special.logsumexp(joint, axis=0, b=1.0 / 3.0)
    assert found.nll == pytest.approx(-mixture.mean() / 2, **close)
    assert found.member_nll == pytest.approx(-joint.mean() / 2, **close)
    assert found.nll < found.member_nll  # Jensen
    coverage = []
    for level in LEVELS:
        # The central interval of the mixture: its cdf is the mean of the members'.
        below = stats.norm.cdf(y, mean, std).mean(0)
        coverage.append(np.mean(abs(below - 0.5) <= level / 2))
    assert found.coverage == pytest.approx(coverage, abs=1e-9)
    assert found.coverage_90 == found.coverage[LEVELS.index(0.9)]
    error = np.mean([abs(c - p) for c, p in zip(coverage, LEVELS, strict=True)])
    assert found.calibration_error == pytest.approx(error)
    assert found.calibration_error > 0.02  # the model is wrong, and it shows
    each = [np.sqrt(np.mean((y - m) ** 2)) for m in mean]
    assert found.member_rmse == pytest.approx(np.mean(each), **close)
    assert found.member_rmse > found.rmse
    z = (y - center) / spread
    assert found.dispersion == pytest.approx(np.sqrt(np.mean(z**2)), **close)
    first, second = z[:30], z[30:]
    own = [
        -stats.norm.logpdf(a, 0.0, np.sqrt(np.mean(b**2)) * np.ones(2)) + np.log(s)
        for a, b, s in ((first, second, spread[:30]), (second, first, spread[30:]))
    ]
    assert found.scaled_nll == pytest.approx(np.mean(own), **close)


def test_crps_against_its_integral(ensemble: DynamicsModel, rows: Transitions) -> None:
    """CRPS = ∫ (F(z) − 1{y ≤ z})² dz, F the mean of the members' cdfs; of a member, its own."""
    few = rows[:6]
    y, mean, std = by_hand(ensemble, few)
    std = np.broadcast_to(std, mean.shape)

    def crps(at: float, mu: Array, sd: Array) -> float:
        low, high = min(at, (mu - 12 * sd).min()), max(at, (mu + 12 * sd).max())
        below, above = np.linspace(low, at, 4001), np.linspace(at, high, 4001)
        cdf = [stats.norm.cdf(z[:, None], mu, sd).mean(1) for z in (below, above)]
        return float(
            integrate.simpson(cdf[0] ** 2, x=below) + integrate.simpson((1 - cdf[1]) ** 2, x=above)
        )

    def mean_crps(members: slice) -> Array:
        return np.array(
            [
                [crps(y[b, d], mean[members, b, d], std[members, b, d]) for d in range(2)]
                for b in range(6)
            ]
        ).mean(0)

    found = evaluate_one_step(ensemble, few)
    assert found.crps == pytest.approx(mean_crps(slice(None)).mean(), rel=1e-4)
    scaled = mean_crps(slice(None)) / np.array([0.2, 10.0])
    assert found.ncrps == pytest.approx(scaled.mean(), rel=1e-4)
    alone = np.mean([mean_crps(slice(k, k + 1)).mean() for k in range(3)])
    assert found.member_crps == pytest.approx(alone, rel=1e-4)
    assert found.member_crps > found.crps


def test_a_mixture_policy_is_scored_as_all_its_components() -> None:
    """Against the ensemble of Gaussians that has the same components with the same weights."""
    g = seeded(4)
    mean, log_std = torch.randn(2, 7, 3, 2, generator=g), 0.3 * torch.randn(2, 7, 3, 2, generator=g)
    y = torch.randn(7, 2, generator=g)
    mixture = Normals.of(GaussianMixture(torch.zeros(2, 7, 3), mean, log_std))
    flat = Normals.of(DiagonalGaussian(*(p.movedim(2, 1).flatten(0, 1) for p in (mean, log_std))))
    torch.testing.assert_close(mixture.crps(y), flat.crps(y))
    torch.testing.assert_close(mixture.cdf(y), flat.cdf(y))
    torch.testing.assert_close(mixture.moments(), flat.moments())


def test_chunks_make_no_difference(ensemble: DynamicsModel, rows: Transitions) -> None:
    whole, pieces = (evaluate_one_step(ensemble, rows, chunk=c) for c in (1000, 7))
    assert pieces.coverage == whole.coverage
    for name in ("rmse", "nrmse", "nll", "member_nll", "crps"):
        assert getattr(pieces, name) == pytest.approx(getattr(whole, name), rel=1e-5)


def noisy_walk(n: int, seed: int, sigma: float = 0.5, rho: float = 3.0) -> Transitions:
    """Δs = 0.3 s − u + σε, reward = 2 s + ρη."""
    g = np.random.default_rng(seed)
    obs, action = g.normal(size=(n, 1)), g.normal(size=(n, 1))
    delta = 0.3 * obs - action + sigma * g.normal(size=(n, 1))
    return records(obs, action, 2 * obs[:, 0] + rho * g.normal(size=n), obs + delta, 10)


def walk_model(linear_model: LinearModel, sigma: float = 0.5, rho: float = 3.0) -> DynamicsModel:
    weight = torch.tensor([[[0.3, 2.0], [-1.0, 0.0]]])
    return linear_model(weight, torch.zeros(1, 2), torch.tensor([[sigma, rho]]), 1)


def test_the_true_model_is_calibrated(linear_model: LinearModel) -> None:
    n = 20_000
    found = evaluate_one_step(walk_model(linear_model), noisy_walk(n, 3))
    for level, covered in zip(LEVELS, found.coverage, strict=True):
        assert abs(covered - level) < 4 * math.sqrt(level * (1 - level) / (2 * n))
    assert found.calibration_error < 0.006
    # Its likelihood is minus the entropy, its CRPS σ/√π, its error σ.
    entropy = np.mean([stats.norm.entropy(scale=s) for s in (0.5, 3.0)])
    assert found.nll == pytest.approx(entropy, abs=4 * math.sqrt(0.25 / n))
    assert found.member_nll == pytest.approx(found.nll, rel=1e-6)
    assert found.crps == pytest.approx(np.mean([0.5, 3.0]) / math.sqrt(math.pi), rel=0.02)
    assert found.rmse == pytest.approx(math.sqrt((0.25 + 9.0) / 2), rel=0.02)


def test_too_small_a_std_covers_what_the_normal_law_says(linear_model: LinearModel) -> None:
    found = evaluate_one_step(walk_model(linear_model, 0.25, 1.5), noisy_walk(20_000, 4))
    expected = [2 * stats.norm.cdf(stats.norm.ppf(0.5 + p / 2) / 2) - 1 for p in LEVELS]
    assert found.coverage == pytest.approx(expected, abs=0.012)
    assert found.calibration_error == pytest.approx(
        np.mean(np.subtract(LEVELS, expected)), abs=0.01
    )


def test_no_transitions_are_refused(ensemble: DynamicsModel, rows: Transitions) -> None:
    with pytest.raises(InvalidInputError, match="transitions is empty"):
        evaluate_one_step(ensemble, rows[:0])


def rollouts(episodes: int, length: int, sigma: float, seed: int = 0) -> Transitions:
    """Episodes of s' = 0.9 s + 0.5 u + σε from far apart starts; the second dimension stands still."""
    g = np.random.default_rng(seed)
    s, columns = g.normal(0, 3, size=episodes), []
    for _ in range(length):
        u = g.uniform(-1, 1, size=episodes)
        after = 0.9 * s + 0.5 * u + sigma * g.normal(size=episodes)
        columns.append((s, u, after))
        s = after
    obs, action, after = (np.stack(c, 1).reshape(-1, 1) for c in zip(*columns, strict=True))
    still = np.full_like(obs, 7.0)
    return records(np.hstack([obs, still]), action, obs[:, 0], np.hstack([after, still]), length)


def rollout_model(linear_model: LinearModel, sigma: float, members: int = 1) -> DynamicsModel:
    weight = torch.tensor([[-0.1, 0.0, 1.0], [0.0, 0.0, 0.0], [0.5, 0.0, 0.0]])
    std = torch.tensor([[sigma, 1e-4, 1e-4]])
    return linear_model(
        weight.expand(members, -1, -1), torch.zeros(members, 3), std.expand(members, -1), 2
    )


def test_open_loop_of_the_exact_model_has_no_error(linear_model: LinearModel) -> None:
    """Windows that crossed an episode's end would: starts are three units apart."""
    data = rollouts(episodes=30, length=12, sigma=0.0)
    found = evaluate_open_loop(
        rollout_model(linear_model, 1e-4, members=2), data, generator=seeded(), steps=(1, 5, 12)
    )
    assert found.steps == (1, 5, 12)
    assert max(found.nrmse) < 1e-3
    assert min(found.coverage_90) > 0.99  # the truth is where the particles' noise is centred


def test_open_loop_of_the_true_noise(linear_model: LinearModel) -> None:
    """The k-step error has variance σ² Σ_{i<k} .81ⁱ, and 90 % of it lies in the interval."""
    data, sigma = rollouts(episodes=400, length=12, sigma=0.4, seed=1), 0.4
    found = evaluate_open_loop(
        rollout_model(linear_model, sigma),
        data,
        generator=seeded(),
        steps=(1, 3, 10),
        windows=1000,
        particles_per_member=200,
    )
    for k, error, covered in zip(found.steps, found.nrmse, found.coverage_90, strict=True):
        sd = sigma * math.sqrt(sum(0.81**i for i in range(k)))
        assert error * data.next_obs[:, 0].std() == pytest.approx(sd, rel=0.1)
        assert covered == pytest.approx(0.9, abs=0.035)


def test_open_loop_is_determined_by_its_generator(linear_model: LinearModel) -> None:
    data, model = rollouts(40, 10, 0.4), rollout_model(linear_model, 0.4)
    first, again, other = (
        evaluate_open_loop(model, data, generator=seeded(s), steps=(2, 4), windows=20)
        for s in (0, 0, 1)
    )
    assert first == again
    assert first.nrmse != other.nrmse


@pytest.mark.parametrize("horizon", [1, 2, 3, 6])
def test_windows_never_cross_a_gap(horizon: int) -> None:
    """Against the definition, on episodes with missing steps that take turns with each other."""
    g = np.random.default_rng(horizon)
    episode = np.repeat(g.integers(0, 4, size=60), 3)
    t = np.concatenate([[0], np.cumsum(g.choice([1, 1, 1, 2, -3], size=len(episode) - 1))])
    base = rollouts(episodes=30, length=6, sigma=0.1)
    data = Transitions(**{**vars(base), "episode": episode, "t": t})
    expected = [
        row
        for row in range(len(data) - horizon + 1)
        if all(
            episode[row + i] == episode[row] and t[row + i] == t[row] + i for i in range(horizon)
        )
    ]
    assert window_starts(data, horizon).tolist() == expected
    assert 0 < len(expected) <= len(data)


def test_open_loop_says_what_is_wrong(linear_model: LinearModel) -> None:
    data, model = rollouts(10, 5, 0.1), rollout_model(linear_model, 0.1)
    with pytest.raises(InvalidInputError, match="no episode of the test data holds 6 steps"):
        evaluate_open_loop(model, data, generator=seeded(), steps=(1, 6))
    with pytest.raises(InvalidInputError, match="no episode of the test data holds 60 steps"):
        evaluate_open_loop(model, data, generator=seeded(), steps=(60,))
    for bad in ({"steps": (0, 2)}, {"steps": ()}, {"windows": 0}, {"particles_per_member": 0}):
        with pytest.raises(InvalidInputError, match="must be at least 1"):
            evaluate_open_loop(model, data, generator=seeded(), **({"steps": (1,)} | bad))


def test_open_loop_likelihood_of_the_true_model(linear_model: LinearModel) -> None:
    """Δs = −u + σε: after k steps s is normal around s₀ − Σu with variance kσ²."""
    sigma, n, steps = 0.5, 40_000, (1, 4)
    g = np.random.default_rng(7)
    action = g.normal(size=(n, 1))
    obs = np.zeros((n, 1))
    for t in range(1, n):
        obs[t] = 0.0 if t % 10 == 0 else obs[t - 1] - action[t - 1] + sigma * g.normal()
    next_obs = np.where(
        (np.arange(n) % 10 == 9)[:, None],
        obs - action + sigma * g.normal(size=(n, 1)),
        np.roll(obs, -1, axis=0),
    )
    data = records(obs, action, g.normal(size=n), next_obs, 10)
    weight = torch.tensor([[[0.0, 0.0], [-1.0, 0.0]]])
    model = linear_model(weight, torch.zeros(1, 2), torch.tensor([[sigma, 1.0]]), 1)
    found = evaluate_open_loop(
        model, data, generator=seeded(), steps=steps, windows=4000, particles_per_member=400
    )
    for k, nll, nrmse in zip(steps, found.nll, found.nrmse, strict=True):
        width = sigma * math.sqrt(k) / next_obs.std()
        assert nrmse == pytest.approx(width, rel=0.05)
        assert nll == pytest.approx(
            math.log(width) + 0.5 * math.log(2 * math.pi * math.e), abs=0.05
        )


def test_a_band_holds_what_the_model_draws(linear_model: LinearModel) -> None:
    data = noisy_walk(400, 5)
    model = walk_model(linear_model)
    band = rollout_band(model, data, 8, generator=seeded(), particles_per_member=4000)
    assert {name: tuple(v.shape) for name, v in band.items()} == dict.fromkeys(
        ("truth", "mean", "low", "high"), (8, 1)
    )
    # Δs = .3 s − u + .5 ε from a known start: the first step is normal with σ = .5.
    half = ((band["high"] - band["low"]) / 2.0)[0].item()
    assert half == pytest.approx(1.645 * 0.5, rel=0.05)
    assert (band["high"] - band["low"])[-1] > (band["high"] - band["low"])[0]
    with pytest.raises(InvalidInputError, match="steps"):
        rollout_band(model, data, 11, generator=seeded())
