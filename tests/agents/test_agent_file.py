"""The agent's file part by part: settings, progress, replay and random states that do not fit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import TD3
from torch import Tensor

from agents import MBPO, MPC, MBPOSettings, MPCSettings, PlanningAgent, PlanningSettings
from agents.common.experience import RandomBehaviour, collect
from agents.planners import CEM, ICEM, MPPI, Planner, RandomShooting
from agents.planning_agent.checkpoint import PLANNING_AGENT, Progress
from agents.planning_agent.settings import RolloutLength, ValueSettings
from agents.planning_agent.settings_file import settings_from_json, settings_to_json
from agents.planning_agent.terminal_value import Value
from mbrl_bilevel.base.checkpoint import load_checkpoint, save_checkpoint
from mbrl_bilevel.base.errors import CheckpointError, InvalidInputError
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.data.normaliser import Normaliser
from mbrl_bilevel.imagination.settings import Branching, Imagination
from mbrl_bilevel.models.dynamics import DynamicsModel
from mbrl_bilevel.models.dynamics_checkpoint import model_to_checkpoint
from mbrl_bilevel.models.regression import Regression
from mbrl_bilevel.policies.policies import GaussianPolicy
from mbrl_bilevel.training.settings import Schedule, WarmStart

PLANS: list[Planner | None] = [
    None,
    MPPI(horizon=5, population=33, iterations=2, temperature=0.7, std=0.2, elite_fraction=0.3),
    CEM(horizon=4, population=20, momentum=0.3, add_middle=True),
    ICEM(horizon=6, population=21, noise_beta=1.5),
    RandomShooting(horizon=3, population=9),
]
VALUES = [None, "critic", ValueSettings(0.5, 2.0, 1, 7, 3, 16)]


def through_json(settings: PlanningSettings) -> PlanningSettings:
    text = json.dumps(settings_to_json(settings), allow_nan=False)
    return settings_from_json("file", type(settings), json.loads(text))


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("planner", PLANS)
def test_settings_come_back(planner: Planner | None, value: Any) -> None:
    """None of them the default, so that none can be left out."""
    settings = PlanningSettings(
        method="nll",
        members=4,
        hidden=(9, 7, 5),
        schedule=Schedule(steps=77, learning_rate=2e-3, batch_size=19),
        elites=2,
        learning_starts=123,
        refit_every=45,
        fresh_every=6,
        warm_start=WarmStart(0.5, 0.25),
        direct=True,
        planner=planner,
        imagination=Imagination(8, sample=True, pessimism=0.25, screen=0.5),
        replan_every=3,
        proposals=12,
        value=value,
        exploration=0.3,
        plan_share=0.75,
        imagine_every=17,
        rollouts_per_step=11,
        rollout=RolloutLength(2, 6, 50, 500),
        rollout_cut=0.9,
        branching=Branching("tsinf", sample=False),
        imagined_rows=1234,
        real_share="auto",
        least_real_share=0.125,
        updates_per_step=3,
        real_rows=5678,
        n_steps=2,
        look_ahead=3,
        look_ahead_lambda=0.5,
    )
    default = PlanningSettings()
    changed = {name for name, kept in vars(settings).items() if kept != getattr(default, name)}
    assert vars(settings).keys() - changed <= {"value"}
    assert through_json(settings) == settings
    assert through_json(replace(settings, real_share=0.25, elites=None)).real_share == 0.25


@pytest.mark.parametrize("kind", [PlanningSettings, MPCSettings, MBPOSettings])
def test_settings_of_each_kind_come_back_as_that_kind(kind: type[PlanningSettings]) -> None:
    found = through_json(kind())
    assert type(found) is kind
    assert found == kind()


def test_a_planner_of_ones_own_has_no_form_in_a_file() -> None:
    class Mine(CEM):
        pass

    with pytest.raises(InvalidInputError, match="type Mine cannot be saved; register it"):
        settings_to_json(PlanningSettings(planner=Mine()))


class Still(gym.Env[Any, Any]):
    """Spaces, and states that do not move."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Box(-1.0, 1.0, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return obs, float(obs[0]), False, bool(obs[1] > 0.5), {}


def terminal_value() -> Value:
    policy = GaussianPolicy(
        2, 1, generator=torch.Generator().manual_seed(6), members=2, hidden=(4, 4)
    )
    inputs = Normaliser(torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.25]), torch.zeros(2) > 0)
    low, high = torch.tensor([-2.0, -1.5]), torch.tensor([1.0, 3.0])
    return Value(policy, inputs, low, high, 7.5, (-20.0, 30.0), 0.5)


