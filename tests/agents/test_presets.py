"""Presets: every file makes an agent, a mistake in one is told, and tasks without a file get a sensible default."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3 import DQN, TD3
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from agents import PlanningAgent, PlanningSettings
from agents.learners.fast_sac import FastSAC
from agents.learners.no_learner import NoLearner
from agents.planners import ICEM, MPPI
from agents.presets import NAMES, Preset, named_preset, preset_for
from agents.presets.preset import (
    as_values,
    default_preset,
    learner_defaults,
    merged,
    read_preset,
    with_values,
)
from envs.known.rewards import approximate_reward_rule, reward_rule
from envs.tasks.make import make_env
from mbrl_bilevel.base.errors import InvalidInputError

TASKS = [
    *("Ant-v5", "HalfCheetah-v5", "Hopper-v5", "Humanoid-v5", "HumanoidStandup-v5"),
    *("InvertedDoublePendulum-v5", "InvertedPendulum-v5", "Pusher-v5", "Reacher-v5"),
    *("Swimmer-v5", "Walker2d-v5", "Pendulum-v1", "CartPole-v1"),
]


@pytest.mark.parametrize("name", TASKS)
def test_every_file_makes_an_agent(name: str) -> None:
    env = make_env(name)
    preset = preset_for(env)
    assert preset.name == name
    assert preset.chosen_on
    assert preset.result
    agent = PlanningAgent(env)  # raises for an argument that the learner does not know
    assert agent.settings.method == "bilevel"
    assert agent.algorithm.gamma == preset.learner["gamma"]
    rules: dict[str, Any] = {"known": reward_rule, "approximate": approximate_reward_rule}
    assert preset.reward in ("learned", *rules)
    if preset.reward in rules:
        assert rules[preset.reward](env) is not None
    env.close()


def test_the_files_are_those_of_the_tasks() -> None:
    assert sorted(TASKS) == list(NAMES)
    assert named_preset("Swimmer-v5").learner["gamma"] == 0.999
    with pytest.raises(
        InvalidInputError, match="unknown preset 'Swimer-v5': did you mean 'Swimmer"
    ):
        named_preset("Swimer-v5")


def test_a_varied_robot_has_the_settings_of_the_robot() -> None:
    assert preset_for(make_env("mbrl/Hopper-v0", gravity=0.5)) == named_preset("Hopper-v5")


def test_what_is_given_wins() -> None:
    env = make_env("HalfCheetah-v5")
    settings = PlanningSettings(learning_starts=123)
    agent = PlanningAgent(env, settings, algorithm_kwargs={"gamma": 0.5})
    assert agent.settings == settings
    assert agent.algorithm_kwargs == {"gamma": 0.5}
    assert PlanningAgent(DummyVecEnv([lambda: make_env("Reacher-v5")])).algorithm.gamma == 0.95


def test_the_default_goes_by_spaces_and_time_limit() -> None:
    few, many = (gym.spaces.Box(-1, 1, (n,)) for n in (4, 40))
    box, choice = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(3)
    gammas = [default_preset(few, box, limit).learner["gamma"] for limit in (50, 200, 1000, None)]
    assert gammas == [0.95, 0.98, 0.99, 0.99]
    for space, width in ((few, 128), (many, 256)):
        learner = default_preset(space, box, None).learner
        assert learner["policy_kwargs"]["net_arch"] == [width, width]
        assert FastSAC(env=None, _init_setup_model=False, **learner).gamma == 0.99
    assert default_preset(few, choice, 500).settings["updates_per_step"] == 2
    env = make_env("Acrobot-v1")  # without a file
    assert preset_for(env).name == "default"
    assert isinstance(PlanningAgent(env).algorithm, DQN)


def test_values_go_to_their_places() -> None:
    base = PlanningSettings()
    assert with_values(base, {}) == base
    assert with_values(base, as_values(base)) == base
    found = with_values(
        base,
        {"planner": {"horizon": 7}, "hidden": [5], "schedule": {"steps": 9}, "value": "critic"},
    )
    assert isinstance(found.planner, ICEM)
    assert isinstance(base.planner, ICEM)
    assert found.planner == replace(base.planner, horizon=7)
    assert (found.hidden, found.schedule.steps, found.value) == ((5,), 9, "critic")
    assert found.schedule.batch_size == base.schedule.batch_size
    other = with_values(base, {"planner": {"kind": "mppi"}}).planner
    assert isinstance(other, MPPI)
    assert other.horizon == base.planner.horizon
    assert with_values(base, {"planner": None}).planner is None
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": 4}) == {
        "a": {"b": 3, "c": 2},
        "d": 4,
    }


@pytest.mark.parametrize(
    ("over", "told"),
    [
        ({"horizon": 3}, "settings: there is no 'horizon'"),
        ({"planner": {"horizont": 3}}, "planner ICEM has no 'horizont'; it has"),
        ({"planner": {"kind": "mpi"}}, "unknown planner 'mpi': did you mean 'mppi'"),
        ({"schedule": {"step": 3}}, "schedule: .*'step'; it has steps"),
        ({"real_share": 2.0}, "real_share must be from 0 to 1"),
        ({"planner": "icem"}, "planner must be a table, or none; got 'icem'"),
        ({"planner": {"horizon": 3, "std": "x"}}, "planner ICEM has no 'std'; it has .*horizon"),
        ({"hidden": 200}, "hidden must be a list of widths; got 200"),
        ({"hidden": "200"}, "hidden must be a list of widths; got '200'"),
    ],
)
def test_mistakes_are_told(over: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        with_values(PlanningSettings(), over)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("reward = ", " is not TOML: "),
        ("steps = 3", ": there is no 'steps'; there are settings, learner, reward"),
        ("settings = 3", ": settings must be a table; got 3"),
        ("result = 3", ": result must be text; got 3"),
        ('reward = "knwn"', ": unknown reward 'knwn': did you mean 'known'"),
        ('[settings]\nplanner = "icem"', ": planner must be a table"),
        ("[settings]\nhidden = 7", ": hidden must be a list"),
        ('[settings]\nplan_share = "half"', ": plan_share must be from 0 to 1, "),
        ("[settings]\nschedule = 3", ": schedule: "),
    ],
)
def test_mistakes_in_a_file_are_told_with_its_name(text: str, told: str) -> None:
    with pytest.raises(InvalidInputError, match=f"^preset Some-v1.toml{told}") as caught:
        read_preset("Some-v1", text)
    assert "\n" not in str(caught.value)


def test_a_file_is_found_from_another_process() -> None:
    """Also where the environment's own record of how it was made cannot be sent."""

    def unsendable() -> Any:
        env = make_env("Pendulum-v1")
        return gym.wrappers.TransformReward(env, lambda reward: reward)

    env = SubprocVecEnv([unsendable], start_method="fork")
    try:
        assert preset_for(env).name == "Pendulum-v1"
        assert env.reset().shape == (1, 3)  # it still lives
    finally:
        env.close()


def test_other_learners_take_what_all_know() -> None:
    preset = Preset(
        "x", learner={"gamma": 0.9, "actor_every": 2, "policy_kwargs": {"net_arch": [7]}}
    )
    assert learner_defaults(TD3, preset) == {"gamma": 0.9, "policy_kwargs": {"net_arch": [7]}}
    assert learner_defaults(NoLearner, preset) == {}
    fast = learner_defaults(FastSAC, preset)
    assert (fast["actor_every"], fast["gamma"], fast["standardise"]) == (2, 0.9, True)
    assert fast["policy_kwargs"] == {"net_arch": [7], "layer_norm": True}
