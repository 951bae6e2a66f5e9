"""MBPO on a point on a line: it learns, resumes to the bit, and refuses what cannot work."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import (
    BaseCallback,
    EvalCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from torch import Tensor

from agents.common.experience import RandomBehaviour, collect
from agents.learners.fast_sac import FastSAC
from agents.mbpo import MBPO, MBPOSettings, RolloutLength
from agents.planning_agent.checkpoint import PLANNING_AGENT
from agents.planning_agent.imagined_rows import imagine
from mbrl_bilevel.base.checkpoint import load_checkpoint, save_checkpoint
from mbrl_bilevel.base.errors import BilevelError, CheckpointError, DivergedError, InvalidInputError
from mbrl_bilevel.imagination.environments import ImaginedVecEnv
from mbrl_bilevel.imagination.settings import Branching
from mbrl_bilevel.models.dynamics import DynamicsModel, fit_dynamics
from mbrl_bilevel.training.methods import get_method
from mbrl_bilevel.training.settings import Schedule

# Models of a few gradient steps are poor ones, and told so.
pytestmark = pytest.mark.filterwarnings("ignore:after .* steps the model is off")

LIMIT = 12


class Point(gym.Env[Any, Any]):
    """x' = x + a / 4, reward 1 − x'², ends beyond |x| > 2, cut after 12 steps. At rest in 0: 12."""

    def __init__(self, choices: bool = False) -> None:
        self.observation_space = gym.spaces.Box(-10.0, 10.0, (1,), np.float64)
        self.action_space = gym.spaces.Discrete(3) if choices else gym.spaces.Box(-2, 2, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.x, self.t = float(self.np_random.uniform(-1.5, 1.5)), 0
        return np.array([self.x]), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        push = float(np.reshape(action, -1)[0])
        self.x += 0.25 * (
            push - 1.0 if isinstance(self.action_space, gym.spaces.Discrete) else push
        )
        self.t += 1
        return np.array([self.x]), 1.0 - self.x**2, abs(self.x) > 2.0, self.t >= LIMIT, {}


def off(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    return next_obs[..., 0].abs() > 2.0


def wide(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
    """One dimension too many, as a rule that forgot to index."""
    return next_obs.abs()


SMALL = MBPOSettings(
    method="nll",
    members=2,
    hidden=(16,),
    schedule=Schedule(steps=60),
    learning_starts=60,
    refit_every=50,
    imagine_every=20,
    rollouts_per_step=8,
    rollout=RolloutLength(1, 3, 60, 160),
    updates_per_step=2,
    imagined_rows=300,
)
KWARGS: dict[str, Any] = {"batch_size": 16, "policy_kwargs": {"net_arch": [16]}}


def agent(settings: MBPOSettings = SMALL, *, choices: bool = False, **more: Any) -> MBPO:
    given: dict[str, Any] = {"algorithm_kwargs": KWARGS, "termination": off} | more
    return MBPO(Point(choices), settings, **given)


def mean_return(policy: Any, choices: bool = False) -> float:
    env = Monitor(Point(choices))
    env.reset(seed=7)
    return float(evaluate_policy(policy, env, 20)[0])  # type: ignore[arg-type]


def random_steps(count: int) -> Any:
    env = Point()
    space: Any = env.action_space
    return collect(env, RandomBehaviour(space, np.random.default_rng(0)), count, seed=0)


def pushed(
    model: DynamicsModel, starts: Tensor, length: int, branching: Branching, **more: Any
) -> dict[str, Tensor]:
    """Branches under the action 2, which is stored as 1: a half to the right at each step."""
    generator = torch.Generator().manual_seed(1)
    space: Any = Point().action_space

    def act(obs: Tensor) -> Tensor:
        return torch.ones(len(obs), 1)

    return imagine(model, starts, act, space, length, branching, generator, **more)


@pytest.fixture(scope="module")
def learned_model() -> DynamicsModel:
    generator = torch.Generator().manual_seed(0)
    schedule = Schedule(steps=400, learning_rate=3e-3)
    return fit_dynamics(
        random_steps(600),
        get_method("bilevel"),
        generator=generator,
        members=2,
        hidden=(32,),
        schedule=schedule,
        termination=off,
    )[0]


@pytest.mark.parametrize(
    ("kind", "steps", "more"),
    [
        (PPO, 8192, {"n_steps": 64, "batch_size": 128, "n_epochs": 6, "learning_rate": 3e-3}),
        (SAC, 800, {"learning_starts": 100, "batch_size": 64, "learning_rate": 3e-3, "gamma": 0.9}),
    ],
)
def test_what_is_learned_inside_the_model_is_worth_as_much_outside(
    learned_model: DynamicsModel, kind: Any, steps: int, more: dict[str, Any]
) -> None:
    starts, env = random_steps(200), Point()
    spaces: Any = (env.observation_space, env.action_space)
    inside = ImaginedVecEnv(
        learned_model, starts, *spaces, num_envs=16 if kind is PPO else 1, horizon=LIMIT
    )
    policy = kind(
        "MlpPolicy", inside, seed=0, device="cpu", policy_kwargs={"net_arch": [32]}, **more
    )
    assert mean_return(policy) < 8.0
    policy.learn(steps)
    assert mean_return(policy) > 9.5  # the best there is, from these starts, is some 11.7


def test_it_learns_in_few_real_steps() -> None:
    settings = replace(
        SMALL, updates_per_step=6, rollouts_per_step=20, schedule=Schedule(steps=150)
    )
    kwargs = {**KWARGS, "batch_size": 64, "learning_rate": 3e-3, "ent_coef": "auto_0.1"}
    ours = agent(settings, algorithm_kwargs=kwargs)
    assert mean_return(ours) < 0.0
    ours.learn(200)
    assert ours.model is not None
    assert len(ours.experience.imagined) == 300
    assert mean_return(ours) > 9.5


def test_with_real_rows_alone_there_is_no_model() -> None:
    found = agent(replace(SMALL, real_share=1.0)).learn(70)
    assert found.model is None
    assert len(found.experience.imagined) == 0
    assert found.algorithm._n_updates == 2 * 10


def fingerprint(found: MBPO) -> dict[str, Any]:
    state: dict[str, Any] = dict(found.algorithm.policy.state_dict())
    state |= {f"real.{name}": rows for name, rows in found.experience.real.stored().items()}
    state |= {f"imagined.{name}": rows for name, rows in found.experience.imagined.stored().items()}
    if found.model is not None:
        state |= {f"model.{name}": rows for name, rows in found.model.policy.state_dict().items()}
    return state


def assert_same(a: MBPO, b: MBPO) -> None:
    found, expected = fingerprint(a), fingerprint(b)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
    assert (a.num_timesteps, a.progress) == (b.num_timesteps, b.progress)


def no_pickle(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("a pickle was written or read")


@pytest.mark.parametrize(
    ("kind", "choices", "more"),
    [
        (FastSAC, False, {}),
        (SAC, False, {}),
        (SAC, False, {"ent_coef": 0.2, "learning_rate": 1e-3}),
        (
            TD3,
            False,
            {"policy_delay": 3, "action_noise": NormalActionNoise(np.zeros(1), np.ones(1))},
        ),
        (DQN, True, {"target_update_interval": 30, "exploration_fraction": 0.5}),
    ],
)
def test_saved_in_the_middle_it_goes_on_as_if_never_stopped(
    kind: Any,
    choices: bool,
    more: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where anything else draws random numbers in between."""
    termination = None if kind is DQN else off  # else it is learned
    given: dict[str, Any] = {"algorithm": kind, "algorithm_kwargs": KWARGS | more}
    whole = agent(choices=choices, termination=termination, seed=3, **given).learn(75).learn(45)
    half = agent(choices=choices, termination=termination, seed=3, **given).learn(75)
    torch.manual_seed(99)
    with monkeypatch.context() as patch:
        for module, names in (
            (pickle, ("dump", "dumps", "load", "loads")),
            (torch, ("save", "load")),
        ):
            for name in names:
                patch.setattr(module, name, no_pickle)
        half.save(tmp_path / "agent.safetensors")
        objects = {name: value for name, value in more.items() if name == "action_noise"}
        found = MBPO.load(
            tmp_path / "agent.safetensors",
            Point(choices),
            termination=termination,
            algorithm_kwargs=objects,
        )
    assert type(found.algorithm) is kind
    assert_same(found, half)
    assert_same(found.learn(45), whole)
    assert mean_return(found, choices) == mean_return(whole, choices)


