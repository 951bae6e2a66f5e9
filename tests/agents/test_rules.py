"""What an environment knows of its ending and its reward, an agent asks for, through wrappers; what is learned
and what is given by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import RecordEpisodeStatistics, TransformAction, TransformReward
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecCheckNan,
    VecFrameStack,
    VecNormalize,
)
from torch import Tensor

from agents import ICEM, MBPO, MPC
from agents.common.rules import chosen_rules, rules_told_by
from agents.common.spaces import vector_env
from agents.planning_agent.checkpoint import read_for_planning
from envs import make_env
from mbrl_bilevel import Imagination, Schedule
from mbrl_bilevel.base.checkpoint import load_checkpoint, save_checkpoint
from mbrl_bilevel.base.errors import CheckpointError, InvalidInputError
from mbrl_bilevel.base.known_rules import KnownRules

TINY: dict[str, Any] = {
    "method": "mse",
    "members": 2,
    "hidden": (8,),
    "schedule": Schedule(steps=10),
    "planner": ICEM(horizon=2, population=8, iterations=1),
    "imagination": Imagination(particles=2),
    "learning_starts": 50,
    "value": None,
}
TASK = "InvertedPendulum-v5"  # its ending and its reward are both known


def upright() -> tuple[Tensor, Tensor, Tensor]:
    """(obs, action, next_obs) of three steps of the pendulum: two that stay up, one that falls."""
    angles = torch.tensor([0.0, 0.1, 0.3])
    obs = torch.stack([torch.zeros(3), angles, torch.zeros(3), torch.zeros(3)], dim=1)
    return obs, torch.zeros(3, 1), obs


def always(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return torch.ones(next_obs.shape[:-1], dtype=torch.bool)


def ten(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return torch.full(next_obs.shape[:-1], 10.0)


def test_a_known_ending_is_used_by_itself_and_a_known_reward_when_asked_for() -> None:
    agent = MPC(make_env(TASK), **TINY)
    assert agent.termination is not None
    assert agent.termination(*upright()).tolist() == [False, False, True]
    assert agent.reward is None
    assert agent.rules.from_env == {"termination": "known"}
    for choice in ("known", "approximate"):
        both = MPC(make_env(TASK), reward=choice, **TINY)  # type: ignore[arg-type]
        assert both.reward is not None
        assert both.reward(*upright()).tolist() == [1.0, 1.0, 0.0]
        assert both.rules.from_env == {"termination": "known", "reward": choice}
    for choice in (None, "learned"):
        assert MPC(make_env(TASK), reward=choice, **TINY).reward is None  # type: ignore[arg-type]


def test_what_is_given_by_hand_wins_and_a_known_ending_can_be_refused() -> None:
    agent = MPC(make_env(TASK), termination=always, reward=ten, **TINY)
    assert agent.termination is always
    assert agent.reward is ten
    assert agent.rules.from_env == {}
    refused = MPC(make_env(TASK), termination="learned", **TINY)
    assert refused.termination is None
    assert refused.rules.from_env == {}


def test_the_model_goes_by_what_is_known() -> None:
    agent = MPC(make_env(TASK), reward="known", **TINY).learn(60)
    assert agent.model is not None
    assert agent.model.termination is agent.termination
    assert agent.model.reward is agent.reward
    learned = MPC(make_env(TASK), termination="learned", **TINY).learn(60)
    assert learned.model is not None
    assert type(learned.model.termination).__name__ == "LearnedTermination"
    assert learned.model.reward is None


def hasty(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return TransformReward(env, lambda reward: 2.0 * float(reward))


def halved(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    return TransformAction(env, lambda action: action / 2, env.action_space)


WRAPPED: list[tuple[Any, bool, bool]] = [
    # (how the environment is wrapped, whether its ending is known then, whether its reward is)
    (lambda: make_env(TASK), True, True),
    (lambda: Monitor(RecordEpisodeStatistics(make_env(TASK))), True, True),
    (lambda: DummyVecEnv([lambda: make_env(TASK)]), True, True),
    (lambda: VecNormalize(VecCheckNan(DummyVecEnv([lambda: make_env(TASK)]))), True, True),
    (lambda: DummyVecEnv([lambda: make_env(TASK)] * 3), True, True),
    # A reward or an action wrapper leaves the observation, and so the ending, as it is.
    (lambda: hasty(make_env(TASK)), True, False),
    (lambda: VecNormalize(DummyVecEnv([lambda: halved(make_env(TASK))])), True, False),
    (lambda: DummyVecEnv([lambda: make_env(TASK), lambda: hasty(make_env(TASK))]), True, False),
    (lambda: VecFrameStack(DummyVecEnv([lambda: make_env(TASK)]), 2), False, False),
    # Two tasks side by side may end otherwise; a bare environment says nothing.
    (lambda: DummyVecEnv([lambda: make_env(TASK), lambda: make_env(TASK, reset_noise_scale=0.1)]), False, False),
    (lambda: gym.make(TASK), False, False),
    (lambda: make_vec_env(TASK, 2), False, False),
    (lambda: make_env("Pendulum-v1"), False, False),
]  # fmt: skip


@pytest.mark.parametrize(("make", "ending", "reward"), WRAPPED)
def test_it_is_asked_for_through_wrappers(make: Any, ending: bool, reward: bool) -> None:
    env = vector_env(make())
    found = rules_told_by(env)
    assert (found.termination is not None) is ending
    assert (found.reward is not None) is reward
    assert (found.approximate_reward is not None) is reward
    assert (chosen_rules(env, None, None).termination is not None) is ending
    if not reward:
        with pytest.raises(InvalidInputError, match=r'^reward="known": the environment does not'):
            chosen_rules(env, None, "known")
    if not ending:
        with pytest.raises(InvalidInputError, match=r'^termination="known": the environment does'):
            chosen_rules(env, "known", None)
    env.close()


def test_a_reward_that_is_known_nearly() -> None:
    env = vector_env(make_env("Hopper-v5"))
    with pytest.raises(InvalidInputError, match='reward="approximate" is near to it'):
        chosen_rules(env, None, "known")
    rules = chosen_rules(env, None, "approximate")
    assert rules.from_env == {"termination": "known", "reward": "approximate"}
    obs = torch.zeros(1, 11)
    obs[0, 0], obs[0, 5] = 1.25, 2.0  # upright, at 2 m/s
    assert rules.reward is not None
    # Gymnasium: forward velocity + healthy reward − 0.001 |action|².
    assert rules.reward(obs, torch.ones(1, 3), obs).tolist() == pytest.approx([2.0 + 1.0 - 0.003])


def test_an_environment_of_the_users_own_can_know_its_rules() -> None:
    class Mine(gym.Wrapper[Any, Any, Any, Any]):
        def known_rules(self, env: gym.Env[Any, Any]) -> KnownRules:
            assert isinstance(env, Monitor)  # the outermost
            return KnownRules(termination=always)

    agent = MPC(Mine(gym.make("Pendulum-v1")), **TINY)
    assert agent.termination is always

    class Wrong(gym.Wrapper[Any, Any, Any, Any]):
        def known_rules(self, env: gym.Env[Any, Any]) -> int:
            return 3

    with pytest.raises(InvalidInputError, match="known_rules must be KnownRules; got 3"):
        MPC(Wrong(gym.make("Pendulum-v1")), **TINY)


def test_a_file_asks_the_environment_again(tmp_path: Path) -> None:
    path = tmp_path / "agent.safetensors"
    agent = MPC(make_env(TASK), reward="known", **TINY).learn(60)
    agent.save(path)
    back = MPC.load(path, make_env(TASK))
    assert back.rules.from_env == {"termination": "known", "reward": "known"}
    assert back.model is not None
    assert back.model.reward is back.reward
    obs = np.array([0.0, 0.05, 0.0, 0.1])
    same = [a.predict(obs, deterministic=True)[0] for a in (agent, back)]
    assert np.array_equal(*same)
    model, _, _ = read_for_planning(path, vector_env(make_env(TASK)), termination=None, reward=None)
    assert model is not None
    assert model.reward is not None
    with pytest.raises(CheckpointError, match='reward="known": the environment does not know'):
        MPC.load(path, hasty(make_env(TASK)))
    with pytest.raises(CheckpointError, match='termination="known": the environment does not'):
        MPC.load(path, gym.make(TASK))
    by_hand = MPC.load(path, gym.make(TASK), termination=always, reward=ten)
    assert by_hand.model is not None
    assert by_hand.model.termination is always
    assert by_hand.rules.from_env == {}
    with pytest.raises(CheckpointError, match="trained with a known termination; pass"):
        MPC.load(path, make_env(TASK), termination="learned")


def test_a_file_of_rules_given_by_hand_asks_for_them(tmp_path: Path) -> None:
    path = tmp_path / "agent.safetensors"
    MPC(make_env(TASK), termination=always, **TINY).save(path)
    with pytest.raises(CheckpointError, match=r'pass termination= to load\(\), "known" for'):
        MPC.load(path, make_env(TASK))
    assert MPC.load(path, make_env(TASK), termination=always).termination is always
    own = MPC.load(path, make_env(TASK), termination="known").termination
    assert own is not None
    assert own(*upright()).tolist() == [False, False, True]


def test_a_file_of_a_learned_ending_goes_on_learning_it(tmp_path: Path) -> None:
    path = tmp_path / "agent.safetensors"
    MPC(make_env(TASK), termination="learned", **TINY).learn(60).save(path)
    back = MPC.load(path, make_env(TASK))
    assert back.termination is None
    assert back.model is not None
    assert type(back.model.termination).__name__ == "LearnedTermination"


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (3, "its rules_from_env are damaged"),
        ({"termination": 5}, "termination must be a function of .* got 5"),
        (
            {"termination": "near"},
            "termination must be .*None or one of 'known', 'learned'; got 'near'",
        ),
        ({"termination": "learned"}, "trained with a known termination; pass termination="),
        ({"termination": "known", "reward": "known"}, "its model learned the reward"),
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, damage: Any, what: str) -> None:
    path = tmp_path / "agent.safetensors"
    MPC(make_env(TASK), **TINY).learn(60).save(path)
    found = load_checkpoint(path, "planning agent")
    config = {**found.config, "rules_from_env": damage}
    save_checkpoint(path, found.kind, found.tensors, config)
    with pytest.raises(CheckpointError, match=what):
        MPC.load(path, make_env(TASK))


def test_another_environment_is_asked_for_its_own_rules() -> None:
    kinds = [make_env(TASK), make_env(TASK), gym.make(TASK), hasty(make_env(TASK))]
    agent = MPC(kinds[0], reward="known", **TINY).learn(60)
    before = agent.termination
    agent.set_env(kinds[1])
    assert agent.get_env().envs[0].unwrapped is kinds[1].unwrapped  # type: ignore[attr-defined]
    assert agent.termination is not before
    assert agent.model is not None
    assert agent.model.termination is agent.termination
    assert agent.model.reward is agent.reward
    agent.learn(5)
    assert agent.num_timesteps == 65
    with pytest.raises(InvalidInputError, match='termination="known": the environment does not'):
        agent.set_env(kinds[2])
    with pytest.raises(InvalidInputError, match='reward="known": the environment does not know'):
        agent.set_env(kinds[3])
    with pytest.raises(InvalidInputError, match=r"its observation_space must be .* as before"):
        agent.set_env(make_env("Pendulum-v1"))
    with pytest.raises(InvalidInputError, match="its num_envs must be 1, as before; got 2"):
        agent.set_env(DummyVecEnv([lambda: make_env(TASK)] * 2))
    assert agent.get_env().envs[0].unwrapped is kinds[1].unwrapped  # type: ignore[attr-defined]


def test_the_policy_sees_another_environment_through_its_own_normalisation() -> None:
    def normalised() -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: make_env(TASK)]))

    kwargs = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 8}
    first, second = normalised(), normalised()
    agent = MBPO(first, algorithm_kwargs=kwargs, learning_starts=10, real_share=1.0).learn(20)
    seen = float(first.obs_rms.count)
    agent.set_env(second)
    assert agent.get_vec_normalize_env() is second
    agent.learn(20)
    assert float(first.obs_rms.count) == seen
    assert float(second.obs_rms.count) > 20
    obs = torch.tensor([[0.0, 0.05, 0.0, 0.0]])
    before = agent.held.act(obs)
    second.obs_rms.mean = second.obs_rms.mean + 5.0
    assert not torch.allclose(agent.held.act(obs), before)
