"""train with mbpo and sac, and offline, end to end on a tiny task."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.common.experience import RandomBehaviour, collect
from agents.mbpo import MBPO
from agents.planners import PLANNERS
from agents.planning_agent.settings import PlanningSettings
from envs.datasets.offline import save_minari
from envs.tasks.make import make_env
from mbrl_bilevel.base.errors import InvalidInputError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))
sys.path.append(str(Path(__file__).resolve().parent))  # where my_task.py is

import offline  # noqa: E402
import train  # noqa: E402
from work.train_agents import build  # noqa: E402
from work.train_one import chosen_reward  # noqa: E402

from mbrl_bilevel.studies.launching import launch  # noqa: E402

#: No bar, no table and no page.
QUIET = ["--quiet", "--no-report"]

OWN = ["--import-module", "my_task", "--env-id", "Line-v0", *QUIET]
NET = ["--members", "2", "--hidden", "16", "--policy-hidden", "8", "--train-steps", "40"]
SAC = [
    *[*OWN, "--steps", "120", "--eval-every", "60", "--eval-episodes", "2", "--policy-hidden", "8"],
    *["--learning-starts", "40", "--updates-per-step", "2", "--batch-size", "16"],
]
MBPO_TOO = [
    *["--model", "nll", "--members", "2", "--hidden", "16", "--train-steps", "40"],
    *["--refit-every", "40", "--imagine-every", "20", "--rollouts-per-step", "4"],
]


def metrics(out: Path) -> Any:
    found = json.loads((out / "metrics.json").read_text())
    for row in [found, *found.get("rows", [])]:
        del row["wall_seconds" if "wall_seconds" in row else "data"]
    found.pop("peak_memory_mb", None)
    for row in found.get("returns", []):
        del row["cpu_seconds"]
    return found


@pytest.mark.parametrize("agent", ["mbpo", "sac"])
def test_it_learns_saves_and_goes_on_as_if_never_stopped(agent: str, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    options = [*SAC, "--agent", agent, *(MBPO_TOO if agent == "mbpo" else [])]
    launch(train.Args, train.main, [*options, "--out", str(whole)])
    found = metrics(whole)
    assert [point["step"] for point in found["returns"]] == [60, 120]
    assert found["env_steps"] == 120
    # Stopped right after the first evaluation: the run ends at 60 steps, then is asked for 120.
    launch(train.Args, train.main, [*options, "--steps", "60", "--out", str(cut)])
    for name in ("metrics.json", "summary.json"):
        (cut / name).unlink()
    config = json.loads((cut / "config.json").read_text())
    config["args"]["steps"] = 120
    (cut / "config.json").write_text(json.dumps(config))
    launch(train.Args, train.main, [*options, "--out", str(cut), "--resume"])
    assert metrics(cut) == found


def test_a_policy_is_learned_from_a_data_set_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    env = make_env("Line-v0", import_module="my_task")
    space: Any = env.action_space
    random = RandomBehaviour(space, np.random.default_rng(0))
    data = collect(env, random, 250, seed=0)
    save_minari(data, "test/line-v0", env)
    options = [*OWN, *NET, "--minari", "test/line-v0", "--updates", "30", "--seeds", "1"]
    options += ["--eval-episodes", "2", "--policies", "clone", "mopo"]
    launch(offline.Args, offline.main, [*options, "--out", str(tmp_path / "a")])
    found = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert [(row["policy"], row["seed"]) for row in found["rows"]] == [("clone", 0), ("mopo", 0)]
    whole = np.bincount(data.episode, data.reward)[:12]  # the last one was cut by the collector
    assert found["data"]["whole_episodes"] == 12
    assert found["data"]["mean"] == pytest.approx(whole.mean(), rel=1e-5)
    assert found["data"]["best"] == pytest.approx(whole.max(), rel=1e-5)
    kept = sorted(path.name for path in (tmp_path / "a" / "checkpoints").iterdir())
    assert kept == ["mopo-0.safetensors"]  # a clone is only the baseline
    policy = MBPO.load(tmp_path / "a" / "checkpoints" / kept[0], env)
    assert env.action_space.contains(policy.predict(np.zeros(2))[0])
    launch(offline.Args, offline.main, [*options, "--out", str(tmp_path / "b")])
    assert metrics(tmp_path / "b") == metrics(tmp_path / "a")


#: Another value than the default of every option that is not a number of which 13 would do.
OTHERS: dict[str, Any] = {
    **{"look_ahead_lambda": 0.5, "screen": 0.5},
    **{"method": "nll", "termination": "a:b", "reward": "known", "planner": "cem", "device": "cpu"},
    **{"propagation": "ts1", "pessimism": 0.25, "precision": "bfloat16", "elites": 1, "members": 1},
    **{"rollout_length": (2, 3), "rollout_growth": (4, 5), "rollout_cut": 0.5, "penalty": 1.0},
    **{"hidden": (7,), "policy_hidden": (7,), "add_middle": True, "n_steps": 3},
    **{"fixed_temperature": True, "initial_temperature": 0.5, "noise_beta": 1.0, "tau": 0.5},
    **{"exploration": 0.5, "plan_share": 0.75, "learning_rate": 0.5, "policy_learning_rate": 0.5},
    **{"particles": 10, "replan_every": 3, "layer_norm": False, "dropout": 0.5, "gamma": 0.5},
    **{"shrink": 0.5, "perturb": 0.5, "warm_part": 0.75, "direct": True},
    **{"value": "fitted", "value_discount": 0.5, "value_pessimism": 0.5},
    **{"schedule_weight_decay": 0.5, "planner_momentum": 0.5, "planner_elite_fraction": 0.5},
    **{"planner_initial_std": 0.25, "planner_keep_fraction": 0.5, "planner_decay": 2.0},
    **{"planner_add_mean": False, "planner_execute_best": False, "planner_std": 0.25},
    **{"planner_temperature": 0.5, "imagination_sample": True, "branching_sample": False},
    **{"branching_propagation": "tsinf", "branching_uncertainty": "disagreement"},
    **{"least_real_share": 0.25, "critics": 3, "target_critics": 1, "imitation": 0.5, "horizon": 7},
}


@pytest.mark.parametrize("agent", ["planning", "mpc", "mbpo", "sac"])
def test_every_option_of_an_agent_reaches_it_and_no_other_is_taken(agent: Any) -> None:
    """An option that is taken changes what the agent is made of; every other is refused."""
    env = make_env("Line-v0", import_module="my_task")
    # Presets have nothing imagined; "auto" lets the options of imagined rows count.
    more: dict[str, Any] = {"real_share": "auto"} if agent == "planning" else {}
    if agent != "sac":
        more["fresh_every"] = 2  # fits that go on let the options of how they do count
    plain = train.Args(agent=agent, env_id="Line-v0", **more)
    taken = {"planning": {"model", "plan", "imagined", "learner"}, "mpc": {"model", "plan"}}
    taken |= {"mbpo": {"model", "imagined", "learner"}, "sac": {"learner"}}

    def made(args: train.Args) -> Any:
        return [args.termination, args.device, build(args, env).resolved()]

    optional = [field for field in fields(train.Args) if field.metadata.get("parts")]
    assert len(optional) > 60
    for field in optional:
        changed: Any = {field.name: OTHERS.get(field.name, 13)}
        for place in field.metadata.get("places", ()):
            if place[0] == "planner" and len(place) > 1 and "plan" in taken[agent]:
                kinds = [name for name, kind in PLANNERS.items() if hasattr(kind, place[1])]
                changed["planner"] = kinds[0]  # of the planners, one that has it
        if field.name == "propagation":
            changed |= {"pessimism": 0.0, "screen": 1.0}
        if agent == "mpc" and field.name in ("value", "imagination_sample"):
            changed = {"value": "none"} if field.name == "value" else {field.name: False}
        if set(field.metadata["parts"]) <= taken[agent]:
            base = replace(
                plain, **{n: v for n, v in changed.items() if n == "planner" != field.name}
            )
            assert made(replace(plain, **changed)) != made(base), field.name
        else:
            with pytest.raises(
                InvalidInputError, match=f"--{field.name.replace('_', '-')}: --agent"
            ):
                build(replace(plain, **changed), env)


def test_an_option_wins_over_the_preset_even_where_it_is_the_default() -> None:
    env = make_env("Pendulum-v1")
    own = build(train.Args(env_id="Pendulum-v1"), env)
    defaults = PlanningSettings()
    assert own.settings.learning_starts != defaults.learning_starts  # the preset says otherwise
    asked = train.Args(env_id="Pendulum-v1", learning_starts=defaults.learning_starts)
    assert build(asked, env).settings.learning_starts == defaults.learning_starts
    assert build(replace(asked, preset="none"), env).settings == defaults


def test_what_the_run_went_by_stands_in_its_config(tmp_path: Path) -> None:
    options = [*SAC, "--agent", "planning", *NET[:4], "--train-steps", "40", "--refit-every", "60"]
    launch(train.Args, train.main, [*options, "--particles", "2", "--out", str(tmp_path / "a")])
    found = json.loads((tmp_path / "a" / "config.json").read_text())["resolved"]
    assert found["learner_class"] == "FastSAC"
    assert found["settings"]["updates_per_step"] == 2
    assert found["settings"]["planner"]["kind"] == "icem"
    assert found["learner"]["policy_kwargs"]["net_arch"] == [8]


def test_a_resume_that_would_go_by_other_values_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*SAC, "--agent", "sac", "--steps", "60", "--out", str(tmp_path / "a")]
    launch(train.Args, train.main, options)
    (tmp_path / "a" / "metrics.json").unlink()
    config = json.loads((tmp_path / "a" / "config.json").read_text())
    config["resolved"]["settings"]["imagination"]["precision"] = "bfloat16"
    before = json.dumps(config)
    (tmp_path / "a" / "config.json").write_text(before)
    with pytest.raises(SystemExit) as stop:
        launch(train.Args, train.main, [*options, "--resume"])
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n")) == (2, 1)
    assert 'went by settings.imagination.precision "bfloat16", not "float32", which' in err
    assert "or give another --out" in err
    assert (tmp_path / "a" / "config.json").read_text() == before


def test_particles_follow_the_members_unless_they_are_given() -> None:
    env = make_env("Line-v0", import_module="my_task")

    def particles(**options: Any) -> int:
        return build(train.Args(env_id="Line-v0", **options), env).settings.imagination.particles

    assert particles() == particles(members=1) == 5
    assert particles(members=3) == 3
    assert particles(elites=2) == 2
    assert particles(members=3, particles=6) == 6


def test_a_reward_of_the_preset_that_the_task_does_not_show() -> None:
    env = make_env("Pendulum-v1")
    asked = train.Args(env_id="Pendulum-v1", preset="HalfCheetah-v5")
    with pytest.raises(InvalidInputError, match=r"HalfCheetah-v5 asks for .* give --reward"):
        chosen_reward(asked, build(asked, env), env)
    for more in ({"reward": "learned"}, {"agent": "sac"}):
        args = replace(asked, **more)  # type: ignore[arg-type]
        assert chosen_reward(args, build(args, env), env) is None


def test_the_temperature_is_learned_or_fixed() -> None:
    env = make_env("Line-v0", import_module="my_task")
    learned = train.Args(agent="sac", initial_temperature=0.1)
    assert build(learned, env).learner_kwargs["ent_coef"] == "auto_0.1"
    agent = build(replace(learned, fixed_temperature=True), env).make(env)
    assert agent.algorithm.ent_coef_optimizer is None  # type: ignore[attr-defined]
    assert float(agent.algorithm.ent_coef_tensor) == pytest.approx(0.1)  # type: ignore[attr-defined]


def test_offline_tells_before_it_learns_what_does_not_fit_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    env = make_env("Line-v0", import_module="my_task")
    random = RandomBehaviour(env.action_space, np.random.default_rng(0))  # type: ignore[arg-type]
    save_minari(collect(env, random, 50, seed=0), "test/line-v0", env)

    def learned(*args: object) -> None:
        raise AssertionError("a cell was begun")

    monkeypatch.setattr("work.offline.learn", learned)
    for options, told in (
        (
            ["--env-id", "Pendulum-v1"],
            "--env-id 'Pendulum-v1' has 3 observation and 1 action dimensions, --minari "
            "'test/line-v0' has 2 and 1;",
        ),
        (["--env-id", "CartPole-v1"], "--env-id 'CartPole-v1': the action space must be"),
        (["--termination", "my_task:of"], "--termination: rule 'my_task:of': module 'my_task'"),
        (["--termination", "my_task"], "--termination: rule 'my_task'"),
    ):
        asked = [*OWN, "--minari", "test/line-v0", *options, "--out", str(tmp_path / "run")]
        with pytest.raises(SystemExit) as stop:
            launch(offline.Args, offline.main, asked)
        assert stop.value.code == 2
        assert (err := capsys.readouterr().err).startswith(f"error: {told}")
        assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("script", "options", "told"),
    [
        (train, ["--agent", "mpbo"], "--agent"),
        (train, ["--agent", "mbpo", "--updates-per-step", "0"], "--updates-per-step"),
        (train, ["--agent", "mbpo", "--real-share", "1.5"], "--real-share must be"),
        (train, ["--agent", "mbpo", "--rollout-length", "1", "2000"], "--rollout-length must be"),
        (train, ["--agent", "mbpo", "--rollout-growth", "5", "5"], "--rollout-growth must be"),
        (
            train,
            ["--agent", "mbpo", "--learning-starts", "39"],
            "error: --learning-starts must be at least 40",
        ),
        (train, ["--agent", "mbpo", "--model", "bilvel"], "--method: unknown method 'bilvel'"),
        (
            train,
            ["--agent", "sac", "--penalty", "3"],
            "--penalty: --agent sac imagines no rows and would ignore it",
        ),
        (
            train,
            ["--agent", "mbpo", "--planner", "cem"],
            "--planner: --agent mbpo makes no plans and would ignore it",
        ),
        (
            train,
            ["--agent", "sac", "--planner", "cem"],
            "--planner: --agent sac makes no plans and would ignore it",
        ),
        (
            train,
            ["--agent", "sac", "--real-share", "0.5"],
            "--real-share: --agent sac imagines no rows and would ignore it",
        ),
        (train, ["--agent", "mpc", "--planner", "none"], "--planner none: mpc has nothing else"),
        (
            train,
            ["--planner", "none", "--horizon", "3", "--real-share", "0.5"],
            "--horizon: --agent planning makes no plans and would ignore it",
        ),
        (
            train,
            ["--agent", "sac", "--model", "nll"],
            "--method: --agent sac has no model and would ignore it",
        ),
        (
            train,
            ["--agent", "mpc", "--fixed-temperature"],
            "--fixed-temperature: --agent mpc has no learner and would",
        ),
        (
            train,
            ["--agent", "mpc", "--rollout-growth", "0", "9"],
            "--rollout-growth: --agent mpc imagines no rows and would",
        ),
        (train, ["--agent", "sac", "--policy-learning-rate", "nan"], "--policy-learning-rate"),
        (
            train,
            ["--agent", "sac", "--env-id", "CartPole-v1"],
            "--env-id 'CartPole-v1': sac is for continuous actions; give --learner dqn",
        ),
        (train, ["--agent", "sac", "--steps", "250"], "(250), or nothing is learned; got 500"),
        (train, ["--agent", "sac", "--initial-temperature", "1e-9"], "must be at least 1e-8"),
        (
            train,
            ["--agent", "mbpo", "--rollouts-per-step", "10000", "--imagine-every", "1001"],
            "--rollouts-per-step times --imagine-every must be at most 10,000,000; got 10,010,000",
        ),
        (
            train,
            ["--agent", "mpc", "--value", "critic"],
            "--value critic: --agent mpc has no critics",
        ),
        (
            train,
            ["--planner", "mppi", "--add-middle"],
            "planner MPPI has no 'add_middle'",
        ),
        (
            train,
            ["--planner", "random", "--add-middle"],
            "planner RandomShooting has no 'add_middle'",
        ),
        (train, ["--agent", "mpc", "--proposals", "5"], "--proposals: --agent mpc has no learner"),
        (train, ["--agent", "mpc", "--plan-share", "0.3"], "--plan-share: --agent mpc has no lea"),
        (
            train,
            ["--agent", "mpc", "--preset", "Reacher-v5"],
            "--preset is of --agent planning and",
        ),
        (train, ["--agent", "mbpo", "--preset", "Reacher-v5"], "sac, mbpo would ignore it"),
        (
            train,
            ["--planner", "none", "--imitation", "1"],
            "--imitation: --agent planning makes no",
        ),
        (
            train,
            ["--plan-share", "0", "--exploration", "0.5"],
            "--exploration: with --plan-share 0",
        ),
        (
            train,
            ["--planner", "cem", "--planner-std", "1"],
            "--planner-std: planner CEM has no 'std'",
        ),
        (
            train,
            ["--value", "none", "--value-width", "8"],
            "--value-width: with --value none no value is",
        ),
        (train, ["--train-steps", "0"], "--train-steps must be an int from 1 to"),
        (train, ["--value-steps", "0"], "--value-steps must be an int from 1 to"),
        (train, ["--propagation", "ts1"], 'error: --pessimism needs propagation "tsinf"'),
        (train, ["--target-critics", "0"], "--target-critics must be at least 1"),
        (train, ["--target-critics", "3"], "--target-critics must be at most --critics (2); got 3"),
        (train, ["--dropout", "1"], "--dropout must be below 1"),
        (
            train,
            ["--learner", "td3", "--initial-temperature", "0.1"],
            "--initial-temperature is of --learner fast-sac, sac, tqc and crossq, TD3 would ignore",
        ),
        (
            train,
            ["--learner", "dqn", "--env-id", "CartPole-v1", "--fixed-temperature"],
            "--fixed-temperature is of --learner fast-sac, sac, tqc and crossq, DQN would ignore",
        ),
        (train, ["--learner", "crossq", "--tau", "0.1"], "CrossQ would ignore it: leave it out"),
        (
            train,
            ["--members", "3", "--particles", "5"],
            "--particles must be a multiple of --members (3); got 5",
        ),
        (train, ["--elites", "0"], "--elites must be an int from 1 to 100,000; got 0"),
        (train, ["--elites", "7"], "error: --elites must be at most the 5 members; got 7"),
        (train, ["--real-share", "x"], "--real-share: 'x' is no number; give one from 0 to 1, or"),
        (train, ["--noise-beta", "nan"], "--noise-beta must be finite and at least 0"),
        (train, ["--exploration", "1001"], "--exploration must be from 0 to 1000"),
        (offline, ["--minari", "none-v0"], "error: --minari: Minari data set 'none-v0'"),
        (offline, ["--minari", "no name"], "error: --minari: Minari data set 'no name'"),
        (offline, ["--minari", "none-v0", "--penalty", "-1"], "--penalty"),
        (offline, ["--minari", "none-v0", "--policies", "bc"], "--policies"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    script: Any, options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        launch(script.Args, script.main, [*options, *QUIET, "--out", str(tmp_path / "run")])
    err = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert "\n" not in err
    assert told in err