def test_random_numbers_of_others_are_neither_used_nor_changed() -> None:
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    first = agent().learn(80)
    drawn = (torch.rand(3).tolist(), np.random.rand(3).tolist())  # noqa: NPY002
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    assert drawn == (torch.rand(3).tolist(), np.random.rand(3).tolist())  # noqa: NPY002
    assert_same(agent().learn(80), first)
    other = agent(seed=1).learn(80)
    assert not torch.equal(other.experience.real.stored()["obs"], fingerprint(first)["real.obs"])


def test_a_time_limit_is_no_end() -> None:
    found = agent().learn(100).experience
    transitions = found.transitions()
    assert transitions.truncated.sum() >= 3
    assert (transitions.t[transitions.truncated] == LIMIT - 1).all()
    np.testing.assert_array_equal(transitions.terminated, np.abs(transitions.next_obs[:, 0]) > 2.0)
    rows = found.real.stored()
    assert not (rows["ended"].bool() & rows["truncated"]).any()
    # The next observation is that of the step, not the first of the next episode.
    moved = transitions.next_obs - transitions.obs
    np.testing.assert_allclose(moved, 0.25 * transitions.action, atol=1e-6)


def test_a_branch_is_a_chain_that_ends_where_the_episode_does(
    learned_model: DynamicsModel,
) -> None:
    starts, means = torch.tensor([[0.0], [1.9]]), Branching(sample=False)
    rows = pushed(learned_model, starts, 3, means)
    # Both take a first step to the right by 1/2: the second branch ends with it.
    assert rows["ended"].tolist() == [0.0, 1.0, 0.0, 0.0]
    torch.testing.assert_close(rows["obs"][2:], rows["next_obs"][[0, 2]])
    expected = torch.tensor([[0.5], [2.4], [1.0], [1.5]])
    torch.testing.assert_close(rows["next_obs"], expected, atol=0.1, rtol=0.0)
    torch.testing.assert_close(
        rows["reward"], 1.0 - expected.flatten().square(), atol=0.5, rtol=0.0
    )
    bounds = (torch.tensor([-1.0]), torch.tensor([1.25]))
    within = pushed(learned_model, starts[:1], 3, means, within=bounds)
    assert within["next_obs"].max() == 1.25


