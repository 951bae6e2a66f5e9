"""What an agent keeps when its task changes: of the model, the policy and the replay, each against what is lost without."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from stable_baselines3 import SAC
from torch.distributions import Independent, Normal, kl_divergence

from agents import FastSAC, PlanningAgent, PlanningSettings
from agents.planners import MPPI
from agents.planning_agent.keeping import Drift, Keeping, gaussian_kl
from agents.planning_agent.replay import STEP
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.training.settings import Schedule, WarmStart
from tests.agents.test_replay import replay, steps

Array = npt.NDArray[Any]

pytestmark = [
    pytest.mark.filterwarnings("ignore:after .* steps the model is off"),
    pytest.mark.filterwarnings("ignore:the fit ended at its limit"),
]


class Sided(gym.Env[Array, Array]):
    """x' = x + 0.2·side·u, reward −x'², from |x| in [0.6, 1], 12 steps; the observation says which side, one-hot.

    The best policy of one side is the worst of the other.
    """

    def __init__(self, side: int) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.side, self.x, self.t = side, 0.0, 0

    def _seen(self) -> Array:
        return np.array([self.x, self.side > 0, self.side < 0], np.float32)

    def reset(
        self, *, seed: int | None = None, options: Any = None
    ) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        self.x = float(self.np_random.choice([-1.0, 1.0]) * self.np_random.uniform(0.6, 1.0))
        return self._seen(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.t += 1
        self.x += 0.2 * self.side * float(action[0])
        return self._seen(), -(self.x**2), False, self.t >= 12, {}


SETTINGS = PlanningSettings(
    method="mse",
    members=2,
    hidden=(32,),
    schedule=Schedule(steps=400, batch_size=32, learning_rate=1e-2),
    learning_starts=100,
    refit_every=200,
    planner=None,
    look_ahead=2,
    imagination=Imagination(2, sample=False),
    fresh_every=4,
    warm_start=WarmStart(part=1.0),
    updates_per_step=1,
)
KWARGS: dict[str, Any] = {
    "batch_size": 64,
    "learning_rate": 3e-3,
    "policy_kwargs": {"net_arch": [32]},
}


@cache
def after_both(keeping: Keeping, **changes: Any) -> PlanningAgent:
    """An agent that has learned the first side and then the other."""
    agent = PlanningAgent(Sided(1), replace(SETTINGS, **changes), algorithm_kwargs=KWARGS)
    agent.learn(500, log_interval=None)
    agent.next_task(Sided(-1), keeping)
    agent.learn(500, log_interval=None)
    assert agent.num_timesteps == 500
    return agent


def shortfall(agent: PlanningAgent, side: int) -> float:
    """Return of the policy's best guess over four episodes, less the best return there is."""
    env, found = Sided(side), []
    for seed in range(4):
        obs, _ = env.reset(seed=seed)
        distances = np.maximum(abs(env.x) - 0.2 * np.arange(1, 13), 0.0)
        best, total, done = -float(np.square(distances).sum()), 0.0, False
        while not done:
            action, _ = agent.predict(obs, deterministic=True, plan=False)
            obs, reward, _, done, _ = env.step(action)
            total += float(reward)
        found.append(total - best)
    return float(np.mean(found))


def model_error(agent: PlanningAgent, side: int) -> float:
    """Mean absolute error of the model's mean of x' on one side, where 0.2 is the most that x moves."""
    random = np.random.default_rng(0)
    x, u = random.uniform(-1, 1, (200, 1)), random.uniform(-1, 1, (200, 1))
    obs = np.concatenate([x, np.full_like(x, side > 0), np.full_like(x, side < 0)], 1)
    model: Any = agent.model
    pair = [torch.from_numpy(part).float().expand(2, -1, -1) for part in (obs, u)]
    found = model.step(*pair).next_obs[..., 0].mean(0)
    return float(np.abs(found.detach().numpy() - (x + 0.2 * side * u)[:, 0]).mean())


def test_the_test_bed_forgets() -> None:
    """With nothing kept, the second side is learned, and policy and model of the first are lost."""
    agent = after_both(Keeping())
    assert shortfall(agent, -1) > -0.3
    assert shortfall(agent, 1) < -2.0
    assert model_error(agent, -1) < 0.03 < 0.08 < model_error(agent, 1)


