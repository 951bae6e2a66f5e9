"""The held learner, asked in raw units, against SB3's own ``predict`` and critics by hand."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import Tensor

from agents.learners.fast_sac import FastSAC
from agents.learners.no_learner import NoLearner
from agents.planning_agent.policy import HeldPolicy

Array = npt.NDArray[Any]


class Blank(gym.Env[Any, Any]):
    """Spaces alone: two numbers seen, two pushes of unlike bounds, or three choices."""

    def __init__(self, choices: bool = False) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        low, high = np.array([-3.0, 0.0], np.float32), np.array([1.0, 0.5], np.float32)
        box = gym.spaces.Box(low, high)
        self.action_space = gym.spaces.Discrete(3) if choices else box


NETWORK: dict[str, Any] = {"net_arch": [32]}
NORMALISED = [None, (True, True), (True, False), (False, True)]
BOXES = [SAC, FastSAC, TD3, DDPG]


def held(
    kind: type[OffPolicyAlgorithm], flags: tuple[bool, bool] | None = None, **more: Any
) -> tuple[HeldPolicy, Any, VecNormalize | None]:
    """With networks large enough to tell states apart; statistics that are not those of the start."""
    env: VecEnv = DummyVecEnv([lambda: Blank(choices=kind is DQN)])
    normalised: VecNormalize | None = None
    if flags is not None:
        env = normalised = VecNormalize(
            env, norm_obs=flags[0], norm_reward=flags[1], clip_obs=1.5, clip_reward=1.0
        )
        if flags[0]:
            normalised.obs_rms.mean = np.array([0.5, -1.0])
            normalised.obs_rms.var = np.array([4.0, 0.25])
        normalised.ret_rms.var = np.array(9.0)
    algorithm: Any = kind(
        "MlpPolicy", env, seed=4, device="cpu", policy_kwargs=dict(NETWORK), **more
    )
    with torch.no_grad():
        for parameter in algorithm.policy.parameters():
            parameter.mul_(2.0)
    return HeldPolicy(algorithm, env.action_space, normalised), algorithm, normalised  # type: ignore[arg-type]


def observations() -> Tensor:
    return 2.0 * torch.randn(40, 2, generator=torch.Generator().manual_seed(7))


def as_seen(obs: Tensor, normalised: VecNormalize | None) -> Array:
    return obs.numpy() if normalised is None else np.asarray(normalised.normalize_obs(obs.numpy()))


def reward_unit(flags: tuple[bool, bool] | None) -> float:
    return 3.0 if flags is not None and flags[1] else 1.0


@pytest.mark.parametrize("flags", NORMALISED)
@pytest.mark.parametrize("kind", BOXES)
def test_the_best_guess_is_what_sb3_predicts(kind: Any, flags: Any) -> None:
    policy, algorithm, normalised = held(kind, flags)
    obs = observations()
    found = policy.act(obs)
    expected, _ = algorithm.predict(as_seen(obs, normalised), deterministic=True)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    spread = expected.std(0) / (algorithm.action_space.high - algorithm.action_space.low)
    assert (spread > 0.02).all()  # it depends on what is seen


@pytest.mark.parametrize("flags", NORMALISED)
def test_what_the_algorithm_sees_and_back(flags: Any) -> None:
    policy, _, normalised = held(SAC, flags)
    obs = 0.3 * observations()
    seen = policy.seen(obs)
    np.testing.assert_allclose(seen, as_seen(obs, normalised), rtol=1e-5, atol=1e-6)
    inside = seen.abs() < 1.5
    torch.testing.assert_close(policy.raw(seen)[inside], obs[inside])


@pytest.mark.parametrize("flags", NORMALISED)
@pytest.mark.parametrize("kind", BOXES)
def test_a_state_is_worth_what_the_least_critic_says_in_raw_rewards(kind: Any, flags: Any) -> None:
    policy, algorithm, normalised = held(kind, flags)
    obs = observations()
    seen = torch.as_tensor(as_seen(obs, normalised))
    raw, _ = algorithm.predict(seen.numpy(), deterministic=True)
    action = torch.from_numpy(algorithm.policy.scale_action(raw))
    with torch.no_grad():
        each = torch.cat(algorithm.critic(seen, action), 1)
    assert each.shape == (40, 1 if kind is DDPG else 2)
    expected = reward_unit(flags) * each.min(1).values
    assert expected.std() > 0.05
    torch.testing.assert_close(policy.value(obs), expected, rtol=1e-4, atol=1e-5)
    shaped = policy.value(obs.reshape(4, 5, 2, 2))
    torch.testing.assert_close(shaped, expected.reshape(4, 5, 2), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(policy.action_value(obs, action), expected, rtol=1e-4, atol=1e-5)
    other = torch.full_like(action, 0.25)
    with torch.no_grad():
        least = torch.cat(algorithm.critic(seen, other), 1).min(1).values
    told = policy.action_value(obs, other)
    torch.testing.assert_close(told, reward_unit(flags) * least, rtol=1e-4, atol=1e-5)
    assert (told - expected).abs().max() > 0.01


@pytest.mark.parametrize("flags", NORMALISED)
def test_choices_of_dqn(flags: Any) -> None:
    policy, algorithm, normalised = held(DQN, flags)
    obs = observations()
    seen = as_seen(obs, normalised)
    expected, _ = algorithm.predict(seen, deterministic=True)
    found = policy.act(obs)
    assert found.shape == (40, 3)
    assert found.argmax(1).tolist() == expected.tolist()
    assert len(set(expected.tolist())) > 1
    assert found.sum(1).tolist() == [1.0] * 40
    with torch.no_grad():
        q = reward_unit(flags) * algorithm.q_net(torch.as_tensor(seen))
    torch.testing.assert_close(policy.value(obs), q.max(1).values, rtol=1e-4, atol=1e-5)
    for choice in range(3):
        told = policy.action_value(obs, torch.full((40, 1), float(choice)))
        torch.testing.assert_close(told, q[:, choice], rtol=1e-4, atol=1e-5)


def test_dqn_draws_a_choice_by_its_worth() -> None:
    """softmax(Q) in standard deviations of Q over the choices, whatever the unit of reward."""
    policy, algorithm, _ = held(DQN)
    obs = observations()[:1].expand(20_000, 2)
    with torch.no_grad():
        q = algorithm.q_net(obs[:1])[0].double()
    weight = torch.exp(q / q.std(correction=0))
    found = policy.act(obs, torch.Generator().manual_seed(1)).mean(0)
    np.testing.assert_allclose(found, weight / weight.sum(), atol=0.012)
    assert found.max() - found.min() > 0.1


@pytest.mark.parametrize("sde", [False, True])
@pytest.mark.parametrize("kind", [SAC, FastSAC])
def test_sac_draws_from_its_squashed_gaussian(kind: Any, sde: bool) -> None:
    policy, algorithm, _ = held(kind, use_sde=sde)
    obs = 0.1 * observations()[:1].expand(20_000, 2)
    drawn = policy.act(obs, torch.Generator().manual_seed(2))
    assert torch.equal(drawn, policy.act(obs, torch.Generator().manual_seed(2)))
    stored = torch.from_numpy(algorithm.policy.scale_action(drawn.numpy())).double()
    inside = torch.atanh(stored.clamp(-1.0 + 1e-7, 1.0 - 1e-7))
    with torch.no_grad():
        mean, log_std, features = algorithm.actor.get_action_dist_params(obs[:1])
        std = log_std.exp()[0]
        if sde:  # a linear map of the features with weights N(0, e^(2 log_std)), and ε = 1e-6
            latent = features["latent_sde"]
            std = (latent.square() @ log_std.exp().square() + 1e-6).sqrt()[0]
    error = std / np.sqrt(20_000)
    assert bool(((inside.mean(0) - mean[0]).abs() < 4.0 * error).all())
    np.testing.assert_allclose(inside.std(0), std, rtol=0.03)


@pytest.mark.parametrize("kind", [TD3, DDPG])
def test_a_deterministic_actor_proposes_with_a_tenth_of_noise(kind: Any) -> None:
    policy, algorithm, _ = held(kind)
    obs = 0.1 * observations()[:1].expand(20_000, 2)
    guess = algorithm.policy.scale_action(policy.act(obs[:1]).numpy())
    drawn = policy.act(obs, torch.Generator().manual_seed(3))
    box = algorithm.action_space
    assert bool(
        (drawn >= torch.from_numpy(box.low)).all() & (drawn <= torch.from_numpy(box.high)).all()
    )
    noise = algorithm.policy.scale_action(drawn.numpy()) - guess
    assert (np.abs(guess) < 0.6).all()  # four standard deviations from the bounds
    np.testing.assert_allclose(noise.std(0), 0.1, rtol=0.03)
    np.testing.assert_allclose(noise.mean(0), 0.0, atol=0.004)


def test_a_learner_that_divides_rewards_is_asked_in_raw_ones() -> None:
    policy, algorithm, _ = held(FastSAC)
    obs = observations()
    before = policy.value(obs)
    algorithm.reward_scale = 5.0
    torch.testing.assert_close(policy.value(obs), 5.0 * before)


def test_asking_changes_nothing_and_draws_nothing() -> None:
    """Networks are asked as they act, not as they learn; nobody else's random numbers are used."""
    policy, algorithm, _ = held(FastSAC)
    algorithm.policy.set_training_mode(True)
    before = {name: value.clone() for name, value in algorithm.policy.state_dict().items()}
    random = torch.get_rng_state()
    obs = observations()
    policy.act(obs, torch.Generator().manual_seed(0))
    policy.value(obs)
    assert torch.equal(torch.get_rng_state(), random)
    for name, value in algorithm.policy.state_dict().items():
        assert torch.equal(value, before[name])
    assert not algorithm.policy.training


