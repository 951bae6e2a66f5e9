"""Agents side by side become what they become alone: their fits, updates, draws and files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor

from agents import PlanningAgent, PlanningSettings, learn_side_by_side, side_by_side
from agents.learners.sac_update import parameters_of
from agents.planners import MPPI
from mbrl_bilevel.base.errors import BilevelError, DivergedError, InvalidInputError
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.training.settings import Schedule
from tests.agents.test_planning_agent import fingerprint

Array = npt.NDArray[Any]

pytestmark = pytest.mark.filterwarnings("ignore:after .* steps the model is off")

SEEDS = (3, 4, 5)
FIRST, STEPS = 60, 72
#: What batched products may round otherwise, after so many updates of Adam.
CLOSE: dict[str, Any] = {"rtol": 5e-3, "atol": 1e-3}


class Field(gym.Env[Array, Array]):
    """x' = x + 0.3 u + noise in the plane; pays −|x'|², ends beyond 1.5. Its third observation never changes, unless it
    ``moves``."""

    def __init__(self, breaks: int = -1, moves: bool = False) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gym.spaces.Box(-2.0, 1.0, (2,), np.float32)
        self.breaks, self.moves = breaks, moves
        self.steps, self.t, self.x = 0, 0, np.zeros(2)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.t, self.x = 0, self.np_random.uniform(-1.0, 1.0, 2)
        return self._seen(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.t, self.steps = self.t + 1, self.steps + 1
        noise = self.np_random.normal(0.0, 0.05, 2)
        self.x = self.x + 0.3 * np.asarray(action, np.float64) + noise
        far = bool(np.linalg.norm(self.x) > 1.5)
        return self._seen(), -float(self.x @ self.x), far, self.t >= 10, {}

    def _seen(self) -> Array:
        if self.steps == self.breaks:
            self.x[0] = np.nan
        return np.array([*self.x, 7.0 + self.moves * self.x[0]], np.float32)


def far(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return next_obs[..., :2].square().sum(-1) > 1.5**2


def pays(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return -next_obs[..., :2].square().sum(-1)


AHEAD = PlanningSettings(
    method="nll",
    members=2,
    hidden=(12,),
    schedule=Schedule(steps=50, batch_size=16, learning_rate=1e-2),
    learning_starts=FIRST,
    refit_every=6,
    planner=MPPI(horizon=3, population=12, iterations=2, std=0.3),
    imagination=Imagination(2, sample=False),
    proposals=3,
    value="critic",
    plan_share=0.0,
    fresh_every=2,
    updates_per_step=2,
    look_ahead=3,
    look_ahead_lambda=0.7,
)
PLANS = replace(
    AHEAD, method="mse", plan_share="auto", real_share=0.5, look_ahead=0, fresh_every=1, members=3,
    imagination=Imagination(3, sample=False),
)  # fmt: skip
WIDE: dict[str, Any] = {"net_arch": [16, 12], "n_critics": 3, "layer_norm": True}
#: Settings, the learner's arguments, whether the task's rules are known, and whether a VecNormalize stands around it.
CASES: dict[str, tuple[PlanningSettings, dict[str, Any], bool, bool]] = {
    "ahead, all learned": (
        AHEAD,
        {"standardise": True, "policy_kwargs": {"net_arch": [16]}},
        False,
        False,
    ),
    "ahead, rules known": (
        replace(AHEAD, method="bilevel", refit_every=20, look_ahead_lambda=1.0),
        {"ent_coef": 0.1},
        True,
        False,
    ),
    "ahead, normalised": (AHEAD, {"standardise": True}, True, True),
    "plans and imagined rows": (
        PLANS,
        {
            "policy_kwargs": WIDE,
            "target_critics": 2,
            "actor_every": 2,
            "actor_q": "mean",
            "imitation": 0.5,
        },
        False,
        False,
    ),
    "the learner alone": (
        replace(PLANS, planner=None, value=None, real_share=1.0),
        {},
        False,
        False,
    ),
}


def agent(name: str, seed: int, *, given: Any = None, **of_env: Any) -> PlanningAgent:
    settings, kwargs, known, normalised = CASES[name]
    kwargs = kwargs | (given or {})
    env: Any = DummyVecEnv([lambda: Field(**of_env)])
    env = VecNormalize(env) if normalised else env
    rules: dict[str, Any] = {"termination": far, "reward": pays} if known else {}
    kwargs = {"batch_size": 16, "policy_kwargs": {"net_arch": [16]}} | kwargs
    return PlanningAgent(env, settings, algorithm_kwargs=kwargs, seed=seed, device="cpu", **rules)


def state(found: PlanningAgent) -> dict[str, Tensor]:
    kept = fingerprint(found)
    learner: Any = found.algorithm
    for part in ("actor", "critic"):
        optimizer = getattr(learner, part).optimizer
        for place, own in enumerate(parameters_of(optimizer)):
            moments = optimizer.state[own].items()
            kept |= {f"{part}.{place}.{name}": value for name, value in moments}
    if learner.log_ent_coef is not None:
        kept["temperature"] = learner.log_ent_coef.detach()
    return kept


def require_close(together: PlanningAgent, alone: PlanningAgent) -> None:
    mine, theirs = state(together), state(alone)
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        torch.testing.assert_close(value, theirs[name], **CLOSE, msg=lambda m, n=name: f"{n}: {m}")
    assert together.algorithm._n_updates == alone.algorithm._n_updates > 0
    torch.testing.assert_close(
        together._random.states[0], alone._random.states[0], rtol=0.0, atol=0.0
    )


@pytest.mark.parametrize("name", CASES)
def test_each_becomes_what_it_becomes_alone(name: str) -> None:
    beside = [agent(name, seed) for seed in SEEDS]
    # Twice: the second stretch goes on from tensors of each one's own.
    for steps in (STEPS - 6, 6):
        assert learn_side_by_side(beside, steps) == [None] * len(SEEDS)
    for seed, found in zip(SEEDS, beside, strict=True):
        alone = agent(name, seed)
        for steps in (STEPS - 6, 6):
            alone.learn(steps)
        require_close(found, alone)


def test_a_file_that_is_written_on_the_way_is_each_ones_own(tmp_path: Path) -> None:
    name = "ahead, all learned"
    beside = [agent(name, seed) for seed in SEEDS[:2]]
    hooks = [CheckpointCallback(68, str(tmp_path / str(seed))) for seed in SEEDS[:2]]
    learn_side_by_side(beside, STEPS, hooks)
    for seed in SEEDS[:2]:
        alone = agent(name, seed)
        alone.learn(STEPS, CheckpointCallback(68, str(tmp_path / "alone")))
        (mine,), (theirs,) = (
            [PlanningAgent.load(path, Field()) for path in (tmp_path / folder).iterdir()]
            for folder in (str(seed), "alone")
        )
        require_close(mine, theirs)
        assert "actor.0.exp_avg" in state(mine)
        (tmp_path / "alone" / "rl_model_68_steps.zip").unlink()


class StopsAt(BaseCallback):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def _on_step(self) -> bool:
        return self.num_timesteps < self.step


def test_one_that_stops_and_one_that_breaks_leave_the_others(tmp_path: Path) -> None:
    name = "ahead, all learned"
    beside = [agent(name, 3), agent(name, 4, breaks=66), agent(name, 5)]
    found = learn_side_by_side(beside, STEPS, [None, None, StopsAt(64)])
    assert found[0] is None
    assert found[2] is None
    assert isinstance(found[1], BilevelError)
    assert "NaN" in str(found[1])
    assert [one.num_timesteps for one in beside] == [STEPS, 66, 64]
    alone = agent(name, 3)
    alone.learn(STEPS)
    require_close(beside[0], alone)
    # Each has tensors of its own: what happens to one reaches no other.
    before = {key: value.clone() for key, value in state(beside[0]).items()}
    beside[2].learn(4)
    for key, value in state(beside[0]).items():
        assert torch.equal(value, before[key])


class Interrupts(BaseCallback):
    def _on_step(self) -> bool:
        if self.num_timesteps == FIRST + 2:
            raise KeyboardInterrupt
        return True


def test_after_ctrl_c_each_goes_on_by_itself() -> None:
    beside = [agent("ahead, all learned", seed) for seed in SEEDS[:2]]
    with pytest.raises(KeyboardInterrupt) as kept:  # its traceback keeps all frames alive
        learn_side_by_side(beside, STEPS, [None, Interrupts()])
    for found in beside:
        fitted_on = found.progress.fitted_on
        found.learn(8)
        assert found.progress.fitted_on > fitted_on > 0
    assert kept.value is not None


def test_a_fit_that_fails_ends_its_agent_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = [agent("ahead, all learned", seed) for seed in SEEDS[:2]]
    made = side_by_side.fit_side_by_side

    def second_fails(refits: Any) -> Any:
        return [*made(refits[:1]), *[DivergedError("no fit") for _ in refits[1:]]]

    monkeypatch.setattr(side_by_side, "fit_side_by_side", second_fails)
    found = learn_side_by_side(beside, STEPS)
    assert found[0] is None
    assert str(found[1]) == "no fit"
    assert [one.num_timesteps for one in beside] == [STEPS, FIRST]
    beside[1].learn(6)
    assert beside[1].model is not None


def test_models_of_other_forms_are_fitted_one_by_one() -> None:
    """One of the agents sees something vary that the other does not."""
    name = "ahead, rules known"
    beside = [agent(name, 3), agent(name, 4, moves=True)]
    assert learn_side_by_side(beside, STEPS) == [None, None]
    for found, alone in zip(beside, (agent(name, 3), agent(name, 4, moves=True)), strict=True):
        alone.learn(STEPS)
        require_close(found, alone)


def fitted_oftener(found: PlanningAgent) -> None:
    found.settings = replace(found.settings, refit_every=7)


def older(found: PlanningAgent) -> None:
    found.learn(3)


def follows_faster(found: PlanningAgent) -> None:
    found.algorithm.tau = 0.1  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (fitted_oftener, "their settings differ"),
        (older, "their num_timesteps differ"),
        (follows_faster, "tau is 0.005 and 0.1"),
    ],
)
def test_agents_that_are_no_repeats_are_refused(
    change: Callable[[PlanningAgent], None], says: str
) -> None:
    beside = [agent("ahead, all learned", seed) for seed in SEEDS[:2]]
    change(beside[1])
    with pytest.raises(InvalidInputError, match=says):
        learn_side_by_side(beside, STEPS)
    assert beside[0].num_timesteps == 0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"learning_rate": 0.1}, "learning_rate is 0.0003 and 0.1"),
        ({"batch_size": 8}, "batch_size is 16 and 8"),
        (
            {"policy_kwargs": {"net_arch": [16], "optimizer_kwargs": {"eps": 1e-5}}},
            "optimisers' eps is 1e-08 and 1e-05",
        ),
        ({"policy_kwargs": {"net_arch": [15]}}, "they have other networks"),
    ],
)
def test_learners_that_differ_are_refused(given: dict[str, Any], says: str) -> None:
    name = "the learner alone"
    beside = [agent(name, 3), agent(name, 4, given=given)]
    with pytest.raises(InvalidInputError, match=says):
        learn_side_by_side(beside, STEPS)


def test_what_each_needs_for_itself_is_not_shared() -> None:
    one = agent("the learner alone", 3)
    with pytest.raises(InvalidInputError, match="give each its own"):
        learn_side_by_side([one, one], STEPS)
    env, settings = Field(), CASES["the learner alone"][0]
    two = [PlanningAgent(env, settings, seed=seed) for seed in SEEDS[:2]]
    with pytest.raises(InvalidInputError, match="act in one environment"):
        learn_side_by_side(two, STEPS)


@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"policy_kwargs": {"dropout": 0.1}}, "dropout"),
        ({"use_sde": True}, "use_sde"),
        ({"policy_kwargs": {"optimizer_class": torch.optim.AdamW}}, "AdamW"),
        ({"policy_kwargs": {"activation_fn": torch.nn.PReLU}}, "an activation that learns"),
    ],
)
def test_learners_that_cannot_be_stacked_are_refused(kwargs: dict[str, Any], says: str) -> None:
    settings = CASES["the learner alone"][0]
    beside = [PlanningAgent(Field(), settings, algorithm_kwargs=kwargs, seed=s) for s in SEEDS]
    with pytest.raises(InvalidInputError, match=f"{says}; train them one after another"):
        learn_side_by_side(beside, STEPS)


def test_other_learners_are_refused() -> None:
    settings = CASES["the learner alone"][0]
    beside = [PlanningAgent(Field(), settings, algorithm=SAC, seed=seed) for seed in SEEDS]
    with pytest.raises(InvalidInputError, match="one is a SAC"):
        learn_side_by_side(beside, STEPS)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"total_timesteps": 0}, "total_timesteps"),
        ({"callbacks": [None]}, "callbacks: give one for each of the 3"),
    ],
)
def test_bad_arguments_are_told_before_any_step(given: dict[str, Any], says: str) -> None:
    beside = [agent("ahead, all learned", seed) for seed in SEEDS]
    with pytest.raises(InvalidInputError, match=says):
        learn_side_by_side(beside, **{"total_timesteps": STEPS} | given)
    assert beside[0].num_timesteps == 0
