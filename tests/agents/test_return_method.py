"""An agent whose model's reward is inferred for returns: its own critic says what the last state is worth."""

from __future__ import annotations

from typing import Any

import pytest

import agents.planning_agent.refits as refits
from agents.planning_agent.agent import PlanningAgent
from agents.planning_agent.settings import PlanningSettings
from envs.tasks.make import make_env
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.outer.objectives import OpenLoopReturn
from mbrl_bilevel.training.settings import Schedule


def test_the_critic_values_the_last_state_once_it_has_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    objectives = []
    fit = refits.fit_dynamics

    def watched(experience: Any, method: Any, **more: Any) -> Any:
        objectives.append(method.outer.objective)
        return fit(experience, method, **more)

    monkeypatch.setattr(refits, "fit_dynamics", watched)
    settings = PlanningSettings(
        method="bilevel-look-ahead",
        members=2,
        hidden=(8,),
        schedule=Schedule(steps=260, batch_size=32),
        learning_starts=220,
        refit_every=30,
        imagination=Imagination(2),
        updates_per_step=1,
        real_share=0.5,
        rollouts_per_step=2,
    )
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}}
    agent = PlanningAgent(make_env("Pendulum-v1"), settings, algorithm_kwargs=kwargs)
    agent.learn(255)
    assert objectives[0] == OpenLoopReturn()
    assert objectives[-1] == OpenLoopReturn(agent.held.discount, agent.held.worth)
    assert agent.last_fit is not None
    assert {
        "weight/0",
        "weight/3",
    } <= agent.last_fit.outer.keys()  # three of the state, and the reward
