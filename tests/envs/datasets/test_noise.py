"""Noise whose density is known: moments, densities that integrate to one, and nothing else moved."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate

from envs.datasets.noise import (
    Noise,
    Units,
    add_noise,
    outlier_log_density,
    spread_at,
    two_mode_log_density,
)
from mbrl_bilevel.base.records import Transitions

N = 20_000


@pytest.fixture(scope="module")
def steps() -> Transitions:
    """The second dimension of the state never changes."""
    random = np.random.default_rng(0)
    obs, action = random.normal(size=(2, N, 2)).astype(np.float32)
    change = np.stack([3.0 * action[:, 0], np.zeros(N)], axis=1)
    never = np.zeros(N, dtype=np.bool_)
    return Transitions(
        obs,
        action,
        (0.01 * obs[:, 0]).astype(np.float32),
        (obs + change).astype(np.float32),
        never,
        never,
        np.arange(N) // 100,
        np.arange(N) % 100,
    )


def added(steps: Transitions, noise: Noise, seed: int = 1) -> tuple[np.ndarray, float | None]:
    units = Units.of(steps)
    found = add_noise(steps, noise, units, np.random.default_rng(seed))
    rows = found.transitions
    change = np.column_stack([rows.next_obs - steps.next_obs, rows.reward - steps.reward])
    assert np.array_equal(rows.obs, steps.obs)
    assert np.array_equal(rows.episode, steps.episode)
    assert (change[:, 1] == 0.0).all()  # what never varies stays
    return change[:, [0, 2]] / units.target[[0, 2]], found.nll


@pytest.mark.parametrize("noise", ["heteroscedastic", "two-mode", "outliers"])
def test_noise_has_the_moments_that_it_says(steps: Transitions, noise: Noise) -> None:
    found, _ = added(steps, noise)
    expected = {
        "heteroscedastic": np.square(spread_at(steps, Units.of(steps))).mean(),
        "two-mode": 0.5**2 + 0.1**2,
        "outliers": 0.95 * 0.1**2 + 0.05 * 1.0**2,
    }[noise]
    assert np.abs(found.mean(0)).max() < 4 * np.sqrt(expected / N) + 1e-3
    assert np.square(found).mean(0) == pytest.approx(expected, rel=0.1)
    again, _ = added(steps, noise)
    assert np.array_equal(found, again)


def test_heteroscedastic_noise_follows_its_spread(steps: Transitions) -> None:
    found, nll = added(steps, "heteroscedastic")
    std = spread_at(steps, Units.of(steps))
    assert std.max() / std.min() > 5.0
    assert np.square(found / std).mean() == pytest.approx(1.0, rel=0.03)
    entropy = np.log(std).mean() + 0.5 * np.log(2 * np.pi * np.e)
    raw = np.log(Units.of(steps).target[[0, 2]]).mean()
    assert nll == pytest.approx(entropy + raw, abs=0.02)


def test_modes_are_alike_in_all_dimensions_of_a_row(steps: Transitions) -> None:
    found, _ = added(steps, "two-mode")
    assert (np.sign(found[:, 0]) == np.sign(found[:, 1])).mean() > 0.999
    assert np.abs(np.abs(found).mean() - 0.5) < 0.01


@pytest.mark.parametrize("density", [two_mode_log_density, outlier_log_density])
def test_densities_integrate_to_one(density: object) -> None:
    grid = np.linspace(-6, 6, 6001)
    active = np.array([True])
    p = np.exp(density(grid[:, None], active))  # type: ignore[operator]
    assert integrate.simpson(p, x=grid) == pytest.approx(1.0, abs=1e-6)
    a, b = np.meshgrid(np.linspace(-5, 5, 801), np.linspace(-5, 5, 801))
    both = np.exp(density(np.column_stack([a.flat, b.flat]), np.array([True, True])))  # type: ignore[operator]
    assert both.sum() * (10 / 800) ** 2 == pytest.approx(1.0, abs=1e-4)


def test_noise_on_actions_moves_nothing_else(steps: Transitions) -> None:
    found = add_noise(steps, "action", Units.of(steps), np.random.default_rng(0))
    assert found.nll is None
    assert np.array_equal(found.transitions.next_obs, steps.next_obs)
    moved = (found.transitions.action - steps.action).std(0)
    assert moved == pytest.approx(0.3 * steps.action.std(0), rel=0.05)


def test_without_noise_nothing_is_copied(steps: Transitions) -> None:
    assert add_noise(steps, "none", Units.of(steps), np.random.default_rng(0)).transitions is steps


def test_units_may_be_small(steps: Transitions) -> None:
    """Rewards and observations of 1e-8 vary as those of 1 do."""
    small = np.float32(1e-8)
    tiny = replace(
        steps,
        obs=small * steps.obs,
        next_obs=small * steps.next_obs,
        reward=small * steps.reward,
    )
    units, plain = Units.of(tiny), Units.of(steps)
    np.testing.assert_allclose(units.target, small * plain.target, rtol=1e-3)
    assert plain.target[1] == 0.0
    drawn = add_noise(tiny, "outliers", units, np.random.default_rng(0)).transitions
    added = (drawn.reward - tiny.reward) / units.target[-1]
    assert np.median(np.abs(added)) == pytest.approx(0.1 * 0.6745, rel=0.1)