def some_steps(count: int) -> Transitions:
    space: Any = Still.action_space
    return collect(Still(), RandomBehaviour(space, np.random.default_rng(0)), count, seed=0)


def rich() -> PlanningAgent:
    """An agent of seven real and three imagined steps whose every part says something."""
    settings = PlanningSettings(
        hidden=(3, 2),
        members=1,
        planner=ICEM(horizon=3, population=8),
        imagination=Imagination(1),
        value=ValueSettings(discount=0.9),
        real_share=0.5,
        real_rows=40,
        imagined_rows=30,
    )
    kwargs = {"batch_size": 4, "policy_kwargs": {"net_arch": [4]}}
    agent = PlanningAgent(Still(), settings, algorithm_kwargs=kwargs, seed=4)
    agent.experience.extend(some_steps(7))
    draws = {
        name: torch.rand((3, *column.shape[1:]), generator=agent.generator)
        for name, column in agent.experience.imagined.columns.items()
    }
    draws["ended"] = draws["ended"].round()
    agent.experience.imagined.add(draws)
    agent.value = terminal_value()
    agent.note(fitted_on=6, imagined_on=5, offline_updates=8, first_planned=2)
    # What is not finite is no number of a file.
    found = {"health/q": 1.5, "time/left": 3.0, "health/target_error": np.inf, "health/x": np.nan}
    agent.progress = agent.progress.with_health(found)
    agent.algorithm.num_timesteps = 7
    agent.noise.random(3)
    return agent


@pytest.mark.parametrize("first_planned", [None, 0, 2])
def test_every_part_comes_back(first_planned: int | None, tmp_path: Path) -> None:
    agent = rich()
    agent.note(first_planned=first_planned)
    agent.save(tmp_path / "a")
    found = PlanningAgent.load(tmp_path / "a", Still())
    assert found.settings == agent.settings
    assert (found.seed, found.num_timesteps) == (4, 7)
    assert found.progress == agent.progress
    assert found.progress == Progress(6, 5, 8, first_planned, (("health/q", 1.5),))
    assert found.experience.episodes == agent.experience.episodes > 1
    for mine, theirs in (
        (agent.experience.real, found.experience.real),
        (agent.experience.imagined, found.experience.imagined),
    ):
        assert theirs.written == mine.written > 0
        for name, column in mine.stored().items():
            assert torch.equal(theirs.stored()[name], column), name
    assert torch.equal(found.generator.get_state(), agent.generator.get_state())
    assert found.noise.bit_generator.state == agent.noise.bit_generator.state
    for name, value in agent.algorithm.policy.state_dict().items():
        assert torch.equal(found.algorithm.policy.state_dict()[name], value)
    assert_same_value(found.value, terminal_value())


def assert_same_value(found: Value | None, wanted: Value) -> None:
    assert found is not None
    for name in ("scale", "bounds", "pessimism"):
        assert getattr(found, name) == getattr(wanted, name)
    obs = 4.0 * torch.randn(50, 2, generator=torch.Generator().manual_seed(1))
    assert torch.equal(found(obs), wanted(obs))
    assert torch.equal(found.members(obs), wanted.members(obs))


@pytest.mark.parametrize(("kind", "settings"), [(MPC, MPCSettings()), (MBPO, MBPOSettings())])
def test_the_named_agents_write_the_same_kind_of_file(
    kind: Any, settings: Any, tmp_path: Path
) -> None:
    """Which the class of all of them reads; and each is of its own class again."""
    kind(Still(), seed=9).save(tmp_path / "a")
    assert load_checkpoint(tmp_path / "a", PLANNING_AGENT).kind == PLANNING_AGENT
    back, general = kind.load(tmp_path / "a", Still()), PlanningAgent.load(tmp_path / "a", Still())
    assert back.settings == settings
    assert vars(general.settings) == vars(back.settings)
    assert type(general.algorithm) is type(back.algorithm)
    assert back.seed == general.seed == 9


Damage = Callable[[dict[str, Any], dict[str, Any]], object]


def edited(section: str, value: Any) -> Damage:
    return lambda config, tensors: config.update({section: value})


def within(section: str, name: str, value: Any) -> Damage:
    return lambda config, tensors: config[section].update({name: value})


def setting(name: str, value: Any) -> Damage:
    return within("settings", name, value)


def counter(name: str, value: Any) -> Damage:
    return lambda config, tensors: config["algorithm"]["counters"].update({name: value})


