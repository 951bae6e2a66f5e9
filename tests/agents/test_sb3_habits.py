"""What the users of Stable-Baselines3 type by habit: seeds, counts, runs that are logged, callbacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3 import SAC
from stable_baselines3.common.callbacks import (
    CheckpointCallback,
    EvalCallback,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.monitor import Monitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import ICEM, MBPO, MPC, MPCSettings, PlanningAgent
from envs import make_env
from mbrl_bilevel import Imagination, Schedule
from mbrl_bilevel.base.errors import InvalidInputError

# Models of a few gradient steps are poor ones, and runs end before there is any.
pytestmark = pytest.mark.filterwarnings(
    "ignore:after .* steps the model", "ignore:learn", "ignore:rich is experimental"
)

#: One that never comes to a model, which no habit here depends on.
EARLY: dict[str, Any] = {"members": 2, "imagination": Imagination(particles=2)}
FITTED: dict[str, Any] = EARLY | {
    "method": "mse",
    "hidden": (8,),
    "schedule": Schedule(steps=10),
    "planner": ICEM(horizon=2, population=8, iterations=1),
    "learning_starts": 50,
    "refit_every": 50,
    "value": None,
}
TASK = "Reacher-v5"  # episodes of 50 steps


def early(**more: Any) -> MPC:
    return MPC(make_env(TASK), **EARLY, **more)


def test_fields_of_the_settings_are_arguments() -> None:
    env = make_env(TASK)
    assert MPC(env, method="nll", seed=0).settings == MPCSettings(method="nll")
    base = MPCSettings(members=1, refit_every=70)
    assert MPC(env, base, method="mse").settings == MPCSettings("mse", members=1, refit_every=70)
    assert base.method == "bilevel"
    preset, changed = (
        PlanningAgent(env).settings,
        PlanningAgent(env, members=np.int64(5), hidden=(8,)).settings,
    )
    assert changed.hidden == (8,)
    assert type(changed.members) is int
    assert (changed.planner, changed.learning_starts) == (preset.planner, preset.learning_starts)
    with pytest.raises(
        InvalidInputError, match=r"^unknown argument 'metod': did you mean 'method'\?"
    ):
        MPC(env, metod="nll")
    with pytest.raises(
        InvalidInputError, match=r"'learning_rate'.* learner go into algorithm_kwargs$"
    ):
        PlanningAgent(env, learning_rate=1e-3)
    with pytest.raises(
        InvalidInputError, match=r"^unknown method 'bilvel': did you mean 'bilevel'"
    ):
        MPC(env, method="bilvel")


def test_a_seed_of_none_is_drawn_and_numpys_is_plain() -> None:
    drawn = [early(seed=None).seed for _ in range(4)]
    assert len(set(drawn)) == 4
    assert all(type(seed) is int and 0 <= seed < 2**32 for seed in drawn)
    same = [early(seed=seed).learn(9).experience.transitions() for seed in (7, np.int64(7))]
    assert np.array_equal(same[0].obs, same[1].obs)
    assert np.array_equal(same[0].action, same[1].action)
    assert type(early(seed=np.uint8(7)).seed) is int


def test_a_drawn_seed_is_kept_in_the_file(tmp_path: Path) -> None:
    agent = early(seed=None)
    agent.save(tmp_path / "agent")
    assert MPC.load(tmp_path / "agent", make_env(TASK)).seed == agent.seed


@pytest.mark.parametrize("steps", [12, 1.2e1, np.int32(12), np.float32(12.0)])
def test_counts_may_be_whole_floats_and_numpys(steps: Any) -> None:
    agent = early().learn(steps, log_interval=np.int64(1), until=2.4e1)
    assert agent.num_timesteps == 12
    assert type(agent.num_timesteps) is int
    assert agent.learn(steps, log_interval=None).num_timesteps == 24


@pytest.mark.parametrize("steps", [0, 1.5, np.inf, np.nan, True, np.bool_(True), "12", None])
def test_other_counts_are_refused(steps: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"^total_timesteps must be an int from 1"):
        early().learn(steps)
    with pytest.raises(InvalidInputError, match=r"^log_interval must be an int from 1"):
        early().learn(1, log_interval=steps if steps is not None else 0)


def test_the_arguments_of_learn_stand_in_the_order_of_sb3(capfd: Any) -> None:
    """(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)."""
    agent = early().learn(10)
    agent.learn(5, None, 1, "name", True, True)
    assert agent.num_timesteps == 5
    assert "5/5" in capfd.readouterr().err


def steps_logged(folder: Path) -> list[int]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return sorted(event.step for event in events.Scalars("rollout/ep_len_mean"))


def test_each_run_logs_in_a_folder_of_its_own_as_in_sb3(tmp_path: Path) -> None:
    for log, make in (
        ("ours", early),
        ("theirs", lambda **more: SAC("MlpPolicy", make_env(TASK), **more)),
    ):
        folder = tmp_path / log
        first = make(tensorboard_log=str(folder))
        assert not folder.exists()  # nothing is logged yet
        name = "MPC" if log == "ours" else "SAC"
        first.learn(100, log_interval=1, tb_log_name=name)
        first.learn(50, log_interval=1, reset_num_timesteps=False, tb_log_name=name)
        second = make(tensorboard_log=str(folder))
        second.learn(50, log_interval=1, tb_log_name=name)
        second.learn(50, log_interval=1, tb_log_name=name, reset_num_timesteps=True)
        second.learn(50, log_interval=1, tb_log_name="other", reset_num_timesteps=True)
        for agent in (first, second):
            agent.logger.close()
        found = {path.name.replace(name, "run"): steps_logged(path) for path in folder.iterdir()}
        assert found == {"run_1": [50, 100, 150], "run_2": [50], "run_3": [50], "other_1": [50]}


def test_a_run_is_called_by_the_class_and_a_loaded_agent_goes_on_in_it(tmp_path: Path) -> None:
    agent = early(tensorboard_log=tmp_path / "log").learn(50, log_interval=1)
    agent.save(tmp_path / "agent")
    agent.logger.close()
    back = MPC.load(tmp_path / "agent", make_env(TASK), tensorboard_log=tmp_path / "log")
    back.learn(50, log_interval=1).logger.close()
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["MPC_1"]
    assert steps_logged(tmp_path / "log" / "MPC_1") == [50, 100]
    # Where there is no run to go on with, SB3 would begin with MPC_0.
    back = MPC.load(tmp_path / "agent", make_env(TASK), tensorboard_log=tmp_path / "new")
    back.learn(50, log_interval=1).logger.close()
    assert steps_logged(tmp_path / "new" / "MPC_1") == [100]


def test_what_is_learned_offline_is_logged(tmp_path: Path) -> None:
    data = early().learn(60).experience.transitions()
    kwargs = {"policy_kwargs": {"net_arch": [8]}, "batch_size": 8}
    agent = MBPO(
        make_env(TASK),
        **(FITTED | {"planner": None}),
        algorithm_kwargs=kwargs,
        tensorboard_log=tmp_path,
    )
    agent.learn_offline(1e1, data)
    agent.logger.dump(0)
    agent.logger.close()
    events = EventAccumulator(str(tmp_path / "MBPO_1"))
    events.Reload()
    assert np.isfinite(events.Scalars("model/held_out")[0].value)


def test_a_logger_of_the_users_own_is_used_throughout(tmp_path: Path) -> None:
    class Kept(KVWriter):
        def __init__(self) -> None:
            self.rows: list[dict[str, Any]] = []

        def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
            self.rows.append({"step": step, **key_values})

        def close(self) -> None: ...

    kept = Kept()
    agent = early(tensorboard_log=tmp_path, verbose=1)
    agent.set_logger(Logger(None, [kept]))
    agent.learn(100, log_interval=1).learn(50, log_interval=1, tb_log_name="more")
    assert [row["step"] for row in kept.rows] == [50, 100, 150]
    assert kept.rows[0]["rollout/ep_len_mean"] == 50
    assert not list(tmp_path.iterdir())


def test_verbose_writes_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    early(verbose=1).learn(50, log_interval=1)
    assert "ep_rew_mean" in capfd.readouterr().out
    early().learn(50, log_interval=1)
    assert capfd.readouterr().out == ""


def test_callbacks_read_the_locals_of_sb3(capfd: pytest.CaptureFixture[str]) -> None:
    names: dict[str, set[str]] = {}
    seen: list[dict[str, Any]] = []
    for log, agent in (
        ("ours", early()),
        ("theirs", SAC("MlpPolicy", make_env(TASK), learning_starts=10**6)),
    ):
        agent.learn(2, lambda own, _: bool(seen.append(dict(own))) or True)
        names[log] = set(seen[-1])
        assert seen[-1]["self"] is agent
        assert seen[-1]["total_timesteps"] == 2
        assert seen[-1]["infos"][0]["TimeLimit.truncated"] is False
    assert names["theirs"] <= names["ours"]
    stop = StopTrainingOnMaxEpisodes(2, verbose=1)
    assert early().learn(1000, stop).num_timesteps == 100
    assert "the MPC model reached max_episodes=2" in capfd.readouterr().out
    side_by_side = MPC(make_vec_env(TASK, 2), **EARLY)
    assert side_by_side.learn(1000, StopTrainingOnMaxEpisodes(1)).num_timesteps == 100


def test_sb3s_callbacks_evaluate_and_save_the_agent(tmp_path: Path) -> None:
    evaluation = EvalCallback(
        Monitor(make_env(TASK)),
        n_eval_episodes=1,
        eval_freq=60,
        best_model_save_path=str(tmp_path / "best"),
        log_path=str(tmp_path),
        verbose=0,
    )
    saving = CheckpointCallback(55, str(tmp_path), name_prefix="agent", save_replay_buffer=True)
    agent = MPC(make_env(TASK), **FITTED, reward="known", tensorboard_log=tmp_path / "log")
    agent.learn(70, [evaluation, saving, ProgressBarCallback()])
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [60]
    agent.logger.close()
    events = EventAccumulator(str(tmp_path / "log" / "MPC_1"))
    events.Reload()
    (mean,) = events.Scalars("eval/mean_reward")
    assert mean.step == 60
    assert mean.value == pytest.approx(evaluation.best_mean_reward, rel=1e-6)
    for name, steps in (("best/best_model", 60), ("agent_55_steps.zip", 55)):
        assert MPC.load(tmp_path / name, make_env(TASK)).num_timesteps == steps
