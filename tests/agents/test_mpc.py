"""The MPC agent: SB3's habits, its memory, its file, the rows it records, and that it learns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.mpc import MPC, MPCSettings
from agents.planners import CEM, ICEM
from agents.planning_agent import agent as planning_agent
from agents.planning_agent import plans
from agents.planning_agent.settings import ValueSettings
from mbrl_bilevel.base.errors import CheckpointError, InvalidInputError
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.training.settings import Schedule

Array = npt.NDArray[Any]

# Models of a few gradient steps are poor ones, and told so.
pytestmark = pytest.mark.filterwarnings("ignore:after .* steps the model is off")

TINY = MPCSettings(
    method="mse",
    planner=ICEM(horizon=3, population=12, iterations=2, elite_fraction=0.25),
    imagination=Imagination(particles=2),
    members=2,
    hidden=(8,),
    schedule=Schedule(steps=20, batch_size=32, evaluate_every=10),
    learning_starts=60,
    refit_every=30,
    exploration=0.1,
    value=ValueSettings(rounds=2, steps=20, members=2, width=8),
)


class PointMass(gym.Env[Array, Array]):
    """x' = x + 0.2 u, reward −x'², from |x| in [0.6, 1]; cut after ``length`` steps.

    Straight to the middle at full speed is optimal: ``best_return`` counts it out. With ``ends``
    the episode terminates beyond |x| > ``ends``.
    """

    def __init__(self, length: int = 5, ends: float = np.inf, kind: Any = np.float32) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float64)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), kind)
        self.length, self.ends, self.x, self.t = length, ends, 0.0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        self.x = float(self.np_random.choice([-1.0, 1.0]) * self.np_random.uniform(0.6, 1.0))
        return np.array([self.x]), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.t += 1
        self.x += 0.2 * float(action[0])
        ended = abs(self.x) > self.ends
        return np.array([self.x]), -(self.x**2), ended, self.t >= self.length, {}


def best_return(start: float, length: int) -> float:
    distances = np.maximum(abs(start) - 0.2 * np.arange(1, length + 1), 0.0)
    return -float(np.square(distances).sum())


def pays(obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
    return -next_obs[..., 0].square()


def never(obs: torch.Tensor, action: torch.Tensor, next_obs: torch.Tensor) -> torch.Tensor:
    return torch.zeros(next_obs.shape[:-1], dtype=torch.bool)


@pytest.fixture(scope="module")
def trained() -> MPC:
    schedule = Schedule(steps=200, batch_size=64, learning_rate=1e-2)
    return MPC(PointMass(), replace(TINY, hidden=(16,), schedule=schedule)).learn(90)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not wrapped with a ``Monitor``.*")
        warnings.filterwarnings("ignore", message="Training and eval env are not of the same type")
        yield


@pytest.mark.parametrize("method", ["bilevel", "mse"])
def test_learns_a_point_mass(method: str) -> None:
    """Model, reward and all from 240 steps; the model's reward is not told the rule."""
    settings = replace(
        TINY,
        method=method,
        planner=ICEM(horizon=5, population=40, iterations=3, elite_fraction=0.2, noise_beta=1.0),
        hidden=(32, 32),
        schedule=Schedule(steps=400, learning_rate=3e-3, batch_size=64),
        learning_starts=120,
        refit_every=60,
    )
    agent = MPC(PointMass(length=12), settings, seed=1).learn(240)
    env, regrets, aimless = PointMass(length=12), [], []
    for seed in range(4):
        obs, _ = env.reset(seed=seed)
        start, total, state = float(obs[0]), 0.0, None
        for t in range(12):
            begins = np.array([t == 0])
            action, state = agent.predict(obs, state, begins, deterministic=True)
            obs, reward, _, _, _ = env.step(action)
            total += reward
        regrets.append(best_return(start, 12) - total)
        aimless.append(best_return(start, 12) + 12 * start**2)
    assert min(regrets) > -1e-6  # the optimum is the optimum
    assert np.mean(regrets) < 0.4  # standing still costs more than 4
    assert np.mean(aimless) > 4.0


