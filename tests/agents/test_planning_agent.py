"""The whole agent: it learns by plan and by policy, for SB3's tools it is one of theirs, and it resumes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CheckpointCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor

from agents import MPC, FastSAC, MPCSettings, PlanningAgent, PlanningSettings
from agents.planners import ICEM, MPPI
from agents.planning_agent import plans
from agents.planning_agent.replay import GUESS, PLAN
from mbrl_bilevel.base.errors import CheckpointError, InvalidInputError
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.training.settings import Schedule

Array = npt.NDArray[Any]

# Models of a few gradient steps are poor ones, and told so.
pytestmark = pytest.mark.filterwarnings("ignore:after .* steps the model is off")

SMALL = PlanningSettings(
    method="mse",
    members=2,
    hidden=(16,),
    schedule=Schedule(steps=60, batch_size=32, learning_rate=1e-2),
    learning_starts=60,
    refit_every=30,
    planner=MPPI(horizon=3, population=16, iterations=2, std=0.3),
    imagination=Imagination(2, sample=False),
    proposals=3,
    value="critic",
    replan_every=1,
    plan_share=1.0,
    fresh_every=1,
    updates_per_step=1,
)
KWARGS: dict[str, Any] = {"batch_size": 16, "policy_kwargs": {"net_arch": [16]}}


class PointMass(gym.Env[Array, Array]):
    """x' = x + 0.2 u, reward −x'², from |x| in [0.6, 1]; cut after ``length`` steps.

    Straight to the middle at full speed is optimal: ``best_return`` counts it out. ``gain``: the
    environment multiplies the very array that it is given by so much, after acting on it.
    """

    def __init__(self, length: int = 12, gain: float = 1.0) -> None:
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.length, self.gain, self.x, self.t = length, gain, 0.0, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        self.x = float(self.np_random.choice([-1.0, 1.0]) * self.np_random.uniform(0.6, 1.0))
        return np.array([self.x], np.float32), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action)
        self.t += 1
        self.x += 0.2 * float(action[0])
        action *= self.gain
        return np.array([self.x], np.float32), -(self.x**2), False, self.t >= self.length, {}


def best_return(start: float, length: int) -> float:
    distances = np.maximum(abs(start) - 0.2 * np.arange(1, length + 1), 0.0)
    return -float(np.square(distances).sum())


def pays(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return -next_obs[..., 0].square()


def agent(settings: PlanningSettings = SMALL, **more: Any) -> PlanningAgent:
    given: dict[str, Any] = {"algorithm_kwargs": KWARGS} | more
    return PlanningAgent(PointMass(), settings, **given)


def fingerprint(found: PlanningAgent) -> dict[str, Tensor]:
    state: dict[str, Tensor] = dict(found.algorithm.policy.state_dict())
    for name, ring in (("real", found.experience.real), ("imagined", found.experience.imagined)):
        state |= {f"{name}.{key}": rows for key, rows in ring.stored().items()}
    if found.model is not None:
        model: Any = found.model
        state |= {f"model.{key}": rows for key, rows in model.policy.state_dict().items()}
    return state


def assert_same(a: PlanningAgent, b: PlanningAgent) -> None:
    found, expected = fingerprint(a), fingerprint(b)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert (a.num_timesteps, a.progress) == (b.num_timesteps, b.progress)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not wrapped with a ``Monitor``.*")
        warnings.filterwarnings("ignore", message="Training and eval env are not of the same type")
        yield


@pytest.fixture(scope="module")
def learned() -> PlanningAgent:
    settings = replace(
        SMALL,
        hidden=(32, 32),
        schedule=Schedule(steps=200, batch_size=64, learning_rate=5e-3),
        learning_starts=96,
        refit_every=96,
        planner=MPPI(horizon=4, population=32, iterations=2, std=0.5, elite_fraction=0.2),
        updates_per_step=4,
        value="critic",
    )
    kwargs = KWARGS | {"batch_size": 64, "learning_rate": 3e-3, "gamma": 0.9, "ent_coef": 0.01}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return agent(settings, seed=1, algorithm_kwargs=kwargs).learn(240)


@pytest.mark.parametrize("plan", [True, False])
def test_learns_to_the_optimum_by_plan_and_by_policy(learned: PlanningAgent, plan: bool) -> None:
    env, regrets, aimless = PointMass(), [], []
    for seed in range(4):
        obs, _ = env.reset(seed=seed)
        start, total, state = float(obs[0]), 0.0, None
        for t in range(12):
            begins = np.array([t == 0])
            action, state = learned.predict(obs, state, begins, deterministic=True, plan=plan)
            assert (state is None) != plan
            obs, reward, _, _, _ = env.step(action)
            total += reward
        regrets.append(best_return(start, 12) - total)
        aimless.append(best_return(start, 12) + 12 * start**2)
    assert min(regrets) > -1e-5  # the optimum is the optimum
    assert np.mean(regrets) < 0.4  # standing still costs more than 4
    assert np.mean(aimless) > 4.0


def test_sb3_evaluates_plan_and_policy(learned: PlanningAgent) -> None:
    """The agent itself by plan, its learner by policy; several environments side by side."""
    env = DummyVecEnv([lambda: Monitor(PointMass())] * 2)
    for policy in (learned, learned.algorithm):
        env.seed(3)
        found: Any = evaluate_policy(policy, env, 4, return_episode_rewards=True)  # type: ignore[arg-type]
        assert found[1] == [12] * 4
        assert all(-3.5 < value < -0.3 for value in found[0])  # from |x| = 1 the best is -2.2
        assert len(set(found[0])) == 4


def test_the_policy_alone_is_what_the_learner_predicts(learned: PlanningAgent) -> None:
    obs = np.linspace(-1, 1, 9, dtype=np.float32)[:, None]
    found, state = learned.predict(obs, deterministic=True, plan=False)
    assert state is None
    np.testing.assert_array_equal(found, learned.algorithm.predict(obs, deterministic=True)[0])
    by_plan, memory = learned.predict(obs, deterministic=True)
    assert memory is not None
    np.testing.assert_array_equal(by_plan, learned.predict(obs, deterministic=True, plan=True)[0])
    assert np.abs(by_plan - found).max() > 1e-3
    with pytest.raises(InvalidInputError, match="observation holds NaN"):
        learned.predict(np.array([np.nan]), plan=False)


NO_PLAN = replace(SMALL, planner=None)


@pytest.mark.parametrize("acting", ["plan", "policy", "chance"])
def test_without_a_state_noise_is_drawn_anew_as_the_seed_decides(
    learned: PlanningAgent, acting: str, tmp_path: Path
) -> None:
    """SB3's quick start, ``action, _ = agent.predict(obs)`` in a loop; nobody else's numbers are used."""
    path, obs = tmp_path / "agent", np.zeros(1, np.float32)
    if acting == "chance":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            agent().learn(10).save(path)
    else:
        learned.save(path)
    plan = acting != "policy"

    def drawn(found: PlanningAgent, count: int = 25) -> Array:
        return np.concatenate([found.predict(obs, plan=plan)[0] for _ in range(count)])

    one, other = (PlanningAgent.load(path, PointMass()) for _ in range(2))
    before = torch.get_rng_state()
    first = drawn(one)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    np.testing.assert_array_equal(drawn(other), first)
    assert len(np.unique(first)) > 20
    if acting == "plan":
        best, _ = one.predict(obs, deterministic=True)
        np.testing.assert_array_equal(best, one.predict(obs, deterministic=True)[0])
        # Noise of .1 half-ranges around plans that differ by the search's own draws.
        assert 0.1 * 0.7 < first.std() < 0.3
        assert abs(float(np.median(first) - best[0])) < 0.15
    assert not np.array_equal(drawn(one), first)


@pytest.mark.filterwarnings("ignore:learn")
def test_exploring_on_the_way_changes_nothing() -> None:
    class Exploring(BaseCallback):
        def _on_step(self) -> bool:
            for plan in (True, False):
                self.model.predict(np.zeros(1, np.float32), plan=plan)
            return True

    assert_same(agent().learn(70, Exploring()), agent().learn(70))


REFUSED: list[tuple[Any, str]] = [
    (lambda: agent(replace(SMALL, planner=None)).predict(np.zeros(1), plan=True), "no planner"),
    (lambda: MPC(PointMass()).predict(np.zeros(1), plan=False), "no policy: .* plan alone"),
    (lambda: agent().predict(np.zeros(1)), r"no model yet; call learn\(\) or load\(\)"),
    (lambda: replace(SMALL, proposals=-1), "proposals must be an int from 0 .* got -1"),
    (lambda: replace(SMALL, value="critics"), """value must be "critic", .* got 'critics'"""),
    (lambda: replace(SMALL, look_ahead=-1), "look_ahead must be an int from 0 to 1,000; got -1"),
    (
        lambda: agent(replace(SMALL, look_ahead=2), algorithm=TD3),
        "look_ahead must be 0 for TD3: only the actor of FastSAC learns through a model; got 2",
    ),
    (lambda: replace(SMALL, plan_share=1.5), 'plan_share must be from 0 to 1, or "auto"; got 1.5'),
    (lambda: replace(SMALL, real_share="most"), 'real_share must be from 0 to 1, or "auto"'),
    (lambda: replace(SMALL, n_steps=0), "n_steps must be an int from 1 .* got 0"),
    (lambda: replace(NO_PLAN, elites=3), "elites must be at most the 2 members; got 3"),
    (lambda: replace(NO_PLAN, value=1.0), """value must be "critic", .* got 1.0"""),
    (lambda: replace(NO_PLAN, proposals=-1), "proposals must be an int from 0 .* got -1"),
    (lambda: replace(SMALL, real_share=True), "real_share must be .* got True"),
    (lambda: replace(SMALL, rollout_cut=True), "rollout_cut must be .* got True"),
    (lambda: replace(SMALL, rollout_cut="x"), "rollout_cut must be .* got 'x'"),
    (lambda: replace(SMALL, least_real_share="x"), "least_real_share must be .* got 'x'"),
    (lambda: replace(SMALL, exploration="x"), "exploration must be from 0 to 1000; got 'x'"),
    (lambda: replace(SMALL, method=["mse"]), r"method must be str; got \['mse'\]"),
    (lambda: replace(SMALL, hidden=16), "hidden must be tuple or list; got 16"),
    (lambda: replace(SMALL, planner="mppi"), "planner must be Planner or None; got 'mppi'"),
    (lambda: replace(SMALL, imagination=2), "imagination must be Imagination; got 2"),
    (lambda: agent({"members": 2}), "settings must be PlanningSettings; got {'members': 2}"),  # type: ignore[arg-type]
    (lambda: agent(algorithm_kwargs=[("gamma", 0.9)]), "algorithm_kwargs must be a mapping"),
    (lambda: agent(algorithm_kwargs={"gamma": 1.5}), r"\['gamma'\] must be .* got 1.5"),
    (lambda: agent(algorithm_kwargs={"gamma": "x"}), r"\['gamma'\] must be .* got 'x'"),
    (lambda: agent(algorithm_kwargs={"batch_size": 0}), r"\['batch_size'\] must be .* got 0"),
    (lambda: agent(replace(SMALL, real_rows=39)).learn(80), "real_rows must be at least 40, .* 39"),
    (
        lambda: MPC(PointMass(), MPCSettings(real_share=0.5)),
        "real_share must be 1 without a learner, .* got 0.5",
    ),
    (lambda: agent().learn(80, until=79), "until must be at least 80, .* got 79"),
    (lambda: agent().learn(8, until=9.5), "until must be an int from 1 .* got 9.5"),
    (lambda: replace(SMALL, planner=MPPI(elite_fraction=0.0)), "elite_fraction must be more than"),
    (lambda: agent(algorithm_kwargs={"n_steps": 3}), "n_steps is not the algorithm's"),
    (lambda: PlanningAgent(Later()), r"count discrete actions from 0; got Discrete\(3, start=2\)"),
]


class Later(PointMass):
    """Choices that begin at 2."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Discrete(3, start=2)  # type: ignore[assignment]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_bad_input_gets_one_line(call: Any, words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("planner", [SMALL.planner, None])