def test_steps_where_the_model_breaks_down_are_left_out(learned_model: DynamicsModel) -> None:
    def sick(obs: Tensor, action: Tensor, next_obs: Tensor) -> Tensor:
        return torch.where(obs[..., 0] > 0.5, torch.nan, 1.0)

    broken = replace(learned_model, reward=sick)
    rows = pushed(broken, torch.tensor([[0.0], [1.0]]), 3, Branching())
    assert len(rows["obs"]) >= 1
    assert bool((rows["obs"] <= 0.5).all())
    assert bool(rows["reward"].isfinite().all())


@pytest.mark.parametrize(
    ("step", "length"), [(0, 1), (20, 1), (60, 5), (85, 8), (100, 9), (999, 9)]
)
def test_rollouts_grow(step: int, length: int) -> None:
    assert RolloutLength(1, 9, 20, 100).at(step) == length


def test_callbacks_and_evaluation_of_sb3(tmp_path: Path) -> None:
    """They see the agent as their model, where SB3's loop knows its learner alone."""
    seen: list[int] = []
    models: list[object] = []

    class Count(BaseCallback):
        def _on_step(self) -> bool:
            seen.append(self.num_timesteps)
            models.append(self.model)
            return True

    evaluation = EvalCallback(
        Monitor(Point()), eval_freq=40, n_eval_episodes=2, verbose=0, log_path=str(tmp_path)
    )
    found = agent().learn(80, [Count(), evaluation])
    assert seen == list(range(1, 81))
    assert models == [found] * 80
    assert len(np.load(tmp_path / "evaluations.npz")["results"]) == 2
    found.learn(5, lambda local, glob: True)
    assert found.num_timesteps == 85
    stopped = agent().learn(1000, StopTrainingOnMaxEpisodes(2))
    assert stopped.num_timesteps <= 2 * LIMIT
    assert len(evaluate_policy(found, found.get_env(), 3, return_episode_rewards=True)[0]) == 3  # type: ignore[arg-type]