@pytest.mark.parametrize(
    ("keeping", "look_ahead"),
    [(Keeping(policy=1.0), 2), (Keeping(policy=1.0, replay=200), 0), (Keeping(replay=500), 0)],
)
def test_a_policy_that_is_kept_does_both(keeping: Keeping, look_ahead: int) -> None:
    """At draws of a Gaussian, at stored observations, or by learning on stored rows."""
    agent = after_both(keeping, look_ahead=look_ahead)
    assert shortfall(agent, -1) > -0.6
    assert shortfall(agent, 1) > -1.0


@pytest.mark.parametrize("way", ["kl-seen", "replay"])
def test_a_model_that_is_kept_knows_both(way: str) -> None:
    agent = after_both(Keeping(model=way), method="bilevel")
    assert max(model_error(agent, -1), model_error(agent, 1)) < 0.04


def test_the_model_goes_on_in_the_units_of_the_first_task() -> None:
    agent = _of_random_steps()
    first = agent.fit_start
    assert first is not None
    agent.next_task(Sided(-1))
    agent.experience.extend(_recorded(-1, spread=3.0))
    agent.refit()
    last = agent.fit_start
    assert last is not None
    for name in ("inputs", "targets"):
        one, other = (getattr(fit.model.regression, name) for fit in (first, last))
        assert torch.equal(one.shift, other.shift)
        assert torch.equal(one.scale, other.scale)
    assert last.fits == first.fits + 1
    assert model_error(agent, -1) < 0.05
    # Of the second task's rows, each member holds some out.
    rows = agent.experience.transitions()
    assert all(len(stop) for stop in last.folds.folds(rows.episode, rows.t).stop)


def test_a_task_begins_with_random_steps() -> None:
    """Also where it plans: uniform actions and no update, until there is something to learn from."""
    planner = MPPI(horizon=3, population=16, iterations=2, std=0.3)
    agent = PlanningAgent(
        Sided(1), replace(SETTINGS, planner=planner, look_ahead=0), algorithm_kwargs=KWARGS
    )
    agent.learn(110, log_interval=None)
    updates = agent.algorithm._n_updates
    agent.next_task(Sided(-1))
    assert len(agent.experience) == 0
    with pytest.warns(UserWarning, match="there is no model yet"):
        agent.learn(99, log_interval=None)
    assert agent.algorithm._n_updates == updates
    assert agent.model is None
    agent.learn(10, log_interval=None)
    assert agent.algorithm._n_updates > updates
    assert agent.model is not None


def test_kept_rows_are_a_uniform_sample_of_all() -> None:
    counts = []
    for seed in range(60):
        found = replay(n_envs=1, rows=1000)
        found.generator.manual_seed(seed)
        for task, count in enumerate((30, 60, 90)):
            for step in steps(count, 1):
                found.add(**{**step, "reward": np.full(1, float(task))})
            found.next_task(40, share=0.5)
        assert len(found.real) == 0
        assert found.earlier["obs"].shape == (40, 2)
        counts.append(np.bincount(found.earlier["reward"].long().numpy(), minlength=3))
    # Hypergeometric: 40 of 180; three standard errors of the mean of 60 draws.
    wanted = 40 * np.array([30, 60, 90]) / 180
    spread = np.sqrt(wanted * (1 - wanted / 40) * 140 / 179)
    assert (np.abs(np.mean(counts, 0) - wanted) < 3 * spread / np.sqrt(60)).all()


def test_earlier_rows_are_their_share_of_the_real_ones() -> None:
    found = replay(n_envs=1, share=0.5)
    for step in steps(20, 1):
        found.add(**{**step, "reward": np.zeros(1)})
    found.next_task(7, share=0.75)
    for step in steps(20, 1):
        found.add(**{**step, "reward": np.ones(1)})
    zeros = {name: torch.zeros(5, *found.earlier[name].shape[1:]) for name in STEP}
    found.imagined.add(zeros | {"reward": torch.full((5,), 2.0)})
    rewards = found.sample(80).rewards
    assert [int((rewards == value).sum()) for value in (0.0, 1.0, 2.0)] == [30, 10, 40]
    found.next_task(0, share=0.75)
    assert found.earlier_share == 0.0