def test_an_environment_may_write_into_its_action(planner: Any) -> None:
    """What is recorded is what was done, not what the environment made of the array."""
    env = PointMass(gain=-3.0)
    settings = replace(SMALL, planner=planner)
    found = PlanningAgent(env, settings, algorithm_kwargs=KWARGS).learn(75)
    rows = found.experience.transitions()
    np.testing.assert_allclose(rows.next_obs - rows.obs, 0.2 * rows.action, atol=1e-6)
    assert rows.action.std() > 0.1


def test_who_acted_is_recorded() -> None:
    """Random steps are not planned; half of the stretches after them are."""
    planner = MPPI(horizon=1, population=2, iterations=1)
    settings = replace(SMALL, plan_share=0.5, refit_every=1000, planner=planner)
    found = agent(settings, seed=2).learn(60)
    assert found.experience.real.stored()["planned"].sum() == 0.0
    found.learn(240)
    rows = found.experience.real.stored()
    planned, t = rows["planned"][60:], rows["t"][60:]
    by_episode = planned.reshape(-1, 12)
    assert bool((by_episode == by_episode[:, :1]).all())  # a turn is a whole episode here
    assert t.reshape(-1, 12)[:, 0].eq(0).all()
    assert 4 <= int(by_episode[:, 0].sum()) <= 16
    np.testing.assert_allclose(rows["next_obs"] - rows["obs"], 0.2 * rows["action"], atol=1e-6)
    always = agent(SMALL, seed=2).learn(75).experience.real.stored()["planned"]
    assert always.tolist() == [0.0] * 60 + [1.0] * 15


