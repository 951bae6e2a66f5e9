"""FastSAC is SB3's SAC to round-off, and each of its own arguments does what its paper says."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.logger import configure
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from agents.learners.adam import DirectAdam
from agents.learners.ahead import Ahead, ImaginedStep
from agents.learners.critics import EnsembleCritic, Standardised
from agents.learners.fast_sac import FastSAC, standardising_rows
from agents.learners.named import learner_class
from mbrl_bilevel.base.errors import InvalidInputError

OBS, ACTION = 3, 2
LOOSE = {"rtol": 1e-4, "atol": 1e-4}


class Spaces(gym.Env[Any, Any]):
    """Steps of one reward, −|a − ½|², behind a random observation; its values are known."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
    action_space = gym.spaces.Box(-1.0, 1.0, (ACTION,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self._observe(), -float(np.square(action - 0.5).sum()), True, False, {}

    def _observe(self) -> Any:
        return self.np_random.standard_normal(OBS).astype(np.float32)


def make(kind: Any = FastSAC, *, rows: int = 100, envs: int = 1, **kwargs: Any) -> Any:
    """An agent with random rows in its replay buffer; the same ones for the same arguments."""
    policy_kwargs = {"net_arch": [16, 12], **kwargs.pop("policy_kwargs", {})}
    agent = kind(
        "MlpPolicy",
        DummyVecEnv([Spaces] * envs),
        policy_kwargs=policy_kwargs,
        **{"seed": 0, "device": "cpu", "buffer_size": rows * envs, **kwargs},
    )
    agent.set_logger(configure(None, []))
    random = np.random.default_rng(0)
    for _ in range(rows):
        obs, next_obs = random.standard_normal((2, envs, OBS)) * (1.0, 50.0, 0.0) + (
            0.0,
            100.0,
            7.0,
        )
        action = random.uniform(-1.0, 1.0, (envs, ACTION))
        reward, done = 20.0 * random.standard_normal(envs), random.uniform(size=envs) < 0.2
        agent.replay_buffer.add(obs, next_obs, action, reward, done, [{}] * envs)
    return agent


def train(agent: Any, *calls: int) -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 (that is where SB3's buffers draw from)
    for steps in calls:
        agent.train(steps, 32)


def batch_of(agent: Any, size: int = 32) -> ReplayBufferSamples:
    found: ReplayBufferSamples = agent.replay_buffer.sample(size)
    return found


def by_sequential(critic: EnsembleCritic, index: int, norm: bool) -> nn.Sequential:
    """One critic as a chain of PyTorch's own layers."""
    layers: list[nn.Module] = []
    for depth, (weight, bias) in enumerate(zip(critic.weights, critic.biases, strict=True)):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.load_state_dict({"weight": weight[index].T, "bias": bias[index, 0]})
        layers.append(linear)
        if depth == len(critic.weights) - 1:
            break
        if norm:
            layer_norm = nn.LayerNorm(weight.shape[2])
            scale, shift = critic.norm_weights[depth], critic.norm_biases[depth]
            layer_norm.load_state_dict({"weight": scale[index, 0], "bias": shift[index, 0]})
            layers.append(layer_norm)
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"n_steps": 3, "target_update_interval": 2, "gamma": 0.9, "tau": 0.1},
        {"policy_kwargs": {"n_critics": 3, "net_arch": {"pi": [8], "qf": [7, 6, 5]}}},
        {"policy_kwargs": {"activation_fn": nn.Tanh}, "ent_coef": 0.2},
        {"use_sde": True, "learning_rate": lambda left: 1e-3 * left},
        {"policy_kwargs": {"share_features_extractor": True}, "ent_coef": "auto_0.5"},
        {"policy_kwargs": {"optimizer_class": torch.optim.RMSprop}},
        {"policy_kwargs": {"optimizer_kwargs": {"eps": 1e-5, "weight_decay": 0.1}}},
    ],
)
def test_with_sb3s_values_it_is_sb3s_sac(kwargs: dict[str, Any]) -> None:
    ours, peer = (make(kind, envs=2, **kwargs) for kind in (FastSAC, SAC))
    same = {"rtol": 1e-4, "atol": 2e-6}
    for agent in (ours, peer):
        train(agent, 3, 4)
    for mine, other in zip(ours.actor.parameters(), peer.actor.parameters(), strict=True):
        torch.testing.assert_close(mine, other, **same)
    for name in ("critic", "critic_target"):
        critic, other = getattr(ours, name), getattr(peer, name)
        before = [parameter.detach().clone() for parameter in critic.parameters()]
        critic.copy_from(other)
        torch.testing.assert_close(before, [*critic.parameters()], **same)
    if ours.log_ent_coef is not None:
        torch.testing.assert_close(ours.log_ent_coef, peer.log_ent_coef, **same)
    told = peer.logger.name_to_value
    assert ours.logger.name_to_value.keys() == told.keys()
    for name, value in ours.logger.name_to_value.items():
        assert value == pytest.approx(told[name], rel=1e-4, abs=1e-5), name


