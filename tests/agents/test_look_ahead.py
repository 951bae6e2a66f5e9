"""Imagined steps in the learner's units, against the model's own steps by hand."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from agents.learners.fast_sac import FastSAC
from agents.planning_agent.look_ahead import ModelSteps
from agents.planning_agent.policy import HeldPolicy
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.models.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.training.methods import get_method
from mbrl_bilevel.training.settings import Schedule

LOW, HIGH = np.array([-3.0, 0.0], np.float32), np.array([1.0, 0.5], np.float32)


class Blank(gym.Env[Any, Any]):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(LOW, HIGH)


@pytest.fixture(scope="module")
def model() -> DynamicsModel:
    """Of s' = s + 0.1 a and r = s₀ a₁, with an ending that is learned: s₀' > 1."""
    rng = np.random.default_rng(0)
    obs, action = rng.normal(size=(300, 2)), rng.uniform(LOW, HIGH, size=(300, 2))
    next_obs = obs + 0.1 * action
    rows = Transitions.from_arrays(
        obs,
        action,
        next_obs,
        obs[:, 0] * action[:, 1],
        terminated=next_obs[:, 0] > 1.0,
        truncated=next_obs[:, 0] <= 1.0,
    )
    schedule = Schedule(steps=50, batch_size=32, learning_rate=1e-2)
    generator = torch.Generator().manual_seed(0)
    fitted, _ = fit_dynamics(
        rows, get_method("mse"), generator=generator, members=2, hidden=(16,), schedule=schedule
    )
    return fitted


@pytest.mark.parametrize("normalise", [False, True])
def test_a_step_is_the_models_in_the_learners_units(model: DynamicsModel, normalise: bool) -> None:
    env: VecEnv = DummyVecEnv([Blank])
    normalised = VecNormalize(env) if normalise else None
    if normalised is not None:
        env = normalised
        normalised.obs_rms.mean, normalised.obs_rms.var = (
            np.array([0.5, -1.0]),
            np.array([4.0, 2.0]),
        )
        normalised.ret_rms.var = np.array(9.0)
    learner = FastSAC("MlpPolicy", env, seed=0, policy_kwargs={"net_arch": [8]})
    learner.reward_scale = 2.0
    steps = ModelSteps(model, HeldPolicy(learner, env.action_space, normalised), env.action_space)  # type: ignore[arg-type]
    rng = np.random.default_rng(1)
    raw, stored = rng.normal(size=(6, 2)), rng.uniform(-1.0, 1.0, size=(6, 2))
    action = LOW + 0.5 * (stored + 1.0) * (HIGH - LOW)
    obs = raw if normalised is None else normalised.normalize_obs(raw)
    as_tensor = [torch.tensor(v, dtype=torch.float32) for v in (obs, stored, raw, action)]
    found = steps(*as_tensor[:2])
    by_hand = model.step(*(v.reshape(2, 3, 2) for v in as_tensor[2:]))
    further = by_hand.next_obs.flatten(0, 1).detach().numpy()
    seen = further if normalised is None else normalised.normalize_obs(further)
    np.testing.assert_allclose(found.obs.detach(), seen, rtol=1e-4, atol=1e-5)
    unit = 6.0 if normalise else 2.0
    torch.testing.assert_close(found.reward * unit, by_hand.reward.flatten(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.ended, by_hand.terminated.flatten(), rtol=1e-4, atol=1e-5)
    assert float(found.ended.detach().std()) > 0.0


def test_it_stays_near_what_the_model_was_fitted_to(model: DynamicsModel) -> None:
    """And no gradient runs beyond: where a model is led astray, its slopes grow at every step."""
    learner = FastSAC("MlpPolicy", DummyVecEnv([Blank]), seed=0, policy_kwargs={"net_arch": [8]})
    steps = ModelSteps(model, HeldPolicy(learner, Blank.action_space, None), Blank.action_space)
    far = torch.tensor([[1e4, 0.0], [-1e4, 0.0]], requires_grad=True)
    found = steps(far, torch.zeros(2, 2))
    shift, scale = (v[:2].numpy() for v in (model.inputs.shift, model.inputs.scale))
    np.testing.assert_allclose(
        found.obs[:, 0].detach(), shift[0] + 10.0 * scale[0] * np.array([1.0, -1.0]), rtol=1e-5
    )
    (slope,) = torch.autograd.grad(found.obs[:, 0].sum(), far)
    assert slope[:, 0].tolist() == [0.0, 0.0]