def test_the_actor_looks_ahead_in_the_model_of_now() -> None:
    """With critics that know nothing, γ 0, the policy drives to the middle all the same, by the model's rewards."""
    learner = {**KWARGS, "learning_rate": 3e-3, "gamma": 0.0, "ent_coef": 1e-3}
    settings = replace(SMALL, planner=None, value=None, proposals=0, look_ahead=1, method="nll")
    settings = replace(settings, schedule=replace(SMALL.schedule, steps=200), updates_per_step=4)
    found = PlanningAgent(PointMass(), settings, algorithm_kwargs=learner, reward=pays, seed=1)
    found.learn(60)
    first = found.algorithm.look_ahead()  # type: ignore[attr-defined]
    assert first.model.model is found.model
    found.learn(120)
    lent = found.algorithm.look_ahead()  # type: ignore[attr-defined]
    assert lent.model.model is not first.model.model
    assert lent.model.model is found.model
    for x in (-0.8, 0.8):
        told, _ = found.predict(np.array([x], np.float32), deterministic=True)
        assert told[0] == pytest.approx(-np.sign(x), abs=0.2)
    found.model = None
    assert found.algorithm.look_ahead() is None  # type: ignore[attr-defined]


def test_the_actor_looks_ahead_in_units_of_the_environment_of_now() -> None:
    def normalised(spread: float) -> VecNormalize:
        env = VecNormalize(DummyVecEnv([PointMass]), training=False, norm_reward=False)
        env.obs_rms.var = np.array([spread**2])
        return env

    settings = replace(SMALL, planner=None, value=None, proposals=0, look_ahead=1)
    found = PlanningAgent(normalised(1.0), settings, algorithm_kwargs=KWARGS, seed=1).learn(61)
    action = torch.zeros(2, 1)
    before = found.algorithm.look_ahead().model(torch.full((2, 1), 0.5), action).obs  # type: ignore[attr-defined]
    found.set_env(normalised(2.0))
    after = found.algorithm.look_ahead().model(torch.full((2, 1), 0.25), action).obs  # type: ignore[attr-defined]
    torch.testing.assert_close(2.0 * after, before, rtol=1e-4, atol=1e-5)


