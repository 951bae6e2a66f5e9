"""train with mbpo and sac, and offline, end to end on a tiny task."""

from __future__ import annotations

import ast
import itertools
import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.common.experience import RandomBehaviour, collect
from agents.mbpo import MBPO
from envs.make import make_env
from envs.offline import save_minari
from mbrl_bilevel.errors import InvalidInputError

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))
sys.path.append(str(Path(__file__).resolve().parent))  # where my_task.py is

import offline  # noqa: E402
import train  # noqa: E402
from _run import launch  # noqa: E402
from _train_args import USED_BY  # noqa: E402

OWN = ["--import-module", "my_task", "--env-id", "Line-v0", "--quiet"]
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


def test_the_help_of_an_option_says_which_agents_use_it() -> None:
    """The table that refuses an option is the one that users read."""
    source = (SCRIPTS / "_train_args.py").read_text()
    (found,) = (n for n in ast.parse(source).body if isinstance(n, ast.ClassDef))
    said = {}
    for field, text in itertools.pairwise(found.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name)
            users = re.match(
                r"Of (mpc|mbpo|sac)(?: and (mpc|mbpo|sac))?: ", ast.literal_eval(text.value)
            )
            if users:
                said[field.target.id] = tuple(name for name in users.groups() if name)
    assert said == USED_BY


@pytest.mark.parametrize("agent", ["mpc", "mbpo", "sac"])
def test_every_option_of_an_agent_reaches_it_and_no_other_is_taken(agent: Any) -> None:
    """Whatever its table says: an option that is taken changes what the agent is made of."""
    others: dict[str, Any] = {
        **{"model": "nll", "termination": "a:b", "reward": "known", "planner": "cem"},
        **{"propagation": "ts1", "precision": "bfloat16", "elites": 1, "updates_per_step": 3},
        **{
            "rollout_length": (2, 3),
            "rollout_growth": (4, 5),
            "hidden": (7,),
            "policy_hidden": (7,),
        },
        **{"add_middle": True, "no_value": True, "fixed_temperature": True, "members": 1},
        **{"noise_beta": 1.0, "pessimism": 1.0, "penalty": 1.0, "exploration": 0.5, "tau": 0.5},
        **{"real_share": 0.5, "initial_temperature": 0.5, "learning_rate": 0.5, "particles": 10},
        **{"policy_learning_rate": 0.5, "device": "cpu"},
    }

    def made(args: train.Args) -> Any:
        parts = [args.termination, args.reward]
        if agent == "mpc":
            return [*parts, args.device, args.mpc_settings()]
        return [*parts, args.mbpo_settings(), args.algorithm_kwargs()]

    plain = train.Args(agent=agent)
    for name, users in USED_BY.items():
        changed: Any = {name: others.get(name, 13)}
        if agent in users:
            assert made(replace(plain, **changed)) != made(plain), name
        else:
            with pytest.raises(
                InvalidInputError, match=f"--{name.replace('_', '-')} is of --agent"
            ):
                replace(plain, **changed)


def test_the_temperature_is_learned_or_fixed() -> None:
    learned = train.Args(agent="sac", initial_temperature=0.1)
    assert learned.algorithm_kwargs()["ent_coef"] == "auto_0.1"
    fixed = replace(learned, fixed_temperature=True)
    env = make_env("Line-v0", import_module="my_task")
    agent = MBPO(env, fixed.mbpo_settings(), algorithm_kwargs=fixed.algorithm_kwargs())
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

    monkeypatch.setattr(offline, "learn", learned)
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
            "--learning-starts must be at least 40",
        ),
        (train, ["--agent", "mbpo", "--model", "bilvel"], "--model: unknown method 'bilvel'"),
        (train, ["--agent", "sac", "--penalty", "3"], "--penalty is of --agent mbpo, sac would"),
        (train, ["--agent", "mbpo", "--planner", "cem"], "--planner is of --agent mpc, mbpo would"),
        (
            train,
            ["--agent", "sac", "--model", "nll"],
            "--model is of --agent mpc and mbpo, sac would",
        ),
        (
            train,
            ["--fixed-temperature"],
            "--fixed-temperature is of --agent mbpo and sac, mpc would",
        ),
        (train, ["--rollout-growth", "0", "9"], "--rollout-growth is of --agent mbpo, mpc would"),
        (train, ["--agent", "sac", "--policy-learning-rate", "nan"], "--policy-learning-rate"),
        (
            train,
            ["--agent", "sac", "--env-id", "CartPole-v1"],
            "--env-id 'CartPole-v1': discrete actions are for --agent mpc",
        ),
        (train, ["--agent", "sac", "--steps", "250"], "(250), or nothing is learned; got 250"),
        (train, ["--agent", "sac", "--initial-temperature", "1e-9"], "must be at least 1e-8"),
        (
            train,
            ["--agent", "mbpo", "--rollouts-per-step", "10000", "--imagine-every", "1001"],
            "--rollouts-per-step times --imagine-every must be at most 10,000,000; got 10,010,000",
        ),
        (
            train,
            ["--planner", "mppi", "--noise-beta", "1"],
            "--noise-beta is of --planner icem, mppi would ignore it",
        ),
        (
            train,
            ["--planner", "random", "--add-middle"],
            "--add-middle is of --planner icem and cem, random would ignore it",
        ),
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
        launch(script.Args, script.main, [*options, "--quiet", "--out", str(tmp_path / "run")])
    err = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert "\n" not in err
    assert told in err