@pytest.mark.parametrize("envs", [0, 1, 2])
def test_sb3_evaluates_it(trained: MPC, envs: int) -> None:
    env = PointMass() if envs == 0 else DummyVecEnv([PointMass] * envs)
    if envs:
        env.seed(3)
    returns, lengths = evaluate_policy(trained, env, n_eval_episodes=4, return_episode_rewards=True)
    assert lengths == [5] * 4
    assert all(-13 < r < -0.1 for r in returns)
    assert len(set(returns)) == 4  # four starts, and no state mixed up between them


def test_vector_environments_are_planned_for_one_by_one(trained: MPC) -> None:
    """Two rows in one call: each is driven to the middle from its own side."""
    obs = np.array([[-0.9], [0.9]])
    actions, state = trained.predict(obs, deterministic=True)
    assert actions.shape == (2, 1)
    assert state[0].shape[0] == state[1].shape[0] == 2
    swapped, _ = trained.predict(obs[::-1].copy(), deterministic=True)
    assert actions[0] > 0.0 > actions[1]
    assert swapped[1] > 0.0 > swapped[0]


@dataclass
class Calls:
    counts: list[int]
    totals: set[int]


class Counting(BaseCallback):
    def __init__(self, stop_at: int) -> None:
        super().__init__()
        self.stop_at, self.seen = stop_at, Calls([], set())

    def _on_step(self) -> bool:
        self.seen.counts.append(self.num_timesteps)
        self.seen.totals.add(self.locals["total_timesteps"])
        return self.num_timesteps < self.stop_at


def test_a_callback_stops_learning_and_learning_goes_on() -> None:
    agent, callback = MPC(PointMass(), TINY), Counting(stop_at=64)
    assert agent.learn(90, callback) is agent
    assert callback.seen.counts == list(range(1, 65))
    assert callback.seen.totals == {90}
    # SB3 counts the step at which a callback stops learning, but does not store it.
    assert (agent.num_timesteps, len(agent.experience)) == (64, 63)
    # SB3 tells callbacks the count at which learning will end.
    agent.learn(3, more := Counting(stop_at=10**6))
    assert more.seen.counts == [65, 66, 67]
    assert more.seen.totals == {67}
    agent.learn(2, [last := Counting(10**6)], reset_num_timesteps=True)
    assert last.seen.counts == [1, 2]
    assert len(agent.experience) == 68


def test_a_function_is_a_callback() -> None:
    seen: list[int] = []

    def stop(locals_: dict[str, Any], globals_: dict[str, Any]) -> bool:
        seen.append(locals_["self"].num_timesteps)
        return len(seen) < 3

    with pytest.warns(UserWarning, match="before learning_starts=60: there is no model yet"):
        MPC(PointMass(), TINY).learn(50, stop)
    assert seen == [1, 2, 3]


def test_sb3_callbacks_run(tmp_path: Path) -> None:
    """From the first steps on, when there is no model yet."""
    best = tmp_path / "best"
    evaluation = EvalCallback(
        DummyVecEnv([PointMass]),
        n_eval_episodes=1,
        eval_freq=35,
        best_model_save_path=str(best),
        log_path=str(tmp_path),
        verbose=0,
    )
    saving = CheckpointCallback(40, str(tmp_path / "steps"), name_prefix="mpc")
    every = EveryNTimesteps(10, Counting(10**6))
    agent = MPC(PointMass(), TINY).learn(75, [evaluation, saving, every])
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [35, 70]
    assert agent.model is not None
    assert MPC.load(best / "best_model", PointMass()).num_timesteps in (35, 70)
    assert MPC.load(tmp_path / "steps" / "mpc_40_steps.zip", PointMass()).model is None
    assert every.callback is not None

    enough = EvalCallback(
        DummyVecEnv([PointMass]),
        callback_on_new_best=StopTrainingOnRewardThreshold(-1000.0),
        n_eval_episodes=1,
        eval_freq=3,
        verbose=0,
    )
    agent.learn(20, enough)
    assert agent.num_timesteps == 78