def test_it_acts_by_what_has_done_better_when_asked() -> None:
    """A policy that does not learn, beside plans in a model that is right; and plans that are drawn at random,
    beside a policy that has learned."""
    kwargs = KWARGS | {"learning_rate": 0.0}
    planner = MPPI(horizon=4, population=32, iterations=2, std=0.5)
    good = replace(SMALL, plan_share="auto", value=None, planner=planner)
    # The first model is right already.
    good = replace(good, schedule=replace(SMALL.schedule, steps=300), refit_every=300)
    found = PlanningAgent(PointMass(), good, algorithm_kwargs=kwargs, reward=pays, seed=2).learn(
        500
    )
    actor = found.experience.real.stored()["planned"]
    assert actor[:60].sum() == 0.0
    assert 0.0 < (actor[60:] == PLAN).float().mean() < 0.3
    assert 0.0 < (actor[60:] == GUESS).float().mean() < 0.3
    assert found.acts_by_plan
    assert found.record.plan.mean() > found.record.guess.mean()
    obs = np.array([[0.9]], np.float32)
    told, _ = found.predict(obs, deterministic=True, plan=True)
    assert found.predict(obs, deterministic=True)[0] == told

    learner = KWARGS | {"learning_rate": 3e-3, "gamma": 0.9}
    poor = replace(good, proposals=0, exploration=3.0, updates_per_step=4)
    found = PlanningAgent(PointMass(), poor, algorithm_kwargs=learner, reward=pays, seed=2).learn(
        500
    )
    assert not found.acts_by_plan
    told, _ = found.predict(obs, deterministic=True, plan=False)
    assert found.predict(obs, deterministic=True)[0] == told


def test_where_it_is_the_policys_turn_it_explores_as_its_algorithm_does() -> None:
    """TD3 by its action noise, which no plan gets."""
    noise = NormalActionNoise(np.zeros(1), np.full(1, 0.3))
    kwargs = KWARGS | {"action_noise": noise, "learning_rate": 0.0}
    planner = MPPI(horizon=1, population=2, iterations=1)
    settings = replace(SMALL, refit_every=1000, exploration=0.0, planner=planner)
    found = agent(replace(settings, plan_share=0.0), algorithm=TD3, algorithm_kwargs=kwargs)
    rows = found.learn(260).experience.transitions()[60:]
    guess, _ = found.predict(rows.obs, deterministic=True, plan=False)
    off = rows.action - guess
    inside = np.abs(guess) < 0.4
    assert inside.sum() > 80
    assert off[inside].std() == pytest.approx(0.3, rel=0.15)
    planned = agent(settings, algorithm=TD3, algorithm_kwargs=kwargs).learn(80)
    assert planned.experience.real.stored()["planned"].sum() == 20.0


def test_a_planner_alone_is_given_a_model_offline() -> None:
    """MPC has nothing to update: its model is fitted, and it plans."""
    data = agent(replace(SMALL, planner=None)).learn(60).experience.transitions()
    settings = replace(MPC_SMALL, schedule=replace(SMALL.schedule, steps=300))
    found = MPC(PointMass(), settings, reward=pays).learn_offline(1, data)
    assert found.model is not None
    assert found.num_timesteps == 0
    action, _ = found.predict(np.array([[0.9], [-0.9]], np.float32), deterministic=True)
    assert action[0] < 0.0 < action[1]