def tensor(name: str, value: Tensor) -> Damage:
    def put(config: dict[str, Any], tensors: dict[str, Any]) -> None:
        assert name in tensors
        tensors[name] = value

    return put


def without(name: str) -> Damage:
    return lambda config, tensors: (config if name in config else tensors).pop(name)


def put_damage(path: Path, damage: Damage) -> None:
    sound = load_checkpoint(path, PLANNING_AGENT)
    config, tensors = dict(sound.config), dict(sound.tensors)
    damage(config, tensors)
    save_checkpoint(path, PLANNING_AGENT, tensors, config)


@pytest.mark.parametrize(
    "damage",
    [
        setting("planner_kind", "MPPI"),
        setting("planner_kind", "Adam"),
        setting("planner_kind", None),
        setting("planner", {"horizon": 0}),
        setting("planner", {"depth": 3}),
        setting("planner", 3),
        setting("imagination", {"particles": 0}),
        setting("imagination", 5),
        setting("hidden", 5),
        setting("method", "unheard of"),
        setting("learning_starts", "soon"),
        setting("surplus", 1),
        setting("members", 3),
        setting("proposals", -1),
        setting("proposals", "many"),
        setting("plan_share", 2.0),
        setting("real_share", "most"),
        setting("rollout", {"first": 0}),
        setting("branching", {"propagation": "sideways"}),
        setting("n_steps", 0),
        setting("fresh_every", 0),
        setting("warm_start", {"shrink": 2.0}),
        setting("warm_start", {"grow": 1.0}),
        setting("direct", 1),
        setting("value", 5),
        setting("value", "critics"),
        setting("value", {"discount": 1.0}),
        setting("value", {"depth": 3}),
        lambda config, tensors: config["settings"].pop("value"),
        lambda config, tensors: config["settings"].pop("planner"),
        edited("settings", []),
        edited("spaces", 3),
        edited("seed", "four"),
        edited("seed", -4),
        edited("rules", "termination"),
        edited("algorithm_class", 3),
        edited("algorithm_class", "os.system"),
        edited("algorithm_kwargs", []),
        edited("algorithm_kwargs", {"gama": 0.9}),
        edited("asked_again", ["policy_kwargs_of_old"]),
        edited("progress", 3),
        within("progress", "fitted_on", None),
        within("progress", "fitted_on", -1),
        within("progress", "imagined_on", 2.5),
        within("progress", "offline_updates", True),
        within("progress", "first_planned", "two"),
        within("progress", "health", 3),
        within("progress", "health", {"health/q": "high"}),
        within("progress", "health", {"health/q": None}),
        within("progress", "health", {"health/q": 10**400}),
        lambda config, tensors: config["progress"].pop("fitted_on"),
        edited("episodes", -1),
        edited("episodes", None),
        without("episodes"),
        edited("real_share", 1.5),
        edited("real_share", "most"),
        edited("real_written", 8),
        edited("real_written", -7),
        edited("imagined_written", "three"),
        without("real.reward"),
        without("imagined.ended"),
        tensor("real.t", torch.zeros(6, dtype=torch.int64)),
        tensor("real.obs", torch.zeros(7, 3)),
        tensor("real.action", torch.zeros(7, 2)),
        tensor("real.reward", torch.full((7,), torch.nan)),
        tensor("real.planned", torch.zeros(7, dtype=torch.int64)),
        edited("noise", {"bit_generator": "MT19937"}),
        edited("noise", {}),
        edited("numpy", {}),
        within("numpy", "state", {"key": [1, 2, 3], "pos": 2}),
        within("numpy", "state", {"key": [1] * 624, "pos": 1000}),
        within("numpy", "state", {"key": [-1] * 624, "pos": 2}),
        without("generator"),
        without("torch"),
        tensor("generator", torch.zeros(3, dtype=torch.uint8)),
        tensor("generator", torch.zeros(5056)),
        tensor("torch", torch.zeros(3, dtype=torch.uint8)),
        edited("model", 3),
        edited("model", {}),
        edited("algorithm", {}),
        edited("algorithm", {"counters": {"num_timesteps": "seven"}}),
        edited("algorithm", {"counters": {"surplus": 7}}),
        counter("surplus", 7),
        lambda config, tensors: config["algorithm"]["counters"].pop("_n_updates"),
        *(counter(name, -1) for name in ("num_timesteps", "_n_updates", "_episode_num")),
        *(counter(name, 2**62) for name in ("num_timesteps", "_n_updates", "_total_timesteps")),
        *(counter(name, 0) for name in ("actor_every", "target_update_interval", "batch_size")),
        *(counter("gamma", value) for value in (-0.1, 1.1, 1)),
        *(counter("tau", value) for value in (0.0, 1.1)),
        *(counter("reward_scale", value) for value in (0.0, -1.0)),
        edited("episodes", 1),
        tensor("real.ended", torch.full((7,), 0.5)),
        tensor("real.planned", torch.full((7,), 3.0)),
        tensor("imagined.ended", torch.full((3,), -1.0)),
        tensor("real.action", torch.full((7, 1), 1.001)),
        tensor("imagined.action", torch.full((3, 1), -1.001)),
        tensor("real.t", torch.full((7,), -1)),
        tensor("real.episode", torch.full((7,), 99)),
        edited("value", 3),
        edited("value", {}),
        within("value", "members", 3),
        within("value", "members", True),
        within("value", "members", 2.5),
        within("value", "hidden", [4]),
        within("value", "hidden", 4),
        within("value", "bounds", [1.0]),
        within("value", "scale", "large"),
        within("value", "pessimism", None),
        without("value.low"),
        without("value.inputs.shift"),
        tensor("value.high", torch.zeros(3)),
        tensor("value.low", torch.zeros(2, dtype=torch.int64)),
    ],
)
def test_damage_is_told(damage: Damage, tmp_path: Path) -> None:
    path = tmp_path / "agent"
    rich().save(path)
    put_damage(path, damage)
    with pytest.raises((CheckpointError, InvalidInputError)) as error:
        PlanningAgent.load(path, Still())
    assert "\n" not in str(error.value)
    if isinstance(error.value, CheckpointError):
        assert "agent: " in str(error.value)
    else:  # an argument that the class refuses
        assert "cannot be made" in str(error.value)


