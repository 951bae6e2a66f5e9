"""What a method lets go, the whole agent lets go: policy, critics, a fitted value, and what is said of the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import SAC
from torch import Tensor

import agents.planning_agent.refits as refits
from agents.common.experience import RandomBehaviour, collect
from agents.learners.critics import Standardised
from agents.planning_agent.agent import PlanningAgent
from agents.planning_agent.health import of_the_model
from agents.planning_agent.imagined_rows import disagreement
from agents.planning_agent.settings import PlanningSettings, ValueSettings
from agents.planning_agent.terminal_value import fit_value
from envs.tasks.make import make_env
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.data.splits import FitData
from mbrl_bilevel.imagination.branches import uncertainty
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.training.methods import METHODS
from mbrl_bilevel.training.settings import Schedule

SETTINGS = PlanningSettings(
    method="bilevel-return",
    members=2,
    hidden=(8,),
    schedule=Schedule(steps=60, batch_size=32),
    learning_starts=60,
    refit_every=40,
    imagination=Imagination(2),
    look_ahead=1,
    updates_per_step=1,
)
LAST_TWO = torch.tensor([False, False, False, True, True])


def env() -> Any:
    return make_env("Pendulum-v1", distractor="noise:2")


def letting_go(monkeypatch: pytest.MonkeyPatch, dims: list[list[int]]) -> None:
    """The n-th fit lets go ``dims[n]``, the later ones those of the last."""
    left = list(dims)

    def told(data: FitData) -> Tensor:
        gone = left.pop(0) if len(left) > 1 else left[0]
        weights = torch.ones(data.y.shape[1])
        weights[gone] = 0.02
        return weights

    method = replace(METHODS["bilevel-return"], relevance=told)
    monkeypatch.setattr(refits, "get_method", lambda _: method)


def made(**more: Any) -> PlanningAgent:
    kwargs = {"policy_kwargs": {"net_arch": [8]}, "standardise": True}
    return PlanningAgent(env(), SETTINGS, algorithm_kwargs=kwargs, seed=0, **more)


def units(agent: PlanningAgent) -> list[Standardised]:
    return [m for m in agent.algorithm.policy.modules() if isinstance(m, Standardised)]


def said(agent: PlanningAgent, obs: Tensor) -> list[Tensor]:
    stored = torch.zeros(len(obs), 1)
    return [agent.held.act(obs), agent.held.value(obs), agent.held.action_value(obs, stored)]


def test_policy_and_critics_see_what_the_model_sees(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    letting_go(monkeypatch, [[3, 4]])
    agent = made().learn(90)
    assert isinstance(agent.model, DynamicsModel)
    assert torch.equal(agent.model.seen, ~LAST_TWO)
    assert torch.equal(agent.model.frozen().meant, torch.tensor([True] * 3 + [False] * 2 + [True]))
    obs = torch.from_numpy(agent.experience.newest(20)[0].obs)
    elsewhere = obs + 5.0 * LAST_TWO
    before = said(agent, obs)
    for one, other in zip(before, said(agent, elsewhere), strict=True):
        assert torch.equal(one, other)
    assert all(torch.equal(unit.hidden, LAST_TWO) for unit in units(agent))
    agent.save(tmp_path / "agent.safetensors")
    loaded = PlanningAgent.load(tmp_path / "agent.safetensors", env())
    for one, other in zip(before, said(loaded, elsewhere), strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(agent.held.value(obs), agent.held.value(obs + 0.1))


def test_what_is_seen_again_is_in_units_of_what_came_since(monkeypatch: pytest.MonkeyPatch) -> None:
    letting_go(monkeypatch, [[3, 4], [4]])
    agent = made().learn(60)
    (unit, *_), first = units(agent), agent.experience.transitions().obs
    assert torch.equal(unit.hidden, LAST_TWO)
    kept = unit.mean.clone(), unit.scale.clone()
    agent.learn(40)  # one fit, and rows enough for new units: the second fit's came before
    agent.refit()
    assert unit.hidden.tolist() == [False] * 4 + [True]
    stored = agent.experience.transitions().obs
    assert len(stored) > len(first)
    np.testing.assert_allclose(unit.mean[3], stored.mean(0)[3], atol=0.05)
    np.testing.assert_allclose(unit.scale[3], stored.std(0)[3], rtol=0.1)
    assert not torch.equal(unit.scale[:3], kept[1][:3])  # the rest went on being standardised


def test_a_learner_of_another_kind_sees_all(monkeypatch: pytest.MonkeyPatch) -> None:
    letting_go(monkeypatch, [[3, 4]])
    settings = replace(SETTINGS, look_ahead=0)
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}}
    agent = PlanningAgent(env(), settings, algorithm=SAC, algorithm_kwargs=kwargs, seed=0).learn(70)
    obs = torch.from_numpy(agent.experience.newest(5)[0].obs)
    assert not torch.equal(agent.held.value(obs), agent.held.value(obs + 5.0 * LAST_TWO))


def test_the_learner_refuses_what_it_cannot_hide() -> None:
    agent = made()
    with pytest.raises(InvalidInputError, match=r"hidden must be bool \(5,\)"):
        agent.algorithm.hide(torch.zeros(4, dtype=torch.bool))  # type: ignore[attr-defined]
    with pytest.raises(InvalidInputError, match="has rows in its replay"):
        agent.algorithm.hide(LAST_TWO)  # type: ignore[attr-defined]


def test_what_is_let_go_counts_in_no_doubt_about_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    letting_go(monkeypatch, [[3, 4]])
    agent = made().learn(60)
    agent.refit()
    model, since = agent.model, agent.experience.newest(40)[0]
    assert isinstance(model, DynamicsModel)
    rows = torch.from_numpy(since.obs), torch.from_numpy(since.action)

    def doubts() -> list[float]:
        health = of_the_model(model, since)
        found = [health["health/model_rmse"], health["health/model_coverage"]]
        found += disagreement(model, *rows).tolist() + uncertainty(model, *rows, "spread").tolist()
        return found + uncertainty(model, *rows, "disagreement").tolist()

    before = doubts()
    bias = model.policy.network.last.bias
    with torch.no_grad():
        bias[..., 3:5] += torch.arange(2.0).reshape(2, *[1] * (bias.ndim - 1)) * 100.0
    assert doubts() == before
    with torch.no_grad():
        bias[..., 0] += 100.0
    assert doubts()[0] > 10.0 * before[0]


def test_a_fitted_value_does_not_see_it_either() -> None:
    hopper = make_env("Hopper-v5")
    behave = RandomBehaviour(hopper.action_space, np.random.default_rng(0))
    rows = collect(hopper, behave, 300, seed=0)
    settings = ValueSettings(members=2, width=8, steps=50, rounds=1)
    seen = torch.arange(rows.obs.shape[1]) != 2
    value = fit_value(rows, settings, torch.Generator().manual_seed(0), seen)
    obs = torch.from_numpy(rows.obs[:30])
    assert torch.equal(value(obs), value(obs + 3.0 * ~seen))
    assert not torch.equal(value(obs), value(obs + 0.3 * seen))