def test_the_policys_turn_costs_no_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the first plan after it begins anew, around the policy's sequence."""
    begins: list[tuple[int, list[bool]]] = []
    act = plans.Plans.act

    def spied(self: Any, *rest: Any) -> Any:
        begins.append((len(rest[3]), rest[5].tolist()))
        return act(self, *rest)

    monkeypatch.setattr(plans.Plans, "act", spied)
    planner = MPPI(horizon=2, population=4, iterations=1)
    settings = replace(SMALL, plan_share=0.5, refit_every=1000, planner=planner)
    found = PlanningAgent(PointMass(60), settings, algorithm_kwargs=KWARGS, seed=1).learn(660)
    rows = found.experience.real.stored()
    planned, t = rows["planned"][60:].bool(), rows["t"][60:]
    assert 100 < planned.sum() < 500
    assert len(begins) == int(planned.sum())
    after_policy = torch.cat([torch.tensor([False]), ~planned[:-1]])[planned]
    wanted = (t[planned] == 0) | after_policy
    assert [fresh for _, [fresh] in begins] == wanted.tolist()
    assert bool((after_policy & (t[planned] == 50)).any())  # in the midst of an episode, too


def test_proposals_and_critic_are_used_while_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, Any, float]] = []
    returns = plans.imagined_returns

    def spied(model: Any, obs: Any, actions: Any, *rest: Any) -> Any:
        asked.append((actions.shape[1], rest[2], rest[3]))
        return returns(model, obs, actions, *rest)

    monkeypatch.setattr(plans, "imagined_returns", spied)
    found = agent(algorithm_kwargs=KWARGS | {"gamma": 0.95}).learn(62)
    # Two iterations at each of two steps, of 16 candidates and 3 proposals.
    assert asked == [(19, found.held.value, 0.95)] * 4


@pytest.mark.parametrize("kind", [PlanningAgent, MPC])
def test_rules_and_model_see_raw_values_around_a_vec_normalize(kind: Any, tmp_path: Path) -> None:
    """The rule is one of raw observations, the rewards recorded are raw, plans come out as from a bare
    environment; the learner's batches are normalised."""
    seen: list[Tensor] = []

    def told(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        seen.append(obs.detach().abs().amax().reshape(1))
        return pays(obs, action, next_obs)

    class Far(PointMass):
        """Observations 50 times as large."""

        def reset(self, **rest: Any) -> Any:
            obs, info = super().reset(**rest)
            return 50.0 * obs, info

        def step(self, action: Array) -> Any:
            obs, reward, *rest = super().step(action)
            return 50.0 * obs, 2500.0 * reward, *rest

    def normalised() -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: Monitor(Far())]))

    env = normalised()
    fields = {name: getattr(SMALL, name) for name in ("method", "members", "hidden", "schedule")}
    fields |= {name: getattr(SMALL, name) for name in ("learning_starts", "refit_every", "planner")}
    settings = SMALL if kind is PlanningAgent else MPCSettings(imagination=Imagination(2), **fields)
    more: dict[str, Any] = {"algorithm_kwargs": KWARGS} if kind is PlanningAgent else {}
    found = kind(env, settings, reward=told, **more).learn(80)
    rows = found.experience.transitions()
    assert np.abs(rows.obs[rows.t == 0]).min() >= 30.0
    np.testing.assert_allclose(rows.next_obs - rows.obs, 10.0 * rows.action, atol=1e-4)
    np.testing.assert_allclose(rows.reward, -(rows.next_obs[:, 0] ** 2), rtol=1e-4)
    # Plans are imagined from raw states, however the caller's observations are normalised.
    seen.clear()
    raw = np.array([[40.0]], np.float32)
    found.predict(env.normalize_obs(raw), deterministic=True)
    assert float(torch.cat(seen).max()) >= 39.9
    batch = found.experience.sample(200, env)
    assert batch.observations.abs().max() < 5.0
    np.testing.assert_allclose(env.obs_rms.mean, rows.obs.mean(), atol=12.0)
    # Statistics are part of the file, for an agent with a planner too.
    path = tmp_path / "agent.safetensors"
    found.save(path)
    fresh = normalised()
    back = kind.load(path, fresh, reward=told)
    for name in ("obs_rms", "ret_rms"):
        for part in ("mean", "var", "count"):
            np.testing.assert_array_equal(
                getattr(getattr(fresh, name), part), getattr(getattr(env, name), part)
            )
    obs = env.normalize_obs(raw)
    np.testing.assert_array_equal(
        back.predict(obs, deterministic=True)[0], found.predict(obs, deterministic=True)[0]
    )
    assert_same(back.learn(35), found.learn(35))