def test_several_environments_side_by_side(tmp_path: Path) -> None:
    found = MBPO(DummyVecEnv([lambda: Monitor(Point())] * 3), SMALL, algorithm_kwargs=KWARGS)
    found.learn(90)
    transitions = found.experience.transitions()
    assert len(transitions) == 90
    assert found.algorithm._n_updates == 2 * (90 - 60)
    follows = (transitions.t[1:] > 0).nonzero()[0]
    np.testing.assert_array_equal(transitions.obs[follows + 1], transitions.next_obs[follows])
    found.save(tmp_path / "agent.safetensors")
    single = MBPO.load(tmp_path / "agent.safetensors", Point()).learn(10)
    assert single.num_timesteps == 100
    assert single.algorithm._n_updates == 2 * (90 - 60) + 2 * 10


def test_vec_normalize_is_the_algorithms_alone_and_is_saved(tmp_path: Path) -> None:
    def normalised(**flags: Any) -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: Monitor(Point())]), **flags)

    found = MBPO(normalised(), SMALL, algorithm_kwargs=KWARGS, termination=off).learn(90)
    transitions = found.experience.transitions()
    np.testing.assert_allclose(
        transitions.next_obs - transitions.obs, 0.25 * transitions.action, atol=1e-6
    )
    found.save(tmp_path / "agent.safetensors")
    again = MBPO.load(tmp_path / "agent.safetensors", normalised(), termination=off)
    before, after = (a.get_vec_normalize_env() for a in (found, again))
    assert before is not None
    assert after is not None
    for name in ("obs_rms", "ret_rms"):
        assert vars(getattr(before, name)).keys() == vars(getattr(after, name)).keys()
        np.testing.assert_array_equal(getattr(before, name).var, getattr(after, name).var)
    assert_same(again.learn(30), found.learn(30))
    for flag, was, given in (("norm_reward", True, False), ("clip_obs", 10.0, np.inf)):
        with pytest.raises(CheckpointError, match=f"{flag}={was}, .* this env has {given}"):
            MBPO.load(tmp_path / "agent.safetensors", normalised(**{flag: given}), termination=off)
    agent().learn(5).save(tmp_path / "plain.safetensors")
    with pytest.raises(CheckpointError, match="wrap env"):
        MBPO.load(tmp_path / "agent.safetensors", Point(), termination=off)
    with pytest.raises(CheckpointError, match=r"without a VecNormalize; pass the env inside it"):
        MBPO.load(tmp_path / "plain.safetensors", normalised(), termination=off)


@pytest.mark.parametrize(("part", "bad"), [("obs.var", -1.0), ("ret.count", np.nan)])
def test_statistics_that_cannot_be_are_refused(tmp_path: Path, part: str, bad: float) -> None:
    def normalised() -> VecNormalize:
        return VecNormalize(DummyVecEnv([lambda: Monitor(Point())]))

    path, name = tmp_path / "agent.safetensors", f"vec_normalize.{part}"
    MBPO(normalised(), SMALL, algorithm_kwargs=KWARGS).save(path)
    stored = load_checkpoint(path, PLANNING_AGENT)
    bent = {name: torch.full_like(stored.tensors[name], bad)}
    save_checkpoint(path, stored.kind, stored.tensors | bent, stored.config)
    with pytest.raises(CheckpointError, match=f"{name}.* (negative|NaN)"):
        MBPO.load(path, normalised())
    # Files of version 0.1 say nothing of how the statistics are used.
    save_checkpoint(path, stored.kind, stored.tensors, stored.config | {"vec_normalize": {}})
    MBPO.load(path, VecNormalize(DummyVecEnv([lambda: Monitor(Point())]), clip_obs=3.0))


@pytest.mark.parametrize("training", [True, False])
def test_offline_vec_normalize_learns_from_the_data_what_it_would_from_steps(
    training: bool,
) -> None:
    data = random_steps(50)
    env = VecNormalize(DummyVecEnv([lambda: Monitor(Point())]), gamma=0.8, training=training)
    alone = replace(SMALL, real_share=1.0)
    MBPO(env, alone, algorithm_kwargs=KWARGS).learn_offline(1, data)
    assert env.obs_rms.count == pytest.approx(50 if training else 0, abs=1e-3)
    if training:
        assert env.obs_rms.mean == pytest.approx(data.obs.mean(0), abs=1e-3)
        assert env.obs_rms.var == pytest.approx(data.obs.var(0), rel=1e-3)
        returns = []
        for row, start in enumerate(data.t == 0):
            before = 0.0 if start else returns[-1]
            returns.append(0.8 * before + float(data.reward[row]))
        assert env.ret_rms.var == pytest.approx(np.var(returns), rel=1e-3)