def test_kl_is_that_of_torch() -> None:
    mean, log_std, other, other_log_std = torch.randn(
        4, 5, 3, generator=torch.Generator().manual_seed(0)
    )
    wanted = kl_divergence(
        Independent(Normal(mean, log_std.exp()), 1),
        Independent(Normal(other, other_log_std.exp()), 1),
    )
    assert torch.allclose(gaussian_kl(mean, log_std, other, other_log_std), wanted, atol=1e-5)


def test_drift_is_zero_where_it_began_and_pulls_back() -> None:
    learner = FastSAC("MlpPolicy", Sided(1), policy_kwargs={"net_arch": [16]}, seed=0)
    seen = torch.randn(300, 3, generator=torch.Generator().manual_seed(1))
    drift = Drift(learner, seen, 2.0, torch.Generator().manual_seed(2))
    assert float(drift().detach()) == pytest.approx(0.0, abs=1e-6)
    bias = learner.actor.mu.bias
    assert isinstance(bias, torch.nn.Parameter)
    with torch.no_grad():
        bias += 0.5
    # Only the mean moved: KL = (0.5/σ)²/2.
    with torch.no_grad():
        _, log_std, _ = learner.actor.get_action_dist_params(seen)
        wanted = 2.0 * (0.125 * (-2.0 * log_std).exp()).mean()
    assert float(drift().detach()) == pytest.approx(float(wanted), rel=0.1)
    slope = torch.autograd.grad(drift(), bias)[0]
    assert float(slope) > 0.0


@pytest.mark.parametrize(
    ("keeping", "words"),
    [
        ({"model": "kl-sen"}, "did you mean 'kl-seen'"),
        ({"model": "joint"}, "start each task anew"),
        ({"policy": -1.0}, "policy must be"),
        ({"replay": 1.5}, "replay must be"),
        ({"memory": 0}, "memory must be"),
    ],
)
def test_bad_keeping_gets_one_line(keeping: dict[str, Any], words: str) -> None:
    agent = _of_random_steps()
    with pytest.raises(InvalidInputError, match=words):
        agent.next_task(Sided(-1), Keeping(**keeping))
    assert agent.earlier is None
    assert len(agent.experience)


def test_what_cannot_go_on_gets_one_line() -> None:
    with pytest.raises(InvalidInputError, match="nothing was learned"):
        PlanningAgent(Sided(1), SETTINGS, algorithm_kwargs=KWARGS).next_task(Sided(-1))
    agent = _of_random_steps(algorithm=SAC, settings=replace(SETTINGS, look_ahead=0, planner=None))
    with pytest.raises(InvalidInputError, match="only FastSAC's actor"):
        agent.next_task(Sided(-1), Keeping(policy=1.0))
    assert len(agent.experience)
    agent = _of_random_steps()
    agent.next_task(Sided(-1), Keeping(policy=1.0))
    agent.experience.extend(_recorded())
    agent.refit()
    with pytest.raises(InvalidInputError, match="the same for all tasks"):
        agent.next_task(Sided(1), Keeping())


def _of_random_steps(settings: PlanningSettings = SETTINGS, **more: Any) -> PlanningAgent:
    agent = PlanningAgent(Sided(1), settings, algorithm_kwargs=KWARGS, **more)
    agent.experience.extend(_recorded())
    if settings.uses_model:
        agent.refit()
    return agent


def _recorded(side: int = 1, spread: float = 1.0) -> Transitions:
    random = np.random.default_rng(0)
    u = random.uniform(-1, 1, (10, 12))
    first = spread * random.uniform(-1, 1, (10, 1))
    path = np.cumsum(np.concatenate([first, 0.2 * side * u], 1), 1)
    x, after, u = path[:, :-1].reshape(-1, 1), path[:, 1:].reshape(-1, 1), u.reshape(-1, 1)
    told = np.broadcast_to([float(side > 0), float(side < 0)], (120, 2))
    return Transitions.from_arrays(
        np.concatenate([x, told], 1),
        u,
        np.concatenate([after, told], 1),
        -(after[:, 0] ** 2),
        terminated=np.zeros(120, bool),
        truncated=np.arange(120) % 12 == 11,
    )