def test_vec_normalize_is_found(trained: MPC) -> None:
    assert trained.get_vec_normalize_env() is None
    normalised = VecNormalize(DummyVecEnv([PointMass]))
    assert MPC(normalised, TINY).get_vec_normalize_env() is normalised


def test_episodes_are_logged(tmp_path: Path) -> None:
    MPC(PointMass(), TINY, tensorboard_log=tmp_path).learn(80)
    events = EventAccumulator(str(tmp_path / "MPC_1"))
    events.Reload()
    # As in SB3: means over the last episodes, after every fourth one.
    assert [event.step for event in events.Scalars("rollout/ep_rew_mean")] == [20, 40, 60, 80]
    assert events.Scalars("rollout/ep_len_mean")[-1].value == 5
    assert np.isfinite(events.Scalars("model/held_out")[-1].value)


def test_learning_shows_a_bar_on_stderr_alone(capfd: pytest.CaptureFixture[str]) -> None:
    MPC(PointMass(), TINY).learn(61, progress_bar=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "61/61" in err
    MPC(PointMass(), TINY).learn(61)
    assert capfd.readouterr() == ("", "")


def test_predict_is_a_function_of_its_arguments(trained: MPC) -> None:
    obs = np.array([0.7])
    _, state = trained.predict(obs)
    kept = [part.copy() for part in state]
    for deterministic in (True, False):
        first, after = trained.predict(obs, state, np.array([False]), deterministic)
        trained.predict(np.array([-0.2]))  # nothing is hidden in the agent
        again, after_again = trained.predict(obs, state, np.array([False]), deterministic)
        assert np.array_equal(first, again)
        assert all(np.array_equal(a, b) for a, b in zip(after, after_again, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(state, kept, strict=True))
    fresh, _ = trained.predict(obs, deterministic=True)
    assert np.array_equal(fresh, trained.predict(obs, None, np.array([True]), True)[0])


def test_a_plan_is_followed_until_the_next_is_due(
    trained: MPC, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trained, "settings", replace(trained.settings, replan_every=3))
    planned: list[int] = []
    score = plans.imagined_returns

    def counted(model: Any, obs: Any, *rest: Any) -> Any:
        planned.append(len(obs))
        return score(model, obs, *rest)

    monkeypatch.setattr(plans, "imagined_returns", counted)
    obs, state, actions = np.array([[0.9], [-0.9]]), None, []
    for t in range(6):
        # The second row begins a new episode at t = 4, in the midst of a plan.
        starts = np.array([t == 0, t in (0, 4)])
        action, state = trained.predict(obs, state, starts, deterministic=True)
        actions.append(action)
        if t == 0:
            plan = state[0]  # μ, shifted: what comes at the next two steps
    iterations = trained.settings.planner.iterations  # type: ignore[attr-defined]
    rounds = [2, 2, 1]  # all at t = 0 and t = 3, one at t = 4
    assert planned == [rows for rows in rounds for _ in range(iterations)]
    np.testing.assert_array_equal(actions[1], plan[:, 0])
    np.testing.assert_array_equal(actions[2], plan[:, 1])


def test_a_new_episode_forgets_the_plan(trained: MPC) -> None:
    obs = np.array([[0.7], [-0.5]])
    _, fresh = trained.predict(np.zeros((2, 1)), None, np.array([True, True]))
    initial = trained.settings.planner.initial_state(2, trained.plans.actions)
    _, used = trained.predict(obs)
    memory = (initial.mean.numpy(), initial.elites.numpy(), initial.elite_valid.numpy())
    blank = (*memory, np.zeros(2, dtype=np.int64), used[4])
    expected, _ = trained.predict(obs, blank, np.array([False, False]), True)
    reset, _ = trained.predict(obs, used, np.array([True, True]), True)
    kept, _ = trained.predict(obs, used, np.array([False, False]), True)
    half, _ = trained.predict(obs, used, np.array([True, False]), True)
    assert np.array_equal(reset, expected)
    assert not np.array_equal(kept, expected)
    assert half[0] == expected[0]
    assert half[1] == kept[1]
    assert fresh[0].shape == used[0].shape


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_actions_fit_the_space(kind: Any) -> None:
    env = PointMass(kind=kind)
    env.action_space = gym.spaces.Box(-0.1, 0.1, (1,), kind)
    agent = MPC(env, replace(TINY, exploration=3.0)).learn(62)
    for obs in (np.array([5.0]), np.array([[5.0], [-5.0], [0.0]], dtype=np.float32)):
        state = None
        for deterministic in (True, False, False, False):
            action, state = agent.predict(obs, state, deterministic=deterministic)
            assert action.dtype == kind
            assert action.shape == obs.shape
            assert all(env.action_space.contains(row) for row in np.atleast_2d(action))


def test_exploration_is_noise_of_the_given_size(trained: MPC) -> None:
    """The same search, with and without: the difference is the noise, where nothing is clipped."""
    obs = np.linspace(-0.3, 0.3, 800)[:, None]
    _, state = trained.predict(obs)
    plain, _ = trained.predict(obs, state, None, True)
    noisy, _ = trained.predict(obs, state, None, False)
    inside = np.abs(plain) < 0.6  # four standard deviations from the bounds
    noise = (noisy - plain)[inside]
    assert inside.sum() > 100
    assert np.std(noise) == pytest.approx(0.1, rel=0.2)  # exploration = 0.1 half-ranges
    assert abs(np.mean(noise)) < 0.03


@pytest.mark.parametrize(
    ("obs", "what"),
    [
        (np.zeros(2), r"observation must be \[1\] or \[S, 1\]; got \(2,\)"),
        (np.zeros((1, 1, 1)), r"observation must be"),
        (np.array([np.nan]), "observation holds NaN"),
        ({"obs": np.zeros(1)}, "got a dict"),
    ],
)
def test_wrong_observations_are_told(trained: MPC, obs: Any, what: str) -> None:
    with pytest.raises(InvalidInputError, match=what):
        trained.predict(obs)


def test_a_state_of_other_rows_is_told(trained: MPC) -> None:
    _, state = trained.predict(np.zeros((2, 1)))
    with pytest.raises(InvalidInputError, match="state is of 2 observations but 3 came"):
        trained.predict(np.zeros((3, 1)), state)


def test_before_there_is_a_model() -> None:
    agent = MPC(PointMass(), TINY)
    with pytest.raises(InvalidInputError, match=r"no model yet; call learn\(\) or load\(\)"):
        agent.predict(np.zeros(1))
    with pytest.warns(UserWarning, match="learn\\(\\) ended after 10 steps"):
        agent.learn(10)
    actions, _ = agent.predict(np.zeros((500, 1)), deterministic=True)
    assert actions.std() == pytest.approx(3**-0.5, rel=0.1)
    assert abs(actions.mean()) < 0.1


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda: MPCSettings(learning_starts=0), "^learning_starts must be an int from 1"),
        (lambda: MPCSettings(refit_every=0), "^refit_every must be an int from 1"),
        (lambda: MPCSettings(replan_every=0), "^replan_every must be an int from 1"),
        (lambda: MPCSettings(replan_every=16), "^replan_every must be at most .* horizon"),
        (lambda: MPCSettings(members=True), "^members must be an int .* got True"),
        (lambda: MPCSettings(learning_starts=2.5), "^learning_starts must be .* got 2.5"),  # type: ignore[arg-type]
        (lambda: MPCSettings(elites=5.0), "^elites must be an int .* got 5.0"),  # type: ignore[arg-type]
        (lambda: MPCSettings(hidden=(64, 1.5)), "^hidden must be an int .* got 1.5"),  # type: ignore[arg-type]
        (lambda: MPCSettings(imagination=Imagination(5.0)), "^particles must be .* got 5.0"),  # type: ignore[arg-type]
        (lambda: MPCSettings(value=ValueSettings(rounds=1.5)), "^rounds must be .* got 1.5"),  # type: ignore[arg-type]
        (lambda: MPCSettings(exploration=-0.1), "exploration must be from 0 to 1000"),
        (lambda: MPCSettings(exploration=2**70), "exploration must be from 0 to 1000"),
        (lambda: MPCSettings(exploration=float("nan")), "exploration must be from 0 to 1000"),
        (lambda: MPCSettings(members=2), "^members must divide the 5 particles.* got 2"),
        (lambda: MPCSettings(elites=6), "^elites must be at most the 5 members; got 6"),
        (lambda: MPCSettings(elites=0), "^elites must be an int from 1"),
        (lambda: MPCSettings(elites=3), "^elites must divide the 5 particles"),
        (lambda: MPCSettings(method="milevel"), "did you mean 'bilevel'"),
        (lambda: MPC(PointMass(), TINY).learn(0), "total_timesteps must be an int from 1 .* got 0"),
        (
            lambda: MPC(PointMass(), seed=-1),
            r"^seed must be None or an int from 0 to below 2\*\*62; got -1",
        ),
        (lambda: MPC(PointMass(), seed=1.5), "^seed must be .* got 1.5"),  # type: ignore[arg-type]
        (lambda: MPC(PointMass(), reward="knwn"), "^reward must be a function .* got 'knwn'"),  # type: ignore[arg-type]
        (
            lambda: MPC(PointMass(), reward="known"),
            '^reward="known": the environment does not know',
        ),
        (
            lambda: MPC(PointMass(), replace(TINY, learning_starts=39)).learn(1),
            "^learning_starts must be at least 40, .* got 39",
        ),
    ],
)
def test_settings_are_checked(build: Callable[[], object], what: str) -> None:
    with pytest.raises(InvalidInputError, match=what):
        build()