def test_no_learner_is_no_policy() -> None:
    env = DummyVecEnv([Blank])
    space: Any = env.action_space
    assert not HeldPolicy(NoLearner("MlpPolicy", env), space, None).exists
    assert held(SAC)[0].exists
    assert HeldPolicy(SAC("MlpPolicy", env, gamma=0.9, device="cpu"), space, None).discount == 0.9


@pytest.mark.parametrize("name", ["TQC", "CrossQ"])
def test_learners_of_sb3_contrib(name: str) -> None:
    """TQC is worth the mean of its quantiles over all critics; CrossQ's layers use running statistics."""
    kind = getattr(pytest.importorskip("sb3_contrib"), name)
    policy, algorithm, normalised = held(kind, (True, True))
    algorithm.policy.set_training_mode(True)
    obs = observations()
    seen = torch.as_tensor(as_seen(obs, normalised))
    found = policy.act(obs)
    worth = policy.value(obs)
    raw, _ = algorithm.predict(seen.numpy(), deterministic=True)
    np.testing.assert_allclose(found, raw, rtol=1e-5, atol=1e-6)
    action = torch.from_numpy(algorithm.policy.scale_action(raw))
    with torch.no_grad():
        q = algorithm.critic(seen, action)
    least = q.mean((1, 2)) if name == "TQC" else torch.cat(q, 1).min(1).values
    torch.testing.assert_close(worth, 3.0 * least, rtol=1e-4, atol=1e-5)
    assert worth.std() > 0.01


@pytest.mark.parametrize("kind", [*BOXES, DQN])
def test_gradients_pass_through_what_a_state_is_worth(kind: type[OffPolicyAlgorithm]) -> None:
    policy, *_ = held(kind)
    obs = torch.tensor([[0.3, -0.4], [1.0, 2.0]], requires_grad=True)
    worth = policy.worth(obs)
    torch.testing.assert_close(worth.detach(), policy.value(obs.detach()))
    (slope,) = torch.autograd.grad(worth.sum(), obs)
    assert slope.isfinite().all()
    assert (slope != 0.0).any()
