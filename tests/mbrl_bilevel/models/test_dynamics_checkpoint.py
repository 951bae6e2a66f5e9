"""A dynamics model through a file and back, and every way in which a file can fail to fit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mbrl_bilevel.base.checkpoint import load_checkpoint, save_checkpoint
from mbrl_bilevel.base.errors import CheckpointError
from mbrl_bilevel.base.records import Rule, Transitions
from mbrl_bilevel.inner.losses import PolicyGradient
from mbrl_bilevel.inner.rewards import RBF, Mahalanobis, NeuralReward, RewardMatrix
from mbrl_bilevel.models.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.models.dynamics_checkpoint import (
    load_model,
    load_parameters,
    model_from_checkpoint,
    model_to_checkpoint,
    save_model,
    save_parameters,
)
from mbrl_bilevel.models.learned_ending import LearnedTermination
from mbrl_bilevel.policies.policies import (
    CategoricalPolicy,
    FullGaussianPolicy,
    GaussianPolicy,
    MixturePolicy,
)
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule

Config = dict[str, Any]


def experience() -> Transitions:
    """40 episodes of 5 steps, every other one terminated; the second observation never changes."""
    g = np.random.default_rng(0)
    obs = g.normal(size=(200, 2)).astype(np.float32)
    obs[:, 1] = 0.5
    after = obs + g.normal(size=(200, 2)).astype(np.float32)
    after[:, 1] = 0.5
    episode, t = np.arange(200) // 5, np.arange(200) % 5
    return Transitions(
        obs,
        g.normal(size=(200, 1)).astype(np.float32),
        g.normal(size=200).astype(np.float32),
        after,
        (t == 4) & (episode % 2 == 0),
        np.zeros(200, dtype=np.bool_),
        episode,
        t,
    )


@cache
def fitted(
    method: str = "bilevel-constant", termination: Rule | None = None, reward: Rule | None = None
) -> DynamicsModel:
    model, _ = fit_dynamics(
        experience(),
        METHODS[method],
        generator=torch.Generator().manual_seed(0),
        members=2,
        hidden=(6, 4),
        schedule=Schedule(steps=60, batch_size=16, evaluate_every=20),
        termination=termination,
        reward=reward,
    )
    return model


def ends(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return next_obs[..., 0] > 0.3


def pays(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return next_obs[..., 0] - action[..., 0]


def through_a_file(
    model: DynamicsModel,
    folder: Path,
    termination: Rule | None = None,
    reward: Rule | None = None,
    damage: Callable[[dict[str, Tensor], Config], object] = lambda tensors, config: None,
) -> DynamicsModel:
    tensors, config = model_to_checkpoint(model)
    damage(tensors, config)
    path = folder / "model.safetensors"
    stored = {f"model.{name}": value for name, value in tensors.items()}
    save_checkpoint(path, "test", stored, {"model": config})
    return model_from_checkpoint(load_checkpoint(path, "test"), "model", termination, reward)


def same(first: DynamicsModel, second: DynamicsModel) -> bool:
    """Whether they answer bit for bit alike, noise, constants, jump and termination included."""
    g = torch.Generator().manual_seed(1)
    obs, action = torch.randn(2, 9, 2, generator=g), torch.randn(2, 9, 1, generator=g)
    noise = torch.randn(2, 9, int(first.active.sum()), generator=g)
    one, two = first.step(obs, action, noise), second.step(obs, action, noise)
    return all(torch.equal(v, vars(two)[name]) for name, v in vars(one).items())


@pytest.mark.parametrize("method", METHODS)
def test_comes_back_bit_for_bit(method: str, tmp_path: Path) -> None:
    model = fitted(method)
    assert isinstance(model.termination, LearnedTermination)
    assert model.terminal_jump != 0.0
    assert model.active.tolist() == [True, False, True]
    back = through_a_file(model, tmp_path)
    assert same(model, back)
    assert isinstance(back.termination, LearnedTermination)
    assert back.policy.scale == model.policy.scale
    assert back.policy.hidden == (6, 4)


@pytest.mark.parametrize(
    "rules",
    [{"termination": ends}, {"reward": pays}, {"termination": ends, "reward": pays}],
    ids=lambda rules: "+".join(rules),
)
def test_rules_are_given_again(rules: dict[str, Rule], tmp_path: Path) -> None:
    model = fitted(**rules)
    assert same(model, through_a_file(model, tmp_path, **rules))


def test_a_known_termination_takes_the_place_of_a_learned_one(tmp_path: Path) -> None:
    back = through_a_file(fitted(), tmp_path, termination=ends)
    assert back.termination is ends


def test_a_reward_rule_must_fit_what_the_model_learned(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="learned the reward; load it without"):
        through_a_file(fitted(), tmp_path, reward=pays)
    with pytest.raises(CheckpointError, match="trained with a known reward; pass reward="):
        through_a_file(fitted(reward=pays), tmp_path)


def dropped(name: str) -> Callable[[dict[str, Tensor], Config], object]:
    return lambda tensors, config: tensors.pop(name)


def changed(name: str, value: Any) -> Callable[[dict[str, Tensor], Config], object]:
    return lambda tensors, config: config.update({name: value})


def replaced(name: str, value: Tensor) -> Callable[[dict[str, Tensor], Config], object]:
    return lambda tensors, config: tensors.update({name: value})


@pytest.mark.parametrize(
    "damage",
    [
        dropped("policy.network.layers.0.weight"),
        dropped("inputs.shift"),
        dropped("targets.constant"),
        dropped("termination.inputs.scale"),
        dropped("termination.policy.network.layers.0.bias"),
        replaced("policy.network.layers.0.bias", torch.zeros(2, 1, 7)),
        replaced("policy.network.layers.0.bias", torch.zeros(2, 1, 6, dtype=torch.float64)),
        replaced("inputs.shift", torch.zeros(4)),
        replaced("inputs.scale", torch.zeros(3, dtype=torch.float64)),
        replaced("targets.constant", torch.zeros(3, dtype=torch.bool)),
        replaced("targets.constant", torch.zeros(3)),
        changed("members", 3),
        changed("members", "two"),
        changed("hidden", 6),
        changed("hidden", [6, "4"]),
        changed("scale", "wide"),
        changed("log_std_bounds", [1.0, 2.0]),
        changed("log_std_bounds", [1.0]),
        changed("obs_dim", 1),
        changed("obs_dim", None),
        changed("obs_dim", 17),
        changed("terminal_jump", "big"),
        changed("terminal_jump", None),
        changed("inputs", -1),
        changed("learned_termination", {"inputs": 5}),
        changed("learned_termination", 5),
        lambda tensors, config: config.clear(),
    ],
)
def test_damage_is_told(
    damage: Callable[[dict[str, Tensor], Config], object], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ") as error:
        through_a_file(fitted(), tmp_path, damage=damage)
    assert "\n" not in str(error.value)


def test_a_model_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = tmp_path / "empty"
    save_checkpoint(path, "test", {}, {"model": None})
    with pytest.raises(CheckpointError, match="expected dict"):
        model_from_checkpoint(load_checkpoint(path, "test"), "model", None, None)
    with pytest.raises(CheckpointError, match="no 'other'"):
        model_from_checkpoint(load_checkpoint(path, "test"), "other", None, None)


@pytest.mark.parametrize("method", ["bilevel", "nll"])
def test_a_model_in_a_file_predicts_bit_for_bit_the_same(method: str, tmp_path: Path) -> None:
    model, path = fitted(method), tmp_path / "model.safetensors"
    save_model(path, model)
    again = load_model(path)
    generator = torch.Generator().manual_seed(0)
    obs, action = torch.randn(7, 2, generator=generator), torch.randn(7, 1, generator=generator)
    for name, value in vars(model.predict(obs, action)).items():
        assert torch.equal(value, getattr(again.predict(obs, action), name))


def test_a_model_asks_for_its_rules_again(tmp_path: Path) -> None:
    def rule(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return next_obs[..., 0] > 3.0

    path = tmp_path / "model.safetensors"
    save_model(path, fitted(termination=rule))
    with pytest.raises(CheckpointError, match="termination="):
        load_model(path)
    assert load_model(path, termination=rule).termination is rule


def _modules(seed: int) -> list[torch.nn.Module]:
    g = torch.Generator().manual_seed(seed)
    return [
        GaussianPolicy(3, 2, generator=g, members=2, hidden=(4,)),
        GaussianPolicy(3, 2, generator=g, members=2, hidden=(4,), scale="network"),
        GaussianPolicy(3, 2, generator=g, members=2, hidden=(4,), scale="tempered"),
        FullGaussianPolicy(3, 2, generator=g, members=2, hidden=(4,)),
        MixturePolicy(3, 2, generator=g, members=2, hidden=(4,), components=3),
        CategoricalPolicy(3, 4, generator=g, members=2, hidden=(4,)),
        Mahalanobis(2, "full", 1.0 + seed),
        RBF(2, "diagonal", 1.0 + seed),
        RewardMatrix(torch.randn(3, 3, generator=g)),
        NeuralReward(2, 3, generator=g, hidden=(4,)),
        PolicyGradient(Mahalanobis(2, "diagonal", 1.0 + seed)),
    ]


@pytest.mark.parametrize("i", range(11))
def test_parameters_of_policies_rewards_and_losses_come_back(i: int, tmp_path: Path) -> None:
    module, other = _modules(0)[i], _modules(1)[i]
    save_parameters(tmp_path / "p.safetensors", module)
    load_parameters(tmp_path / "p.safetensors", other)
    state = module.state_dict()
    assert state
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())


def test_parameters_of_another_object_are_refused_and_change_nothing(tmp_path: Path) -> None:
    g, path = torch.Generator().manual_seed(0), tmp_path / "p.safetensors"
    save_parameters(path, GaussianPolicy(3, 2, generator=g, members=2, hidden=(4,)))
    for other, told in (
        (CategoricalPolicy(3, 2, generator=g), "GaussianPolicy"),
        (GaussianPolicy(3, 2, generator=g, members=2, hidden=(5,)), "hidden is"),
        (GaussianPolicy(3, 2, generator=g, members=2, hidden=()), "which this"),
        (
            GaussianPolicy(3, 2, generator=g, members=2, hidden=(4,), log_std_bounds=(-5.0, 3.0)),
            r"its log_std_bounds is \[-10.0, 3.0\], that of this GaussianPolicy \[-5.0, 3.0\]",
        ),
    ):
        before = {name: value.clone() for name, value in other.state_dict().items()}
        with pytest.raises(CheckpointError, match=told):
            load_parameters(path, other)
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())