@pytest.fixture(scope="module")
def updated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an agent whose learner has made updates."""
    path = tmp_path_factory.mktemp("updated") / "agent"
    agent = rich()
    agent.algorithm.train(2, 4)
    agent.save(path)
    return path


def cut(tensors: dict[str, Any]) -> None:
    for name in tensors:
        if ".critic.optimizer." in name and name.endswith(".exp_avg"):
            tensors[name] = tensors[name].flatten()[:1]


FIRST = "algorithm.critic.optimizer.0"


@pytest.mark.parametrize(
    "damage",
    [
        lambda config, tensors: cut(tensors),
        tensor(f"{FIRST}.step", torch.ones(2)),
        tensor(f"{FIRST}.step", torch.tensor(1)),
        tensor(f"{FIRST}.step", torch.tensor(-1.0)),
        lambda config, tensors: tensors[f"{FIRST}.exp_avg_sq"].neg_(),
        lambda config, tensors: tensors[f"{FIRST}.exp_avg_sq"].fill_(torch.inf),
        lambda config, tensors: tensors.update(
            {f"{FIRST}.exp_avg": tensors[f"{FIRST}.exp_avg"].double()}
        ),
        lambda config, tensors: tensors.update({f"{FIRST}.surplus": torch.zeros(())}),
        lambda config, tensors: tensors.update(
            {"algorithm.critic.optimizer.99.step": torch.ones(())}
        ),
        without(f"{FIRST}.exp_avg_sq"),
        lambda config, tensors: [
            tensors.pop(n) for n in list(tensors) if n.startswith(f"{FIRST}.")
        ],
        lambda config, tensors: [tensors.pop(n) for n in list(tensors) if ".optimizer." in n],
    ],
)
def test_states_of_an_optimiser_that_do_not_fit_are_told(
    damage: Damage, updated: Path, tmp_path: Path
) -> None:
    """The fused Adam would write beyond their ends."""
    path = tmp_path / "agent"
    path.write_bytes(updated.read_bytes())
    assert PlanningAgent.load(path, Still()).algorithm._n_updates == 2
    put_damage(path, damage)
    with pytest.raises(CheckpointError, match=r"optimi[sz]er") as error:
        PlanningAgent.load(path, Still())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adamax])
@pytest.mark.parametrize("updates", [0, 1, 4])
def test_other_optimisers_and_those_that_have_not_begun_come_back(
    kind: Any, updates: int, tmp_path: Path
) -> None:
    """TD3's actor has no update yet where its critics have one."""
    networks = {"net_arch": [4], "optimizer_class": kind}
    kwargs = {"policy_kwargs": networks, "gamma": np.float64(0.9)}
    settings = PlanningSettings(hidden=(3,), members=1, planner=None, real_share=1.0, real_rows=40)
    agent = PlanningAgent(Still(), settings, algorithm=TD3, algorithm_kwargs=kwargs)
    agent.experience.extend(some_steps(7))
    if updates:
        agent.algorithm.train(updates, 4)
    agent.save(tmp_path / "a")
    again = {"policy_kwargs": networks}
    found = PlanningAgent.load(tmp_path / "a", Still(), algorithm_kwargs=again)
    assert found.algorithm.gamma == 0.9
    mine, theirs = (a.algorithm.get_parameters() for a in (agent, found))
    for part in ("actor.optimizer", "critic.optimizer"):
        torch.testing.assert_close(theirs[part]["state"], mine[part]["state"], rtol=0.0, atol=0.0)


