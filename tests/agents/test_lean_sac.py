"""The faster networks make the updates that Stable-Baselines3's own make."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import torch
from stable_baselines3 import SAC

from agents.lean_sac import LeanSACPolicy


def trained(policy: Any, steps: int) -> SAC:
    env = gym.make("InvertedPendulum-v5")
    kwargs = {"net_arch": [16, 16], "n_critics": 3}
    agent = SAC(policy, env, seed=0, device="cpu", learning_starts=40, policy_kwargs=kwargs)
    return agent.learn(40 + steps)


def test_parameters_are_sb3s_and_stay_so() -> None:
    for steps in (0, 10):
        ours, theirs = (trained(policy, steps) for policy in (LeanSACPolicy, "MlpPolicy"))
        found, expected = ours.policy.state_dict(), theirs.policy.state_dict()
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
    first = trained("MlpPolicy", 0).policy.state_dict()
    assert any((first[name] - value).abs().max() > 1e-3 for name, value in found.items())


def test_the_actors_loss_leaves_the_critics_no_gradient() -> None:
    agent = trained(LeanSACPolicy, 0)
    obs = torch.randn(7, 4)
    actions = torch.zeros(7, 1, requires_grad=True)
    values = agent.critic(obs, actions)
    assert [value.shape for value in values] == [(7, 1)] * 3
    (gradient,) = torch.autograd.grad(torch.stack(values).sum(), [actions], retain_graph=True)
    assert gradient.abs().min() > 0
    torch.stack(values).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is None for parameter in agent.critic.parameters())
    torch.stack(agent.critic(obs, actions.detach())).sum().backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None for parameter in agent.critic.parameters())