@pytest.mark.parametrize("part", ["model.policy", "algorithm.policy"])
def test_weights_that_are_nan_are_refused(tmp_path: Path, part: str) -> None:
    path = tmp_path / "agent.safetensors"
    agent().learn(62).save(path)
    stored = load_checkpoint(path, PLANNING_AGENT)
    name = next(name for name in stored.tensors if name.startswith(part))
    stored.tensors[name].flatten()[0] = torch.nan
    save_checkpoint(path, stored.kind, stored.tensors, stored.config)
    with pytest.raises(CheckpointError, match=f"{name}' holds NaN or infinity"):
        MBPO.load(path, Point(), termination=off)


def test_steps_that_are_there_count_for_the_first_model() -> None:
    early = agent(replace(SMALL, learning_starts=5))
    early.experience.extend(random_steps(60))
    assert early.learn(2).model is not None
    alone = agent(replace(SMALL, learning_starts=5, real_share=1.0)).learn(10)
    assert alone.algorithm._n_updates == 2 * 5


def test_offline_it_learns_from_random_steps_alone_and_resumes(tmp_path: Path) -> None:
    data = random_steps(400)
    settings = replace(
        SMALL, schedule=Schedule(steps=200), branching=Branching(penalty=0.1), updates_per_step=10
    )
    kwargs = {**KWARGS, "batch_size": 64, "learning_rate": 3e-3, "ent_coef": "auto_0.1"}
    kwargs["gamma"] = 0.9
    whole = agent(settings, algorithm_kwargs=kwargs).learn_offline(400, data)
    assert whole.num_timesteps == 0
    assert mean_return(whole) > 8.0
    returns = np.bincount(data.episode, data.reward)
    assert returns.mean() < 6.0
    half = agent(settings, algorithm_kwargs=kwargs).learn_offline(200, data)
    half.save(tmp_path / "agent.safetensors")
    found = MBPO.load(tmp_path / "agent.safetensors", Point(), termination=off)
    assert_same(found.learn_offline(200), whole)


def test_new_transitions_leave_nothing_of_the_old_model() -> None:
    settings = replace(SMALL, fresh_every=4)
    found = agent(settings).learn_offline(40, random_steps(60))
    assert found.fit_start is not None
    assert found.fit_start.fits == 1
    found.learn_offline(1, random_steps(50))
    assert found.fit_start.fits == 1  # from scratch
    once = agent(settings).learn_offline(1, random_steps(60)).experience.imagined.written
    assert found.experience.imagined.written <= once


def test_a_dqn_explores_row_by_row_in_imagination_and_resumes_offline(tmp_path: Path) -> None:
    def made() -> MBPO:
        return MBPO(Point(choices=True), SMALL, algorithm_kwargs=KWARGS, termination=off)

    found = made()
    found.algorithm.exploration_rate = 0.3  # type: ignore[attr-defined]
    obs = torch.linspace(-1.0, 1.0, 3000)[:, None]
    greedy = found.algorithm.predict(obs.numpy(), deterministic=True)[0]
    actions = found.act_in_imagination(obs)
    assert actions.shape == (3000, 1)
    other = float((actions[:, 0].numpy() != greedy).mean())
    assert other == pytest.approx(0.3 * 2 / 3, abs=0.03)  # one choice of three is the greedy one
    data = made().learn(61).experience.transitions()
    found.learn_offline(20, data).save(tmp_path / "agent.safetensors")
    back = MBPO.load(tmp_path / "agent.safetensors", Point(choices=True), termination=off)
    back.algorithm.action_space.sample()  # what a file does not hold
    assert_same(back.learn_offline(20), found.learn_offline(20))
    drawn = [[each.algorithm.action_space.sample() for _ in range(20)] for each in (back, found)]
    assert drawn[0] == drawn[1]