def test_what_it_was_made_with_stays(tmp_path: Path) -> None:
    """Half of the agent would go by the old argument, half by the new one."""
    path = tmp_path / "agent"
    rich().save(path)
    for name, value, held in (
        ("gamma", 0.5, 0.99),
        ("batch_size", 32, 4),
        ("tau", np.ones(2), 0.005),
    ):
        said = (
            rf"was made with {name}={held}; leave it out of algorithm_kwargs, or make a new agent"
        )
        with pytest.raises(CheckpointError, match=said):
            PlanningAgent.load(path, Still(), algorithm_kwargs={name: value})
    same = {"batch_size": 4, "gamma": 0.99, "policy_kwargs": {"net_arch": [4]}}
    assert PlanningAgent.load(path, Still(), algorithm_kwargs=same).algorithm.batch_size == 4


def test_an_object_that_is_given_again_is_the_one_of_now(tmp_path: Path) -> None:
    """Also where what the learner makes of it is a number."""
    kwargs = {"policy_kwargs": {"net_arch": [4]}, "target_entropy": np.float32(-1.0)}
    settings = PlanningSettings(planner=None, real_share=1.0, real_rows=40)
    PlanningAgent(Still(), settings, algorithm_kwargs=kwargs).save(tmp_path / "a")
    other = {"target_entropy": np.float32(-2.0)}
    learner: Any = PlanningAgent.load(tmp_path / "a", Still(), algorithm_kwargs=other).algorithm
    assert learner.target_entropy == -2.0


def put_wider_start(config: dict[str, Any], tensors: dict[str, Any]) -> None:
    """A model of one more action."""
    small: dict[str, Any] = {"members": 1, "hidden": (3, 2)}
    policy = GaussianPolicy(4, 3, generator=torch.Generator().manual_seed(0), **small)
    inputs, targets = (
        Normaliser(torch.zeros(n), torch.ones(n), torch.zeros(n) > 0) for n in (4, 3)
    )
    own, facts = model_to_checkpoint(DynamicsModel(Regression(policy, inputs, targets), 2))
    config["fit_start"] = {**facts, "fits": 1}
    tensors.update({f"fit_start.{name}": value for name, value in own.items()})


@pytest.mark.parametrize(
    "damage",
    [
        within("fit_start", "fits", 2**31),
        within("fit_start", "direct", True),
        setting("members", 3),
        edited("fit_start", {}),
        put_wider_start,
    ],
)
def test_a_start_of_fits_that_does_not_fit_is_told(damage: Damage, tmp_path: Path) -> None:
    path = tmp_path / "agent"
    agent = rich()
    settings = replace(agent.settings, method="mse", fresh_every=3, schedule=Schedule(steps=5))
    agent.settings = settings
    agent.experience.extend(some_steps(60))
    agent.refit()
    agent.save(path)
    found = PlanningAgent.load(path, Still()).fit_start
    assert found is not None
    assert found.fits == 1
    put_damage(path, damage)
    with pytest.raises(CheckpointError):
        PlanningAgent.load(path, Still())


def test_a_learner_alone_asks_for_no_rules(tmp_path: Path) -> None:
    """It has no model that would use them."""
    settings = MBPOSettings(real_share=1.0)
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [4]}}
    rules: dict[str, Any] = {"termination": lambda obs, action, next_obs: obs[..., 0] > 9.0}
    MBPO(gym.make("Pendulum-v1"), settings, algorithm_kwargs=kwargs, **rules).save(tmp_path / "a")
    assert MBPO.load(tmp_path / "a", gym.make("Pendulum-v1")).settings == settings
    MBPO(gym.make("Pendulum-v1"), algorithm_kwargs=kwargs, **rules).save(tmp_path / "b")
    with pytest.raises(CheckpointError, match="known termination"):
        MBPO.load(tmp_path / "b", gym.make("Pendulum-v1"))
