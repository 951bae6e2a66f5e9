"""The example of a planner of one's own: it climbs, an agent plans by it, and its file comes back."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from agents import MPC, Planner, register_planner
from agents.planners import PLANNERS
from agents.planners.actions import BoxActions
from envs import make_env
from mbrl_bilevel import Imagination, Schedule
from mbrl_bilevel.base.errors import InvalidInputError

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "examples"))

# A model of ten gradient steps is a poor one, and told so.
pytestmark = pytest.mark.filterwarnings("ignore:after .* steps the model is off")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    before = dict(PLANNERS)
    yield
    PLANNERS.clear()
    PLANNERS.update(before)


def test_it_climbs_and_an_agent_keeps_it(tmp_path: Path) -> None:
    import my_planner

    PLANNERS["climber"] = my_planner.Climber
    target = torch.tensor([0.5, -0.4, 0.0, 0.7])[:, None, None, None]
    planner = my_planner.Climber(horizon=3, population=100, rounds=12, step=0.1)
    generator = torch.Generator().manual_seed(0)
    state = planner.initial_state(4, BoxActions([-1.0], [1.0]))
    action, after, _ = planner.plan(
        lambda plans: -(plans - target).square().sum((-1, -2)), state, generator
    )
    assert (action - target[:, 0, 0]).abs().max() < 0.1
    assert after.mean.shape == (4, 3, 1)
    env = make_env("InvertedPendulum-v5")
    small = my_planner.Climber(horizon=3, population=4, rounds=2)
    schedule = Schedule(steps=10, batch_size=16, evaluate_every=5)
    agent = MPC(
        env,
        planner=small,
        members=2,
        hidden=(8,),
        schedule=schedule,
        learning_starts=60,
        refit_every=70,
        value=None,
        imagination=Imagination(particles=2),
        seed=0,
    ).learn(70)
    agent.save(tmp_path / "agent.safetensors")
    again = MPC.load(tmp_path / "agent.safetensors", env)
    assert again.settings.planner == small
    observation, _ = env.reset(seed=0)
    first, second = (a.predict(observation, deterministic=True)[0] for a in (agent, again))
    assert first == pytest.approx(second)
    env.close()


def test_what_is_missing_is_named() -> None:
    class Half(Planner):
        pass

    with pytest.raises(InvalidInputError, match=r"Half has no search\(score, state, generator"):
        register_planner("half", Half)  # type: ignore[type-abstract]
    with pytest.raises(InvalidInputError, match="extends Planner"):
        register_planner("none", dict)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="there is a planner 'icem'"):
        register_planner("icem", PLANNERS["icem"])