def test_what_the_policy_sees_in_imagination_is_not_truncated(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Whole(Point):
        """Observations that are integers."""

        def __init__(self) -> None:
            super().__init__()
            self.observation_space = gym.spaces.Box(-10, 10, (1,), np.int64)

    seen: list[Any] = []
    for env in (Whole(), Point()):
        found = MBPO(env, SMALL, algorithm_kwargs=KWARGS)
        predict = found.algorithm.predict
        monkeypatch.setattr(
            found.algorithm,
            "predict",
            lambda obs, predict=predict, **more: seen.append(obs) or predict(obs, **more),
        )
        found.act_in_imagination(torch.tensor([[0.75]]))
    assert [each.tolist() for each in seen] == [[[0.75]], [[0.75]]]
    assert [each.dtype for each in seen] == [np.float32, np.float64]


def test_what_was_learned_offline_acts_from_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def random_among_ten(found: MBPO) -> int:
        """Steps, of ten more, whose action is drawn from the space."""
        sample = found.algorithm.action_space.sample
        monkeypatch.setattr(
            found.algorithm.action_space, "sample", lambda: drawn.append(1) or sample()
        )
        drawn.clear()
        updates = found.algorithm._n_updates
        found.learn(10)
        assert found.algorithm._n_updates - updates == (0 if drawn else 2 * 10)
        return len(drawn)

    assert random_among_ten(agent()) == 10
    offline = agent().learn_offline(4, random_steps(100))
    offline.save(tmp_path / "agent.safetensors")
    assert random_among_ten(offline) == 0
    assert (
        random_among_ten(MBPO.load(tmp_path / "agent.safetensors", Point(), termination=off)) == 0
    )


def test_the_penalty_comes_off_imagined_rewards(learned_model: DynamicsModel) -> None:
    starts = torch.linspace(-1, 1, 50).unsqueeze(1)
    plain, penalised = (
        pushed(learned_model, starts, 1, Branching("tsinf", sample=False, penalty=penalty))
        for penalty in (0.0, 2.0)
    )
    assert torch.equal(plain["next_obs"], penalised["next_obs"])
    assert bool((plain["reward"] - penalised["reward"] > 1e-3).all())


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: agent(algorithm=PPO), "OffPolicyAlgorithm"),
    (lambda: agent(algorithm_kwargs={"train_freq": 4}), "train_freq is not the algorithm's"),
    (lambda: agent(algorithm_kwargs={"gama": 0.9}), "FastSAC cannot be made: .*gama"),
    (lambda: agent(choices=True, algorithm=SAC), "SAC cannot be made"),
    (lambda: agent(algorithm_kwargs={"tau": np.nan}), r"\['tau'\] must be finite; got nan"),
    (
        lambda: agent(algorithm_kwargs={"policy_kwargs": {"optimizer_kwargs": {"eps": np.inf}}}),
        r"\['policy_kwargs'\]\['optimizer_kwargs'\]\['eps'\] must be finite; got inf",
    ),
    (lambda: agent(algorithm_kwargs={"learning_rate": np.float32("nan")}), "must be finite"),
    (lambda: agent(termination=wide), r"^termination: .* got \(1, 1\)"),
    (lambda: agent(reward=wide), r"^reward: .* got \(1, 1\)"),
    (
        lambda: agent(replace(SMALL, learning_starts=39)).learn(1),
        "^learning_starts must be at least 40, .* got 39",
    ),
    (lambda: agent().learn(0), "total_timesteps must be an int from 1 .* got 0"),
    (lambda: agent().learn(1e3 + 0.5), "total_timesteps must be an int from 1 .* got 1000.5"),
    (lambda: agent().learn_offline(0), "updates must be an int from 1 .* got 0"),
    (lambda: agent().learn_offline(2.5), "updates must be an int from 1 .* got 2.5"),
    (lambda: agent(seed=-1), r"^seed must be None or an int from 0 to below 2\*\*62; got -1"),
    (lambda: agent(seed=0.5), "^seed must be .* got 0.5"),
    (lambda: agent(seed=2**62), "^seed must be .* got 4611"),
    (lambda: agent(termination=5), "^termination must be a function of .* got 5"),
    (lambda: agent(reward="knwon"), "^reward must be a function of .* got 'knwon'"),
    (lambda: agent().learn_offline(5), "no steps"),
    (lambda: agent(settings=replace(SMALL, real_share=1.0)).learn_offline(5), "no steps"),
    (lambda: agent().predict(np.full(1, np.nan)), "observation holds NaN"),
    (lambda: agent().predict(np.zeros(3)), "observation must be"),
    (lambda: agent().imagine(), "no model"),
    (lambda: replace(SMALL, method="bilvel"), "bilevel"),
    (lambda: replace(SMALL, real_share=1.5), "real_share"),
    (lambda: replace(SMALL, updates_per_step=0), "updates_per_step"),
    (lambda: replace(SMALL, members=True), "members must be an int .* got True"),
    (lambda: replace(SMALL, imagine_every=2.5), "imagine_every must be an int .* got 2.5"),
    (lambda: replace(SMALL, imagined_rows=np.int64(9)), "imagined_rows must be an int"),
    (lambda: replace(SMALL, hidden=(8.0,)), "hidden must be an int .* got 8.0"),
    (lambda: RolloutLength(0, 1), "first must be an int from 1 to 1,000; got 0"),
    (lambda: RolloutLength(1, 1.5), "last must be an int .* got 1.5"),  # type: ignore[arg-type]
    (lambda: RolloutLength(1, 2, 5, 5), r"begin must be .* below end \(5\); got 5"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_bad_input_gets_one_line(call: Callable[[], Any], words: str) -> None:
    with pytest.raises(InvalidInputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "learn", [lambda a: a.learn(120), lambda a: a.learn_offline(200, random_steps(100))]
)
@pytest.mark.parametrize("kind", [SAC, TD3])  # SAC's distribution refuses NaN, TD3 says nothing
def test_a_policy_that_runs_away_is_told_in_one_line(
    kind: Any, learn: Callable[[MBPO], Any]
) -> None:
    rate = {"learning_rate": 1e6 if kind is SAC else 1e30}
    found = agent(
        replace(SMALL, updates_per_step=5), algorithm=kind, algorithm_kwargs=KWARGS | rate
    )
    with pytest.raises(
        DivergedError, match=f"policy of {kind.__name__} .* lower learning_rate"
    ) as e:
        learn(found)
    assert "\n" not in str(e.value)


def test_of_another_environment_with_the_same_spaces_is_warned(tmp_path: Path) -> None:
    path = tmp_path / "agent.safetensors"
    alone = replace(SMALL, real_share=1.0)
    MBPO(gym.make("HalfCheetah-v5"), alone, algorithm_kwargs=KWARGS).save(path)
    with pytest.warns(UserWarning, match=r"is of HalfCheetah-v5, this env is Walker2d-v5"):
        found = MBPO.load(path, gym.make("Walker2d-v5"))
    found.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        MBPO.load(path, gym.make("Walker2d-v5"))


class MySAC(SAC):
    """A class of the user's own."""


def test_a_file_gets_no_say_in_what_is_imported(tmp_path: Path) -> None:
    path = tmp_path / "agent.safetensors"
    noise = NormalActionNoise(np.zeros(1), np.ones(1))
    agent(algorithm=MySAC, algorithm_kwargs=KWARGS | {"action_noise": noise}).save(path)
    objects = {"action_noise": noise}
    for given, words in (
        ({"algorithm": MySAC, "algorithm_kwargs": objects}, "termination"),
        ({"termination": off, "algorithm_kwargs": objects}, "pass its class"),
        ({"termination": off, "algorithm_kwargs": objects, "algorithm": TD3}, "holds a MySAC"),
        ({"termination": off, "algorithm": MySAC}, "'action_noise', which no file holds"),
    ):
        with pytest.raises(CheckpointError, match=words):
            MBPO.load(path, Point(), **given)  # type: ignore[arg-type]
    kept: dict[str, Any] = {"algorithm": MySAC, "algorithm_kwargs": objects, "termination": off}
    assert isinstance(MBPO.load(path, Point(), **kept).algorithm, MySAC)
    with pytest.raises(CheckpointError, match="another environment"):
        MBPO.load(path, gym.make("InvertedPendulum-v5"), **kept)
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])
    with pytest.raises(BilevelError, match="checkpoint"):
        MBPO.load(path, Point(), **kept)


def test_imagination_goes_as_far_as_real_observations_whatever_the_space_says() -> None:
    """A space that says at most ½, around a point that goes to 2 and beyond."""
    env = Point()
    env.observation_space = gym.spaces.Box(-0.5, 0.5, (1,), np.float64)
    mbpo = MBPO(env, SMALL, algorithm_kwargs=KWARGS, termination=off)
    real = random_steps(300)
    assert np.abs(real.obs).max() > 1.5
    with pytest.warns(UserWarning, match="real observations leave the observation space"):
        mbpo.learn_offline(20, real)
    imagined = mbpo.experience.imagined.stored()
    started = imagined["obs"].abs() > 0.6
    assert started.any()
    # From out there no step leads back to ½ at once.
    assert (imagined["next_obs"][imagined["obs"] > 1.2] > 0.55).all()
    assert float(imagined["next_obs"].max()) <= real.next_obs.max()