def test_its_arguments_are_sb3s_and_its_own() -> None:
    agent, peer = FastSAC(env=Spaces()), SAC("MlpPolicy", Spaces())
    own = {"actor_every", "target_critics", "actor_q", "standardise", "imitation"}
    own |= {"reward_scale", "standardised_rows", "look_ahead", "drift"}
    assert vars(agent).keys() - vars(peer).keys() == own
    for name, value in vars(peer).items():
        if type(value) in (int, float, str, bool, tuple):
            assert getattr(agent, name) == value


@pytest.mark.parametrize("norm", [False, True])
def test_the_critics_are_a_loop_of_sequentials(norm: bool) -> None:
    critic = make(policy_kwargs={"layer_norm": norm, "n_critics": 3}).critic
    for parameter in critic.parameters():
        nn.init.normal_(parameter, std=0.5)
    obs = torch.randn(20, OBS)
    actions = torch.randn(20, ACTION, requires_grad=True)
    weight = torch.randn(3, 20)
    q = critic.values(obs, actions)
    grown = torch.autograd.grad((q * weight).sum(), [actions, *critic.parameters()])
    alone = [by_sequential(critic, index, norm) for index in range(3)]
    expected = torch.cat([net(torch.cat([obs, actions], dim=1)) for net in alone], dim=1).T
    torch.testing.assert_close(q, expected, rtol=1e-5, atol=1e-5)
    by_hand = torch.autograd.grad((expected * weight).sum(), [actions, *alone[1].parameters()])
    torch.testing.assert_close(grown[0], by_hand[0], rtol=1e-4, atol=1e-4)
    named = dict(zip((name for name, _ in critic.named_parameters()), grown[1:], strict=True))
    torch.testing.assert_close(named["weights.1"][1].T, by_hand[1 + 2 * (1 + norm)], **LOOSE)
    torch.testing.assert_close(named["biases.2"][1, 0], by_hand[-1], **LOOSE)
    if norm:
        torch.testing.assert_close(named["norm_weights.0"][1, 0], by_hand[3], **LOOSE)
        torch.testing.assert_close(named["norm_biases.1"][1, 0], by_hand[8], **LOOSE)
    fixed = critic.values(obs, actions, fixed=True)
    (for_actions,) = torch.autograd.grad((fixed * weight).sum(), [actions])
    torch.testing.assert_close(for_actions, grown[0])


@pytest.mark.parametrize("norm", [False, True])
def test_derivatives_are_those_of_finite_differences(norm: bool) -> None:
    critic = make(policy_kwargs={"layer_norm": norm, "net_arch": [4, 3]}).critic.double()
    obs, actions = torch.randn(5, OBS).double(), torch.randn(5, ACTION).double()
    actions.requires_grad_()
    # SB3 hands on observations as float32, so the networks are called past it.
    critic.extract_features = lambda given, extractor: given
    parameters = tuple(critic.parameters())

    def q(*_: Tensor) -> Tensor:
        found: Tensor = critic.values(obs, actions)
        return found

    assert torch.autograd.gradcheck(q, (actions, *parameters))


def test_as_a_critic_of_sb3() -> None:
    critic = make(policy_kwargs={"n_critics": 3}).critic
    obs, actions = torch.randn(6, OBS), torch.randn(6, ACTION)
    every = critic(obs, actions)
    assert [tuple(q.shape) for q in every] == [(6, 1)] * 3
    torch.testing.assert_close(critic.q1_forward(obs, actions), every[0])
    some = critic.values(obs, actions, torch.tensor([2, 0]))
    torch.testing.assert_close(some, torch.cat([every[2], every[0]], dim=1).T)