class Looking(BaseCallback):
    """What a callback of SB3 gets to see."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []
        self.models: list[Any] = []
        self.began = self.ended = 0

    def _on_training_start(self) -> None:
        self.began += 1
        assert "total_timesteps" in self.locals

    def _on_step(self) -> bool:
        names = ("dones", "infos", "rewards", "new_obs", "actions")
        self.rows.append({name: self.locals[name] for name in names})
        self.models.append(self.model)
        return True

    def _on_training_end(self) -> None:
        self.ended += 1


MPC_SMALL = MPCSettings(
    method="mse",
    members=2,
    hidden=(16,),
    schedule=SMALL.schedule,
    learning_starts=60,
    refit_every=30,
    planner=ICEM(horizon=3, population=12, iterations=2),
    imagination=Imagination(2),
)


def of_kind(kind: Any, **more: Any) -> Any:
    env = DummyVecEnv([lambda: Monitor(PointMass())] * more.pop("envs", 1))
    if kind is MPC:
        return MPC(env, MPC_SMALL, **more)
    return PlanningAgent(env, SMALL, algorithm_kwargs=KWARGS, **more)


@pytest.mark.parametrize("kind", [PlanningAgent, MPC])
def test_callbacks_see_sb3s_locals_and_the_agent(kind: Any) -> None:
    callback = Looking()
    found = of_kind(kind, envs=2).learn(72, callback)
    assert (callback.began, callback.ended, len(callback.rows)) == (1, 1, 36)
    assert callback.models == [found] * 36
    assert callback.training_env is found.get_env()
    rows = found.experience.real.stored()
    seen = callback.rows
    for name, column in (("rewards", "reward"), ("actions", "action")):
        given = np.concatenate([row[name] for row in seen]).reshape(72, -1)
        np.testing.assert_allclose(given, rows[column].reshape(72, -1), atol=1e-6)
    ends = [row["dones"].tolist() for row in seen]
    assert [i for i, end in enumerate(ends) if end == [True, True]] == [11, 23, 35]
    assert sum(map(any, ends)) == 3
    assert all("episode" in info for info in seen[11]["infos"])
    # The last observation of an episode is in infos: new_obs is the next one's first.
    last = np.stack([info["terminal_observation"] for info in seen[11]["infos"]])
    np.testing.assert_array_equal(last, rows["next_obs"][22:24].numpy())
    np.testing.assert_array_equal(seen[11]["new_obs"], rows["obs"][24:26].numpy())


@pytest.mark.parametrize("kind", [PlanningAgent, MPC])
def test_sb3s_own_callbacks(kind: Any, tmp_path: Path) -> None:
    evaluation = EvalCallback(
        Monitor(PointMass()),
        n_eval_episodes=2,
        eval_freq=33,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path),
        verbose=0,
    )
    saving = CheckpointCallback(40, str(tmp_path / "steps"), name_prefix="agent")
    found = of_kind(kind).learn(70, [evaluation, saving])
    logged = np.load(tmp_path / "evaluations.npz")
    assert logged["timesteps"].tolist() == [33, 66]
    assert evaluation.best_mean_reward == logged["results"].mean(1).max()
    best = kind.load(tmp_path / "best" / "best_model", PointMass())
    assert best.num_timesteps == [33, 66][int(logged["results"].mean(1).argmax())]
    early = kind.load(tmp_path / "steps" / "agent_40_steps.zip", PointMass())
    assert early.num_timesteps == 40
    # SB3 calls back before it stores the step.
    assert len(early.experience) == 39
    assert early.model is None
    assert found.model is not None
    with pytest.warns(UserWarning, match="learn\\(\\) ended after 23 steps"):
        stopped = of_kind(kind).learn(500, StopTrainingOnMaxEpisodes(2))
    assert stopped.num_timesteps == 24


@pytest.mark.parametrize("kind", [PlanningAgent, MPC])
@pytest.mark.filterwarnings("ignore:learn")
def test_it_can_be_evaluated_from_the_first_step_on(kind: Any) -> None:
    seen = EvalCallback(Monitor(PointMass()), n_eval_episodes=1, eval_freq=1, verbose=0)
    of_kind(kind).learn(2, seen)
    assert seen.n_calls == 2
    assert -20.0 < seen.last_mean_reward < 0.0


@pytest.mark.parametrize("kind", [PlanningAgent, MPC])
def test_what_is_evaluated_on_the_way_changes_nothing(kind: Any) -> None:
    evaluation = EvalCallback(Monitor(PointMass()), n_eval_episodes=1, eval_freq=20, verbose=0)
    assert_same(of_kind(kind).learn(80, evaluation), of_kind(kind).learn(80))


def test_random_numbers_of_others_are_neither_used_nor_changed() -> None:
    def drawn() -> tuple[list[float], list[float]]:
        return torch.rand(3).tolist(), np.random.rand(3).tolist()  # noqa: NPY002

    found = []
    for seed in (5, 6):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        expected = drawn()
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        found.append(agent(replace(SMALL, real_share=0.5, plan_share=0.5)).learn(70))
        assert drawn() == expected
    assert_same(*found)
    other = agent(seed=1).learn(70)
    assert not torch.equal(fingerprint(other)["real.obs"], fingerprint(found[0])["real.obs"])


def test_imagining_outside_learn_draws_from_its_own_numbers() -> None:
    """As do all acts of the policy while it learns; a callback that lets it learn again is told so."""

    class Within(BaseCallback):
        def _on_step(self) -> bool:
            getattr(self.model, self.calls)(5)
            return True

    found = [agent(replace(SMALL, real_share=0.5)).learn(61) for _ in range(2)]
    state = torch.get_rng_state(), np.random.get_state()  # noqa: NPY002
    found[0].imagine()
    torch.manual_seed(3)
    found[1].imagine()
    torch.set_rng_state(state[0])
    assert_same(*found)
    for name in ("learn", "learn_offline"):
        callback = Within()
        callback.calls = name
        with pytest.raises(InvalidInputError, match=rf"^{name}\(\) was called by a callback"):
            found[0].learn(5, callback)
        assert torch.equal(torch.get_rng_state(), state[0])
        for mine, theirs in zip(np.random.get_state(), state[1], strict=True):  # noqa: NPY002
            np.testing.assert_array_equal(mine, theirs)
    assert found[0].learn(5).num_timesteps == 61 + 2 + 5  # two were begun and not stored


def test_schedules_go_by_the_whole_run() -> None:
    """In stretches as in one; the loop stops where it is told, and the bar ends there."""
    totals: list[int | None] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            totals.append(self.model.upkeep.bar.total)
            return True

    kwargs = {**KWARGS, "exploration_fraction": 0.5, "exploration_final_eps": 0.0}
    settings = replace(SMALL, planner=None, learning_starts=1000)

    def made() -> PlanningAgent:
        return PlanningAgent(gym.make("CartPole-v1"), settings, algorithm_kwargs=kwargs)

    whole, parts = made(), made()
    rates: list[float] = []
    for stretch in (10, 15, 15):
        whole.learn(stretch, Watch(), until=40)
        rates.append(whole.algorithm.exploration_rate)  # type: ignore[attr-defined]
    assert whole.num_timesteps == 40
    # SB3 counts a step before it looks at the schedule.
    assert rates == pytest.approx([1.0 - 10 / 20, 0.0, 0.0])
    assert totals == [10] * 10 + [25] * 15 + [40] * 15
    assert whole._total_timesteps == 40
    parts.learn(10)
    assert parts.algorithm.exploration_rate == 0.0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("first", "envs", "more"),
    [
        (1, 1, {}),  # before the first model
        (60, 1, {"proposals": 0, "value": None}),  # right after it
        (75, 1, {"plan_share": 0.5, "real_share": "auto", "n_steps": 3, "refit_every": 20}),
        (78, 2, {"replan_every": 2, "real_share": 0.5, "imagine_every": 7}),
        (75, 1, {"plan_share": "auto", "look_ahead": 3}),
    ],
)
@pytest.mark.filterwarnings("ignore:learn")
def test_saved_between_two_calls_it_goes_on_as_if_never_stopped(
    first: int, envs: int, more: dict[str, Any], tmp_path: Path
) -> None:
    def made() -> PlanningAgent:
        env = DummyVecEnv([PointMass] * envs)
        return PlanningAgent(env, replace(SMALL, **more), algorithm_kwargs=KWARGS, seed=3)

    path = tmp_path / "agent.safetensors"
    whole, half = made().learn(first), made().learn(first)
    half.save(path)
    back = PlanningAgent.load(path, DummyVecEnv([PointMass] * envs))
    assert_same(back, half)
    assert type(back.algorithm) is FastSAC
    for _ in range(2):
        whole.learn(31)
        back.learn(31)
    assert whole.algorithm._n_updates > 0
    assert_same(back, whole)
    obs = np.linspace(-1.0, 1.0, 4, dtype=np.float32)[:, None]
    for plan in (True, False):
        mine, theirs = (
            each.predict(obs, deterministic=True, plan=plan)[0] for each in (whole, back)
        )
        np.testing.assert_array_equal(mine, theirs)


def test_an_interrupted_fit_is_made_up_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also by an agent that was saved and loaded in between; it then goes on as one that was not."""
    found = agent()
    with monkeypatch.context() as patch:

        def interrupted() -> None:
            raise KeyboardInterrupt

        patch.setattr(found, "refit", interrupted)
        with pytest.raises(KeyboardInterrupt):
            found.learn(80)
    assert (len(found.experience), found.model) == (60, None)
    found.save(tmp_path / "agent.safetensors")
    back = PlanningAgent.load(tmp_path / "agent.safetensors", PointMass())
    for each in (found, back):
        each.learn(1)
        assert each.model is not None
        assert each.progress.fitted_on == 60
    assert_same(back, found)