@pytest.mark.parametrize(
    ("observation", "action", "what"),
    [
        (gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (1,)), "observation space"),
        (gym.spaces.Box(-1, 1, (2, 2)), gym.spaces.Box(-1, 1, (1,)), "observation space"),
        (gym.spaces.Box(-1, 1, (1,)), gym.spaces.MultiBinary(3), "action space"),
        (gym.spaces.Box(-1, 1, (1,)), gym.spaces.Box(-1, np.inf, (1,)), "finite bounds"),
    ],
)
def test_spaces_are_checked(observation: Any, action: Any, what: str) -> None:
    env = PointMass()
    env.observation_space, env.action_space = observation, action
    with pytest.raises(InvalidInputError, match=what):
        MPC(env)


def test_refits_come_when_they_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """At learning_starts, then every refit_every steps, whatever the stride and the stretches."""

    def fits(envs: int, stretches: list[int]) -> list[int]:
        counts: list[int] = []
        agent = MPC(DummyVecEnv([PointMass] * envs), TINY)
        refit = agent.refit

        def counted() -> Any:
            counts.append(len(agent.experience))
            return refit()

        monkeypatch.setattr(agent, "refit", counted)
        for steps in stretches:
            agent.learn(steps)
        return counts

    assert fits(1, [125]) == [60, 90, 120]
    assert fits(1, [60, 30, 35]) == [60, 90, 120]
    assert fits(7, [126]) == [63, 91, 126]
    assert fits(4, [76, 44]) == [60, 92, 120]


