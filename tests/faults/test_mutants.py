"""Damaged checkpoints, tables and options: each is one line, or works; never more than that."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import bench
import compare
import numpy as np
import pytest
import theory
import train
from faulting import damaged, tiny_agent, tiny_mbpo
from safetensors.torch import load as load_tensors

from agents import MPC, PlanningAgent, PlanningSettings
from agents.planners import MPPI
from agents.planning_agent.checkpoint import PLANNING_AGENT
from envs.datasets.tables import load_table
from envs.tasks.make import make_env
from mbrl_bilevel.base.checkpoint import load_checkpoint, save_checkpoint
from mbrl_bilevel.base.errors import BilevelError, CheckpointError, InvalidInputError
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.studies.arguments import parse
from mbrl_bilevel.training.settings import Schedule

# ruff: noqa: PT017 - whether a mutant is refused is not known beforehand
COUNT = 1000 if "FAULTS" in os.environ else 240


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("agent") / "agent.safetensors"
    tiny_agent().save(path)
    return path


def test_a_damaged_checkpoint_is_refused_in_one_line(saved: Path, tmp_path: Path) -> None:
    random, env, whole = np.random.default_rng(0), make_env("Pendulum-v1"), saved.read_bytes()
    path, refused = tmp_path / "agent.safetensors", 0
    for _ in range(COUNT):
        content = damaged(whole, random)
        path.write_bytes(content)
        try:
            MPC.load(path, env)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            # Only a change that changes nothing may pass, such as white space in the header.
            assert load_tensors(content).keys() == load_tensors(whole).keys()
            assert (
                load_checkpoint(path, PLANNING_AGENT).config
                == load_checkpoint(saved, PLANNING_AGENT).config
            )
        assert path.read_bytes() == content
    assert refused >= 0.95 * COUNT


def _replaced(value: Any, random: np.random.Generator) -> Any:
    """The same JSON with one value, somewhere, made another."""
    if isinstance(value, dict) and value and random.random() < 0.9:
        key = list(value)[int(random.integers(len(value)))]
        if random.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return value | {key: _replaced(value[key], random)}
    if isinstance(value, list) and value and random.random() < 0.7:
        at = int(random.integers(len(value)))
        return [*value[:at], _replaced(value[at], random), *value[at + 1 :]]
    junk: list[Any] = [None, -1, 0, 10**12, 2**70, 1e300, "x", "", [], {}, [1] * 5, True, -0.5]
    return junk[int(random.integers(len(junk)))]


def test_a_forged_checkpoint_with_a_sound_checksum_does_no_harm(
    saved: Path, tmp_path: Path
) -> None:
    """Whoever writes a file can compute its checksum too: then the contents are all there is."""
    random, env = np.random.default_rng(1), make_env("Pendulum-v1")
    whole = load_checkpoint(saved, PLANNING_AGENT)
    path, refused = tmp_path / "agent.safetensors", 0
    for _ in range(COUNT):
        tensors, config = dict(whole.tensors), dict(whole.config)
        if random.random() < 0.3:
            name = list(tensors)[int(random.integers(len(tensors)))]
            tensors[name] = [
                tensors[name][:0],
                tensors[name].double(),
                tensors[name].unsqueeze(0),
                tensors[name].flatten()[:1],
            ][int(random.integers(4))]
        else:
            config = _replaced(config, random)
        if not isinstance(config, dict):
            continue
        save_checkpoint(path, PLANNING_AGENT, tensors, config)
        try:
            agent = MPC.load(path, env)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            # What was taken can be used, or says why not.
            with contextlib.suppress(BilevelError):
                action, _ = agent.predict(np.zeros(3, dtype=np.float32))
                assert np.isfinite(action).all()
    assert refused > 0.5 * COUNT


def tiny_planning() -> PlanningAgent:
    """Plans beside a policy, and imagined rows, after 45 steps."""
    settings = PlanningSettings(
        method="mse",
        members=2,
        hidden=(8,),
        schedule=Schedule(steps=20),
        learning_starts=40,
        planner=MPPI(horizon=2, population=6, iterations=1),
        imagination=Imagination(2, sample=False),
        proposals=2,
        real_share="auto",
        rollouts_per_step=1,
        updates_per_step=1,
        real_rows=100,
        imagined_rows=100,
        n_steps=2,
    )
    kwargs = {"batch_size": 8, "policy_kwargs": {"net_arch": [8]}}
    return PlanningAgent(make_env("Pendulum-v1"), settings, algorithm_kwargs=kwargs).learn(45)


@pytest.mark.parametrize("made", [tiny_mbpo, tiny_planning])
def test_a_forged_agent_with_a_learner_does_no_harm(made: Any, tmp_path: Path) -> None:
    """Fewer: each makes a whole agent of Stable-Baselines3."""
    random, env, count = np.random.default_rng(3), make_env("Pendulum-v1"), 80
    path, refused = tmp_path / "agent.safetensors", 0
    sound = made()
    sound.save(path)
    whole = load_checkpoint(path, PLANNING_AGENT)
    for _ in range(count):
        tensors, config = dict(whole.tensors), _replaced(whole.config, random)
        if random.random() < 0.3:
            name = list(tensors)[int(random.integers(len(tensors)))]
            tensors[name] = tensors[name].unsqueeze(0)
        if not isinstance(config, dict):
            continue
        save_checkpoint(path, PLANNING_AGENT, tensors, config)
        try:
            agent = type(sound).load(path, env)
        except BilevelError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            # What was taken can be used, or says why not.
            with contextlib.suppress(BilevelError):
                assert np.isfinite(agent.predict(np.zeros(3, dtype=np.float32))[0]).all()
    assert refused > 0.5 * count


def test_a_damaged_table_is_refused_in_one_line_or_read(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    numbers = random.normal(size=(40, 3))
    lines = [",".join(f"{value:.4f}" for value in row) for row in numbers]
    csv = ("a,b,y\n" + "\n".join(lines) + "\n").encode()
    np.savez(tmp_path / "whole.npz", x=numbers[:, :2], y=numbers[:, 2])
    npz, refused = (tmp_path / "whole.npz").read_bytes(), 0
    for i in range(COUNT):
        path = tmp_path / ("t.npz" if i % 4 == 0 else "t.csv")
        content = damaged(npz if i % 4 == 0 else csv, random)
        path.write_bytes(content)
        try:
            table = load_table(path, "y")
        except InvalidInputError as error:
            assert "\n" not in str(error)
            assert path.name in str(error)
            refused += 1
        else:
            assert np.isfinite(table.x).all()
            assert np.isfinite(table.y).all()
            assert len(table.x) == len(table.y) >= 20
        assert path.read_bytes() == content
    assert 0.2 * COUNT < refused < COUNT


_JUNK = ["-1", "0", "1", "nan", "inf", "1e300", "99999999999999999999", "x", "", "--", "1.5", "-0"]


@pytest.mark.parametrize("script", [train, compare, bench, theory])
def test_odd_options_are_one_line_or_taken(script: Any) -> None:
    random = np.random.default_rng(3)
    names = ["--" + name.replace("_", "-") for name in script.Args.__dataclass_fields__]
    refused = 0
    for _ in range(COUNT // 4):
        argv: list[str] = []
        for _ in range(int(random.integers(1, 4))):
            name = names[int(random.integers(len(names)))]
            argv.append(
                name[: int(random.integers(2, len(name) + 1))] if random.random() < 0.2 else name
            )
            argv += [
                _JUNK[int(random.integers(len(_JUNK)))] for _ in range(int(random.integers(0, 3)))
            ]
        try:
            args = parse(script.Args, argv, "")
        except BilevelError as error:
            assert "\n" not in str(error), argv
            assert str(error), argv
            refused += 1
        except SystemExit as stop:  # --help
            assert stop.code == 0, argv
        else:
            json.dumps(str(args))
            # Nothing that was taken asks for more memory than machines have.
            # None is the preset's own.
            hidden = getattr(args, "hidden", None) or (1,)
            assert (getattr(args, "horizon", None) or 1) <= 10_000, argv
            assert max(hidden) <= 100_000, argv
            assert (getattr(args, "population", None) or 1) <= 10**6, argv
    assert refused > 0