def test_dropout_is_on_while_training_alone_and_before_layer_norm() -> None:
    agent = make(policy_kwargs={"layer_norm": True, "dropout": 0.5})
    critic, obs, actions = agent.critic, torch.randn(6, OBS), torch.randn(6, ACTION)
    agent.policy.set_training_mode(False)
    expected = [by_sequential(critic, i, True)(torch.cat([obs, actions], dim=1)) for i in (0, 1)]
    torch.testing.assert_close(list(critic(obs, actions)), expected, rtol=1e-5, atol=1e-5)
    agent.policy.set_training_mode(True)
    assert agent.critic_target.training
    torch.manual_seed(0)
    got = critic.values(obs, actions)
    torch.manual_seed(0)
    x = torch.cat([obs, actions], dim=1).expand(2, -1, -1)
    for depth in range(2):
        x = torch.dropout(x @ critic.weights[depth] + critic.biases[depth], 0.5, True)
        normal = (x - x.mean(-1, True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
        x = (normal * critic.norm_weights[depth] + critic.norm_biases[depth]).relu()
    expected_q = (x @ critic.weights[2] + critic.biases[2]).squeeze(2)
    torch.testing.assert_close(got, expected_q, rtol=1e-4, atol=1e-5)


def test_the_target_is_the_minimum_over_critics_drawn_at_random() -> None:
    agent = make(target_critics=2, policy_kwargs={"n_critics": 5})
    batch, ent_coef = batch_of(agent), torch.tensor(0.3)
    torch.manual_seed(3)
    got = agent.target(batch, ent_coef)
    torch.manual_seed(3)
    with torch.no_grad():
        actions, log_prob = agent.actor.action_log_prob(batch.next_observations)
        first, second = torch.randperm(5)[:2].tolist()
        every = agent.critic_target(batch.next_observations, actions)
        value = torch.minimum(every[first], every[second]) - 0.3 * log_prob.reshape(-1, 1)
        expected = batch.rewards + (1 - batch.dones) * 0.99 * value
    torch.testing.assert_close(got, expected.squeeze(1), rtol=1e-5, atol=1e-4)


def test_the_actor_learns_at_every_nth_update_of_all_calls() -> None:
    agent = make(actor_every=3)

    def actor_moves(steps: int) -> bool:
        before = [parameter.detach().clone() for parameter in agent.actor.parameters()]
        temperature = agent.log_ent_coef.item()
        train(agent, steps)
        pairs = zip(before, agent.actor.parameters(), strict=True)
        moved = any(not torch.equal(old, new) for old, new in pairs)
        assert moved == (agent.log_ent_coef.item() != temperature)
        return moved

    assert [actor_moves(1) for _ in range(7)] == [True, False, False] * 2 + [True]
    assert not actor_moves(2)
    assert actor_moves(1)


def test_the_actor_climbs_the_mean_where_asked() -> None:
    agents = [make(actor_q=kind, policy_kwargs={"n_critics": 4}) for kind in ("min", "mean")]
    for agent, reduce in zip(agents, (torch.amin, torch.mean), strict=True):
        batch = batch_of(agent)
        actions, log_prob = agent.sample_actions(batch.observations)
        q = agent.critic.values(batch.observations, actions)
        expected = (0.3 * log_prob - reduce(q, 0)).mean()
        loss = agent.update_actor(batch, actions, log_prob, torch.tensor(0.3))
        torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("envs", [1, 2])
def test_standardised_by_what_the_buffer_holds(envs: int) -> None:
    agent = make(standardise=True, envs=envs, rows=60)
    assert agent.reward_scale == 1.0
    stored = agent.replay_buffer.observations.reshape(-1, OBS)
    obs = torch.from_numpy(stored[:5])
    assert torch.equal(agent.actor.features_extractor(obs), obs)
    train(agent, 2)
    extractors = [m for m in agent.policy.modules() if isinstance(m, Standardised)]
    assert len(extractors) == 3
    spread = np.where([True, True, False], stored.std(axis=0), 1.0)
    for extractor in extractors:
        np.testing.assert_allclose(extractor.mean, stored.mean(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(extractor.scale, spread, rtol=1e-5)
        assert extractor(1e6 * torch.ones(1, OBS)).max() == 10.0
    rewards = agent.replay_buffer.rewards
    assert agent.reward_scale == pytest.approx(np.sqrt(np.mean(rewards**2)), rel=1e-5)
    scale = agent.reward_scale
    agent.replay_buffer.add(
        *(np.full((envs, OBS), 1e3),) * 2,
        np.zeros((envs, ACTION)),
        np.full(envs, 1e6),
        np.zeros(envs),
        [{}] * envs,
    )
    train(agent, 1)
    assert agent.reward_scale == scale


def test_standardised_anew_where_the_buffer_has_grown_by_a_quarter() -> None:
    """What later steps reach may lie where the units of the first would cut it off."""
    agent = make(standardise=True, rows=40, buffer_size=100)
    train(agent, 1)
    (scale, before), extractor = (
        (agent.reward_scale, agent.standardised_rows),
        agent.actor.features_extractor,
    )
    far = 50.0 * torch.arange(1.0, 3.0).unsqueeze(1).expand(2, OBS)
    assert torch.equal(*extractor(far)[:, 0])  # both beyond the limit

    def add(rows: int) -> None:
        random = np.random.default_rng(rows)
        for _ in range(rows):
            obs, action = random.normal(75.0, 25.0, (1, OBS)), random.uniform(-1, 1, (1, ACTION))
            agent.replay_buffer.add(obs, obs, action, np.full(1, 1e3), np.zeros(1), [{}])

    add(9)
    train(agent, 1)
    assert agent.standardised_rows == before == 40
    add(1)
    agent.drift = lambda: torch.zeros(())
    train(agent, 1)
    assert agent.standardised_rows == before  # held to what it was in these units
    agent.drift = None
    train(agent, 1)
    assert agent.standardised_rows == 50
    stored = agent.replay_buffer.observations[:50].reshape(-1, OBS)
    for module in (agent.actor, agent.critic, agent.critic_target):
        np.testing.assert_allclose(module.features_extractor.mean, stored.mean(0), rtol=1e-5)
    assert extractor(far)[1, 0] > extractor(far)[0, 0] + 1.0
    assert agent.reward_scale == scale


def test_the_target_is_of_scaled_rewards() -> None:
    agent = make(standardise=True)
    train(agent, 1)
    batch = batch_of(agent)
    torch.manual_seed(0)
    got = agent.target(batch, torch.tensor(0.1))
    torch.manual_seed(0)
    doubled = agent.target(batch._replace(rewards=2.0 * batch.rewards), torch.tensor(0.1))
    torch.testing.assert_close(
        doubled - got, batch.rewards.squeeze(1) / agent.reward_scale, rtol=1e-4, atol=1e-4
    )


def test_rows_of_any_buffer() -> None:
    class Own:
        def standardising_rows(self) -> tuple[Any, Any]:
            return np.ones((4, 2)), np.zeros(4)

    obs, reward = standardising_rows(Own())
    assert obs.shape == (4, 2)
    assert reward.shape == (4,)


class Falling:
    """Two members that step alike: to a tenth of a, on; it pays −|a − ½|², and may end by a chance that a sets."""

    members = 2

    def __call__(self, obs: Tensor, action: Tensor) -> ImaginedStep:
        further = torch.cat([obs[:, :2] + 0.1 * action, obs[:, 2:]], dim=1)
        return ImaginedStep(
            further, -(action - 0.5).square().sum(1), 0.2 * torch.sigmoid(action[:, 0])
        )


@pytest.mark.parametrize("actor_q", ["min", "mean"])
def test_the_actor_looks_ahead_in_a_model(actor_q: str) -> None:
    """The sum of its equation, written out forwards; and its slope in an action by finite differences."""
    agent, alpha = make(actor_q=actor_q, gamma=0.9), torch.tensor(0.3)
    obs = torch.randn(7, OBS, generator=torch.Generator().manual_seed(0))
    taken = torch.rand(7, ACTION, generator=torch.Generator().manual_seed(1)) - 0.5
    model = Falling()

    def ahead(actions: Tensor, steps: int) -> Tensor:
        torch.manual_seed(3)
        agent.look_ahead = None if steps == 0 else lambda: Ahead(model, steps)
        found: Tensor = agent.climbed(obs, actions, alpha)
        return found

    torch.manual_seed(3)
    first = model(obs[:6], taken[:6])
    then, log_prob = agent.sample_actions(first.obs)
    second = model(first.obs, then)
    last, last_log_prob = agent.sample_actions(second.obs)
    q = agent.critic.values(second.obs, last)
    q = q.amin(0) if actor_q == "min" else q.mean(0)
    going = 0.9 * (1.0 - first.ended)
    wanted = first.reward + going * (second.reward - alpha * log_prob)
    wanted = wanted + going * 0.9 * (1.0 - second.ended) * (q - alpha * last_log_prob)
    # Seven rows are no multiple of two members.
    torch.testing.assert_close(ahead(taken, 2), wanted)
    assert len(ahead(taken, 0)) == 7

    taken.requires_grad_()
    (slope,) = torch.autograd.grad(ahead(taken, 2).sum(), taken)
    eps = 1e-2
    for row, column in ((0, 0), (4, 1)):
        moved = torch.zeros_like(taken)
        moved[row, column] = eps
        with torch.no_grad():
            found = (ahead(taken + moved, 2) - ahead(taken - moved, 2)).double().sum() / (2 * eps)
        assert float(found) == pytest.approx(float(slope[row, column]), rel=0.02)


def test_looking_ahead_the_actor_finds_the_best_action_without_critics() -> None:
    """Critics that do not learn say nothing of the actions; the model does: ½ is best."""
    agent = make(gamma=0.0, ent_coef=1e-3, learning_rate=1e-2, standardise=True)
    agent.look_ahead = lambda: Ahead(Falling(), 1)
    train(agent, 150)
    acts, _ = agent.predict(batch_of(agent, 50).observations.numpy(), deterministic=True)
    assert np.abs(acts - 0.5).mean() < 0.1


class Marked(NamedTuple):
    """A batch that says which of its actions are a planner's."""

    observations: Tensor
    actions: Tensor
    next_observations: Tensor
    dones: Tensor
    rewards: Tensor
    discounts: Tensor | None
    planned: Tensor


@pytest.mark.parametrize("planned", [0, 5])
def test_the_pull_towards_planned_actions(planned: int) -> None:
    agent = make(imitation=0.7, ent_coef=0.3, learning_rate=1e-3)
    peer = make(imitation=0.7, ent_coef=0.3, learning_rate=1e-3)
    mask = torch.zeros(32, 1)
    mask[:planned] = 1.0
    batch = Marked(*batch_of(agent), mask)
    torch.manual_seed(1)
    actions, log_prob = agent.sample_actions(batch.observations)
    agent.update_actor(batch, actions, log_prob, agent.ent_coef_tensor)
    torch.manual_seed(1)
    actions, log_prob = peer.sample_actions(batch.observations)
    q = torch.stack(peer.critic(batch.observations, actions)).amin(dim=0).squeeze(1)
    loss = (0.3 * log_prob - q).mean()
    for row in range(planned):
        distance = (actions[row] - batch.actions[row]).square().sum()
        loss = loss + 0.7 * q.detach().std(correction=0) * distance / planned
    peer.actor.optimizer.zero_grad()
    loss.backward()
    peer.actor.optimizer.step()
    for mine, other in zip(agent.actor.parameters(), peer.actor.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    own: dict[str, Any] = {"actor_every": 2, "target_critics": 2, "actor_q": "mean"}
    networks = {"n_critics": 3, "layer_norm": True, "dropout": 0.1}
    agent = make(standardise=True, imitation=0.5, policy_kwargs=networks, **own)
    train(agent, 3)
    agent.save(tmp_path / "agent.zip")
    loaded = FastSAC.load(tmp_path / "agent.zip", env=agent.get_env(), device="cpu")
    obs = agent.replay_buffer.observations[:6, 0]
    for name, value in (
        own | {"imitation": 0.5, "standardised_rows": agent.standardised_rows}
    ).items():
        assert getattr(loaded, name) == value
    assert loaded.reward_scale == agent.reward_scale != 1.0
    np.testing.assert_array_equal(*(a.predict(obs, deterministic=True)[0] for a in (agent, loaded)))
    fresh = make(standardise=True, policy_kwargs=networks, **own)
    fresh.set_parameters(agent.get_parameters())
    np.testing.assert_array_equal(*(a.predict(obs, deterministic=True)[0] for a in (agent, fresh)))
    # It goes on as if nothing had been: moments of Adam, counters and all.
    loaded.replay_buffer = agent.replay_buffer
    loaded.set_logger(configure(None, []))
    for one in (agent, loaded):
        train(one, 3)
    for mine, other in zip(agent.policy.parameters(), loaded.policy.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_held_as_a_part_and_stored_without_pickle(tmp_path: Path) -> None:
    held = pytest.importorskip("agents.learners.held")
    from mbrl_bilevel.base.checkpoint import load_checkpoint, save_checkpoint

    agent, fresh = (make(standardise=True, actor_every=2, seed=seed) for seed in (0, 1))
    train(agent, 3)
    tensors, config = held.algorithm_to_checkpoint(agent)
    path = tmp_path / "agent.safetensors"
    named = {f"held.{name}": value for name, value in tensors.items()}
    save_checkpoint(path, "test", named, {"held": config})
    held.fill_algorithm(load_checkpoint(path, "test"), "held", fresh)
    assert fresh.reward_scale == agent.reward_scale
    assert (fresh._n_updates, fresh.standardised_rows) == (3, agent.standardised_rows)
    fresh.replay_buffer = agent.replay_buffer
    for one in (agent, fresh):
        train(one, 2)
    for mine, other in zip(agent.policy.parameters(), fresh.policy.parameters(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("moment", ["exp_avg", "exp_avg_sq"])
def test_moments_of_another_shape_stop_the_fused_step(moment: str) -> None:
    parameter = nn.Parameter(torch.zeros(3, 4))
    adam = DirectAdam([parameter])
    adam.step_along([torch.ones(3, 4)])
    adam.state[parameter][moment] = torch.zeros(1)
    with pytest.raises(AssertionError):
        adam.step_along([torch.ones(3, 4)])


def test_an_old_contrib_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sb3_contrib", ModuleType("sb3_contrib"))
    with pytest.raises(InvalidInputError, match=r"^CrossQ is not in .* --upgrade sb3-contrib$"):
        learner_class("crossq")


def test_same_seed_same_result() -> None:
    found = []
    for _ in range(2):
        agent = FastSAC(
            env=gym.make("Pendulum-v1"),
            seed=3,
            device="cpu",
            learning_starts=100,
            batch_size=32,
            policy_kwargs={"net_arch": [32, 32]},
        )
        agent.learn(300)
        found.append(agent.predict(np.array([0.6, 0.8, 1.0], np.float32), deterministic=True)[0])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {
            "standardise": True,
            "actor_every": 2,
            "actor_q": "mean",
            "target_critics": 2,
            "policy_kwargs": {"layer_norm": True, "n_critics": 3},
        },
    ],
)
def test_it_finds_the_best_action(kwargs: dict[str, Any]) -> None:
    networks = {"net_arch": [32, 32], **kwargs.pop("policy_kwargs", {})}
    agent = FastSAC(
        env=Spaces(),
        seed=0,
        device="cpu",
        learning_rate=3e-3,
        batch_size=64,
        ent_coef=0.01,
        policy_kwargs=networks,
        **kwargs,
    )
    agent.learn(600)
    obs = np.random.default_rng(0).standard_normal((50, OBS)).astype(np.float32)
    actions, _ = agent.predict(obs, deterministic=True)
    assert np.abs(actions - 0.5).mean() < 0.15


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"actor_every": 0}, "actor_every must be an int from 1"),
        ({"target_critics": 3}, "target_critics must be at most n_critics, here 2; got 3"),
        ({"target_critics": 0}, "target_critics must be"),
        ({"actor_q": "max"}, "actor_q must be 'min' or 'mean'; got 'max'"),
        ({"standardise": 1}, "standardise must be True or False; got 1"),
        ({"imitation": -1.0}, "imitation must be"),
        ({"imitation": float("nan")}, "imitation must be"),
        ({"policy_kwargs": {"dropout": 1.0}}, "dropout must be"),
        ({"policy_kwargs": {"layer_norm": 1}}, "layer_norm must be"),
        ({"policy_kwargs": {"n_critics": 0}}, "n_critics must be"),
    ],
)
def test_values_out_of_range(kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        FastSAC(env=Spaces(), **kwargs)


def test_another_policy_is_refused() -> None:
    from stable_baselines3.sac.policies import SACPolicy

    with pytest.raises(InvalidInputError, match="policy must be a FastSACPolicy"):
        FastSAC(SACPolicy, Spaces())