def test_an_interrupted_fit_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = MPC(PointMass(), TINY)
    with monkeypatch.context() as patch:

        def interrupted() -> None:
            raise KeyboardInterrupt

        patch.setattr(agent, "refit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            agent.learn(80)
    assert len(agent.experience) == 60
    agent.learn(1)
    assert agent.model is not None
    assert agent.progress.fitted_on == 60


class Clock(gym.Env[Array, Array]):
    """Shows (number of the episode, t); ends by itself or is cut after ``length`` steps."""

    def __init__(self, length: int, terminates: bool) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)
        self.length, self.terminates, self.episode, self.t = length, terminates, -1, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        self.episode, self.t = self.episode + 1, 0
        return self._seen(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = self.t == self.length
        return (
            self._seen(),
            float(action[0]),
            over and self.terminates,
            over and not self.terminates,
            {},
        )

    def _seen(self) -> Array:
        return np.array([self.episode, self.t], dtype=np.float32)


@pytest.mark.filterwarnings("ignore:learn")
def test_what_is_recorded_of_vector_environments() -> None:
    env = DummyVecEnv([lambda: Clock(3, terminates=True), lambda: Clock(5, terminates=False)])
    agent = MPC(env, replace(TINY, learning_starts=10**6))
    agent.learn(40)
    agent.learn(8)  # starts episodes of its own
    rows = agent.experience.transitions()
    assert len(rows) == 48
    lengths = []
    for number in np.unique(rows.episode):
        episode = rows[rows.episode == number]
        assert episode.t.tolist() == list(range(len(episode)))
        # The observations are those of one episode of one environment, its last one included.
        assert episode.obs[:, 1].tolist() == episode.t.tolist()
        assert episode.next_obs[:, 1].tolist() == (episode.t + 1).tolist()
        assert len(np.unique(np.concatenate([episode.obs[:, 0], episode.next_obs[:, 0]]))) == 1
        assert not (episode.terminated | episode.truncated)[:-1].any()
        ended, cut = bool(episode.terminated[-1]), bool(episode.truncated[-1])
        assert (ended, cut) in ((True, False), (False, True), (False, False))
        assert len(episode) == 3 if ended else (len(episode) == 5 or not cut)
        # SB3 stores actions in half-ranges, which costs a rounding.
        np.testing.assert_allclose(episode.reward, episode.action[:, 0], rtol=1e-6, atol=3e-7)
        lengths.append((len(episode), ended, cut))
    # 20 steps each: 3·6 + 2 and 5·4; then 4 each.
    assert sorted(lengths) == sorted(
        [(3, True, False)] * 7
        + [(2, False, False), (1, False, False)]
        + [(5, False, True)] * 4
        + [(4, False, False)]
    )


@pytest.mark.filterwarnings("ignore:learn")
def test_an_end_at_the_last_step_is_an_end() -> None:
    """Where a task ends and is cut at once, the end counts: no value lies beyond it."""
    env = gym.wrappers.TimeLimit(Clock(3, terminates=True), 3)
    rows = MPC(env, replace(TINY, learning_starts=10**6)).learn(6).experience.transitions()
    assert rows.terminated.tolist() == [False, False, True] * 2
    assert not rows.truncated.any()


@pytest.mark.filterwarnings("ignore:learn")
def test_every_stretch_of_learning_has_episodes_of_its_own() -> None:
    agent = MPC(DummyVecEnv([PointMass] * 2), replace(TINY, learning_starts=10**6))
    for _ in range(3):
        agent.learn(20, reset_num_timesteps=True)
    rows = agent.experience.transitions()
    starts = rows.obs[rows.t == 0, 0]
    assert len(starts) == len(np.unique(starts)) >= 12


class Broken(PointMass):
    """Shows NaN at one step of its second episode; at −1, at its reset."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.episode = at, -1

    def reset(self, **rest: Any) -> tuple[Array, dict[str, Any]]:
        obs, info = super().reset(**rest)
        self.episode += 1
        return (obs * np.nan if self.episode == 1 and self.at == -1 else obs), info

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        obs, *rest = super().step(action)
        bad = self.episode == 1 and self.t - 1 == self.at
        return (obs * np.nan if bad else obs), *rest  # type: ignore[return-value]


@pytest.mark.parametrize(("at", "where"), [(2, "episode 1, step 2"), (-1, "episode 1, reset")])
def test_nan_while_learning_is_told_with_its_place(at: int, where: str) -> None:
    with pytest.raises(InvalidInputError, match=f"NaN or infinity in the observation.*{where}"):
        MPC(Broken(at), TINY).learn(30)


@pytest.mark.parametrize("method", ["bilevel", "nll", "mse"])
def test_a_loaded_agent_goes_on_as_if_it_had_not_been_saved(method: str, tmp_path: Path) -> None:
    settings = replace(TINY, method=method)
    agent = MPC(PointMass(ends=1.4), settings, seed=3).learn(64)
    agent.save(tmp_path / "agent")
    other = MPC.load(tmp_path / "agent", PointMass(ends=1.4))
    assert other.settings == settings
    assert (other.seed, other.num_timesteps) == (3, 64)
    assert agent.value is not None
    assert other.value is not None
    spots = torch.linspace(-1.5, 1.5, 9)[:, None]
    assert torch.equal(other.value(spots), agent.value(spots))
    for value, name in ((v, n) for n, v in vars(agent.experience.transitions()).items()):
        np.testing.assert_array_equal(getattr(other.experience.transitions(), name), value)
    states: list[Any] = [None, None]
    for obs in (np.array([0.8]), np.array([0.5]), np.array([-0.3])):
        actions = []
        for i, each in enumerate((agent, other)):
            action, states[i] = each.predict(obs, states[i], np.array([False]))
            actions.append(action)
        assert np.array_equal(*actions)
    for each in (agent, other):
        each.learn(32)  # across the refit at 90
    mine, theirs = agent.experience.transitions(), other.experience.transitions()
    assert len(mine) == 96
    for name, value in vars(mine).items():
        np.testing.assert_array_equal(getattr(theirs, name), value)
    assert agent.model is not None
    assert other.model is not None
    for name, value in agent.model.policy.state_dict().items():
        assert torch.equal(other.model.policy.state_dict()[name], value)
    assert torch.equal(other.value(spots), agent.value(spots))


def test_a_loaded_agent_goes_on_with_the_value_of_its_planned_episodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which episodes were planned is part of the file: the next value is fitted to those alone."""
    fitted_to: list[Array] = []
    fit_value = planning_agent.fit_value

    def spied(transitions: Any, *rest: Any) -> Any:
        fitted_to.append(np.unique(transitions.episode))
        return fit_value(transitions, *rest)

    monkeypatch.setattr(planning_agent, "fit_value", spied)
    settings = replace(TINY, exploration=2.0, refit_every=60)
    agent = MPC(PointMass(ends=0.9), settings, seed=3).learn(121)
    first = agent.progress.first_planned
    assert first is not None
    agent.save(tmp_path / "agent")
    other = MPC.load(tmp_path / "agent", PointMass(ends=0.9))
    assert [episodes.min() for episodes in fitted_to] == [0, 0]  # too few planned rows yet
    assert other.progress.first_planned == first > 0
    spots = torch.linspace(-1.0, 1.0, 7)[:, None]
    values = []
    for each in (agent, other):
        each.learn(60)
        assert each.value is not None
        values.append(each.value(spots))
    mine, theirs = fitted_to[2:]
    np.testing.assert_array_equal(mine, theirs)
    assert mine.min() == first
    assert torch.equal(*values)


@pytest.mark.filterwarnings("ignore:learn")
def test_saved_before_the_model_and_before_everything(tmp_path: Path) -> None:
    agent = MPC(PointMass(), TINY, seed=2)
    agent.save(tmp_path / "new")
    agent.learn(30).save(tmp_path / "early")
    blank, early = (MPC.load(tmp_path / name, PointMass()) for name in ("new", "early"))
    assert len(blank.experience) == 0
    for each in (agent, early):
        each.learn(35)
    assert agent.model is not None
    assert early.model is not None
    assert np.array_equal(early.predict(np.ones(1))[0], agent.predict(np.ones(1))[0])
    # The random actions before the model go on where they stopped, too.
    mine, theirs = (each.experience.transitions() for each in (agent, early))
    np.testing.assert_array_equal(mine.action, theirs.action)


def test_a_plain_cem_comes_back(tmp_path: Path) -> None:
    settings = replace(TINY, planner=CEM(horizon=2, population=9, iterations=1))
    MPC(PointMass(), settings).save(tmp_path / "agent")
    assert MPC.load(tmp_path / "agent", PointMass()).settings == settings


def test_a_planner_of_ones_own_cannot_be_saved(tmp_path: Path) -> None:
    class Mine(CEM):
        pass

    agent = MPC(PointMass(), replace(TINY, planner=Mine()))
    with pytest.raises(InvalidInputError, match="type Mine cannot be saved; register it"):
        agent.save(tmp_path / "agent")


def test_rules_are_used_and_asked_for_again(tmp_path: Path) -> None:
    rules = {"termination": never, "reward": pays}
    agent = MPC(PointMass(ends=1.1), TINY, **rules).learn(61)
    assert agent.model is not None
    assert agent.model.reward is pays
    assert agent.model.termination is never
    path = tmp_path / "agent"
    agent.save(path)
    for missing in rules:
        given = {name: rule for name, rule in rules.items() if name != missing}
        with pytest.raises(CheckpointError, match=f"known {missing}; pass {missing}="):
            MPC.load(path, PointMass(), **given)
    back = MPC.load(path, PointMass(), **rules)
    assert np.array_equal(back.predict(np.ones(1))[0], agent.predict(np.ones(1))[0])


def test_a_reward_rule_for_a_model_that_learned_it_is_refused(trained: MPC, tmp_path: Path) -> None:
    trained.save(tmp_path / "agent")
    with pytest.raises(CheckpointError, match="learned the reward; load it without"):
        MPC.load(tmp_path / "agent", PointMass(), reward=pays)


def test_another_environment_is_refused(trained: MPC, tmp_path: Path) -> None:
    trained.save(tmp_path / "agent")
    wider = PointMass()
    wider.action_space = gym.spaces.Box(-2.0, 1.0, (1,))
    with pytest.raises(CheckpointError, match=r"its action_low is \[-1.0\], this env has \[-2.0\]"):
        MPC.load(tmp_path / "agent", wider)
    with pytest.raises(CheckpointError, match="its obs_dim is 1, this env has 2"):
        MPC.load(tmp_path / "agent", Clock(3, True))


def test_damaged_files_are_refused(trained: MPC, tmp_path: Path) -> None:
    path = tmp_path / "agent"
    trained.save(path)
    whole = path.read_bytes()
    for size in (0, 4, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError) as error:
            MPC.load(path, PointMass())
        assert "\n" not in str(error.value)
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="checksum"):
        MPC.load(path, PointMass())
    with pytest.raises(CheckpointError, match="nowhere"):
        MPC.load(tmp_path / "nowhere", PointMass())


def test_it_plans_with_the_elite_members_alone(tmp_path: Path) -> None:
    agent = MPC(PointMass(), replace(TINY, elites=1), seed=2).learn(60)
    assert agent.model is not None
    assert agent.last_fit is not None
    best = int(np.argmin(agent.last_fit.criterion))
    assert agent.last_fit.criterion[best] < max(agent.last_fit.criterion)
    whole = MPC(PointMass(), TINY, seed=2).learn(60).model
    assert whole is not None
    assert (whole.members, agent.model.members) == (2, 1)
    obs, action = torch.zeros(3, 1), torch.ones(3, 1)
    mine = agent.model.dist(obs, action).marginals()[0]
    assert torch.equal(mine[0], whole.dist(obs, action).marginals()[0][best])
    agent.save(tmp_path / "agent")
    other = MPC.load(tmp_path / "agent", PointMass())
    taken, _ = agent.predict(np.array([0.7]), deterministic=True)
    assert np.array_equal(other.predict(np.array([0.7]), deterministic=True)[0], taken)
    assert other.learn(30).model is not None
    assert other.model.members == 1