class Sick(PointMass):
    """Pays NaN at step ``at`` of the second episode; at -1 shows NaN at its reset."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.episode = at, -1

    def reset(self, **rest: Any) -> Any:
        obs, info = super().reset(**rest)
        self.episode += 1
        return (obs * np.nan if (self.episode, self.at) == (1, -1) else obs), info

    def step(self, action: Array) -> Any:
        obs, reward, *rest = super().step(action)
        return obs, np.nan if (self.episode, self.t - 1) == (1, self.at) else reward, *rest


@pytest.mark.parametrize(
    ("at", "where"),
    [(4, r"in the reward \(episode 1, step 4\)"), (-1, r"in the observation \(episode 1, reset\)")],
)
@pytest.mark.parametrize(("planner", "first"), [(SMALL.planner, 60), (None, 60), (None, 3)])
def test_nan_is_told_with_its_place(at: int, where: str, planner: Any, first: int) -> None:
    """By whoever acts: a random step, or a policy whose distribution would choke on it."""
    settings = replace(SMALL, planner=planner, learning_starts=first)
    found = PlanningAgent(Sick(at), settings, algorithm_kwargs=KWARGS)
    with pytest.raises(InvalidInputError, match=f"NaN or infinity {where}") as caught:
        found.learn(30)
    assert "\n" not in str(caught.value)


def fallen(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """Of CartPole."""
    return (next_obs[..., 0].abs() > 2.4) | (next_obs[..., 2].abs() > 12 * np.pi / 180)


def test_discrete_actions_are_dqns_and_resume(tmp_path: Path) -> None:
    """CartPole: plans beside Q-values, 300 steps; saved there, it goes on to the bit."""
    settings = replace(
        SMALL,
        planner=ICEM(horizon=8, population=12, iterations=2),
        learning_starts=100,
        refit_every=150,
        exploration=0.05,
        schedule=Schedule(steps=150, batch_size=64, learning_rate=3e-3),
    )
    kwargs = KWARGS | {"target_update_interval": 50, "learning_rate": 3e-3}

    def made() -> PlanningAgent:
        env = gym.make("CartPole-v1")
        return PlanningAgent(env, settings, algorithm_kwargs=kwargs, termination=fallen, seed=2)

    whole = made().learn(300)
    assert type(whole.algorithm) is DQN
    path = tmp_path / "agent.safetensors"
    whole.save(path)
    back = PlanningAgent.load(path, gym.make("CartPole-v1"), termination=fallen)
    assert type(back.algorithm) is DQN
    assert_same(back, whole)
    assert_same(back.learn(20), whole.learn(20))
    rows = whole.experience.transitions()
    assert rows.action.sum(1).tolist() == [1.0] * 320
    lengths = np.bincount(rows.episode)
    first = int(whole.experience.real.stored()["episode"][100])  # in which planning began
    assert lengths[first + 1 :].mean() > 2.0 * lengths[:first].mean()
    for plan in (True, False):
        action, _ = back.predict(rows.obs[:50], deterministic=True, plan=plan)
        assert set(action.tolist()) == {0, 1}


@pytest.mark.parametrize("name", ["TQC", "CrossQ"])
def test_learners_of_sb3_contrib_are_held_and_resume(name: str, tmp_path: Path) -> None:
    kind = getattr(pytest.importorskip("sb3_contrib"), name)
    kwargs = {"batch_size": 16, "policy_kwargs": {"net_arch": [16]}}

    def made() -> PlanningAgent:
        return agent(algorithm=kind, algorithm_kwargs=kwargs, seed=4)

    whole, half = made().learn(70).learn(20), made().learn(70)
    path = tmp_path / "agent.safetensors"
    half.save(path)
    with pytest.raises(CheckpointError, match=f"holds a {name}, not a SAC"):
        PlanningAgent.load(path, PointMass(), algorithm=SAC)
    back = PlanningAgent.load(path, PointMass(), algorithm=kind)
    assert type(back.algorithm) is kind
    assert_same(back, half)
    assert back.algorithm._n_updates == 10
    assert_same(back.learn(20), whole)


def test_a_file_of_one_kind_for_another(tmp_path: Path) -> None:
    """MPC holds no learner: it refuses one; the class of all of them reads every file."""
    path = tmp_path / "agent.safetensors"
    agent().save(path)
    with pytest.raises(
        CheckpointError, match=r"holds a FastSAC, which MPC does not.*PlanningAgent"
    ):
        MPC.load(path, PointMass())
    found = of_kind(MPC).learn(61)
    found.save(path)
    other = PlanningAgent.load(path, PointMass())
    obs = np.array([0.5], np.float32)
    np.testing.assert_array_equal(
        other.predict(obs, deterministic=True)[0], found.predict(obs, deterministic=True)[0]
    )


def test_learning_and_acting_leave_the_number_of_threads(learned: PlanningAgent) -> None:
    before, inside = torch.get_num_threads(), []

    def told(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        inside.append(torch.get_num_threads())
        return pays(obs, action, next_obs)

    torch.set_num_threads(2)
    try:
        found = agent(reward=told)
        inside.clear()
        found.learn(61)
        assert torch.get_num_threads() == 2
        found.predict(np.zeros(1, np.float32))
        assert torch.get_num_threads() == 2
        assert set(inside) == {1}
        assert agent(replace(SMALL, hidden=(700,))).widest == 700
        wide = {"policy_kwargs": {"net_arch": {"pi": [16], "qf": [700]}}}
        assert agent(algorithm_kwargs=wide).widest == 700
    finally:
        torch.set_num_threads(before)
