"""What the fault tests share: damaged bytes, a tiny agent, scripts as processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from agents.mbpo import MBPO, MBPOSettings
from agents.mpc import MPC, MPCSettings
from agents.planners import ICEM
from envs.tasks.make import make_env
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.studies.launching import launch
from mbrl_bilevel.training.settings import Schedule

ROOT = Path(__file__).resolve().parents[2]
TASKS = ROOT / "tests" / "scripts"  # where my_task.py is

OWN = ["--import-module", "my_task", "--env-id", "Line-v0", "--members", "2", "--hidden", "16"]
_TRAIN = [
    *[
        "--agent",
        "mpc",
        *OWN,
        "--particles",
        "2",
        "--steps",
        "120",
        "--eval-every",
        "40",
        "--eval-episodes",
        "1",
    ],
    *["--learning-starts", "50", "--refit-every", "40", "--train-steps", "40"],
    *["--horizon", "4", "--population", "12", "--iterations", "2"],
]
#: One tiny run of each script that resumes, the script's name first; a new one is one more entry.
RUNS: dict[str, list[str]] = {
    "train": ["train", *_TRAIN],
    "train, planning": [
        *["train", *OWN, "--steps", "120", "--eval-every", "40", "--eval-episodes", "1"],
        *["--learning-starts", "50", "--refit-every", "40", "--train-steps", "40"],
        *["--horizon", "2", "--population", "8", "--proposals", "3", "--real-share", "auto"],
        *["--rollouts-per-step", "4", "--imagine-every", "20", "--updates-per-step", "2"],
        *["--policy-hidden", "8", "--batch-size", "16", "--particles", "2"],
    ],
    "compare": [
        *["compare", *OWN, "--n-train", "200", "--seeds", "2", "--train-steps", "40"],
        *["--n-test", "200", "--methods", "bilevel-constant", "nll"],
    ],
}
#: Those with processes of their own take long to start: at full length only.
POOLS: dict[str, list[str]] = {
    # Episodes too short to end: the patch that shortens the fit of a learned ending does not reach other processes,
    # and the last seed to do is done in this one.
    "train, 2 seeds": [
        *["train", *_TRAIN, "--max-episode-steps", "9", "--seeds", "2", "--jobs", "2"]
    ],
    "train, mbpo": [
        *["train", *OWN, "--agent", "mbpo", "--steps", "120", "--eval-every", "40"],
        *["--eval-episodes", "1", "--learning-starts", "50", "--refit-every", "40"],
        *["--train-steps", "40", "--imagine-every", "20", "--updates-per-step", "2"],
        *["--policy-hidden", "8", "--batch-size", "16"],
    ],
    "compare, 2 jobs": [*RUNS["compare"], "--jobs", "2"],
    "plan, 2 jobs": [
        *["plan", "--env-id", "Reacher-v5", "--max-episode-steps", "5", "--plans", "12"],
        *["--horizon", "3", "--seeds", "2", "--planners", "icem", "random", "--jobs", "2"],
    ],
    "tune, 2 jobs": [
        *["tune", *OWN, "--n-train", "200", "--n-test", "200", "--train-steps", "40"],
        *["--trials", "6", "--methods", "bilevel-constant", "nll", "--jobs", "2"],
    ],
    "continual, 2 jobs": [
        *["continual", "--sequences", "hopper-mass", "--methods", "bilevel+kl", "nll+replay"],
        *["--n-train", "200", "--n-test", "100", "--members", "2", "--hidden", "8", "--seeds", "2"],
        *["--train-steps", "40", "--jobs", "2"],
    ],
    "continual, agents": [
        *["continual", "--sequences", "doublependulum-flipped", "--agents", "sac", "sac+policy=1"],
        *["--agent-steps", "70", "--learning-starts", "50", "--updates-per-step", "1"],
        *["--eval-episodes", "1", "--seeds", "1"],
    ],
    "compare, side by side": [*RUNS["compare"], "--side-by-side", "2"],
    "train, side by side": [
        *["train", *OWN, "--steps", "120", "--eval-every", "40", "--eval-episodes", "1"],
        *["--learning-starts", "50", "--refit-every", "40", "--train-steps", "40"],
        *["--updates-per-step", "2", "--policy-hidden", "8", "--batch-size", "16"],
        # Rounding must not decide who acts.
        *["--look-ahead", "2", "--plan-share", "0", "--seeds", "2", "--side-by-side", "2"],
    ],
    "classify, 2 jobs": [
        *["classify", "--data", "wine", "iris", "--members", "2", "--hidden", "8", "--seeds", "2"],
        *["--train-steps", "40", "--methods", "bilevel", "nll", "--jobs", "2"],
    ],
}
if find_spec("ray") is not None:  # an extra
    POOLS["compare, ray"] = [*RUNS["compare"], "--launcher", "ray", "--jobs", "2"]
#: Times and memory differ from run to run; nothing else may.
_FREE = ("train_seconds", "wall_seconds", "cpu_seconds", "peak_memory_mb")


#: No bar, no table and no page.
QUIET = ("--quiet", "--no-report")


def go(name: str, out: Path, *more: str, figures: bool = False) -> int:
    """The exit code of a run in this process; its figures' files take the longest."""
    script, *options = (RUNS | POOLS)[name]
    module: Any = import_module(script)
    with pytest.MonkeyPatch.context() as patch:
        if not figures:
            patch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: None)
        try:
            launch(module.Args, module.main, [*options, *QUIET, "--out", str(out), *more])
        except SystemExit as stop:
            return int(str(stop.code))
    return 0


def go_and_kill(name: str, out: Path, after: float) -> bool:
    """The same, with --resume, in a process forked from this one: a fresh interpreter spends most of its time on
    imports, where nothing can be lost. It is killed (-9) after so many seconds; whether it was."""
    process = multiprocessing.get_context("fork").Process(
        target=lambda: sys.exit(go(name, out, "--resume"))
    )
    process.start()
    process.join(after)
    process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def start(script: str, *options: str, cwd: Path, **more: Any) -> subprocess.Popen[str]:
    """The script as a process of its own, as a user starts it."""
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *QUIET, *options],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": f"{TASKS}:{ROOT}", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def metrics(out: Path) -> Any:
    """metrics.json without what may differ."""

    def drop(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: drop(item) for key, item in value.items() if key not in _FREE}
        return [drop(item) for item in value] if isinstance(value, list) else value

    return drop(json.loads((out / "metrics.json").read_text()))


def require_same(name: str, found: Any, whole: Any) -> None:
    """The metrics of two runs are the same; where a stop may change what is computed in one product, to rounding."""
    if name != "train, side by side":
        assert found == whole
    elif isinstance(whole, dict | list):
        assert len(found) == len(whole)
        for key in whole if isinstance(whole, dict) else range(len(whole)):
            require_same(name, found[key], whole[key])
    else:
        assert found == (pytest.approx(whole, rel=1e-2) if isinstance(whole, float) else whole)


def tiny_agent(seed: int = 0) -> MPC:
    """An agent after 60 steps of Pendulum, with a model."""
    settings = MPCSettings(
        method="bilevel",
        planner=ICEM(horizon=3, population=8, iterations=2),
        imagination=Imagination(particles=2),
        members=2,
        hidden=(8,),
        schedule=Schedule(steps=20),
        learning_starts=40,
        refit_every=100,
    )
    return MPC(make_env("Pendulum-v1"), settings, seed=seed).learn(60)


def tiny_mbpo() -> MBPO:
    """The same of MBPO, after 45 steps."""
    settings = MBPOSettings(
        method="bilevel",
        members=2,
        hidden=(8,),
        schedule=Schedule(steps=20),
        learning_starts=40,
        rollouts_per_step=1,
        updates_per_step=1,
        real_rows=100,
        imagined_rows=100,
    )
    kwargs = {"batch_size": 8, "policy_kwargs": {"net_arch": [8]}}
    return MBPO(make_env("Pendulum-v1"), settings, algorithm_kwargs=kwargs).learn(45)


def damaged(content: bytes, random: np.random.Generator) -> bytes:
    """The same with one to three faults: bits flipped, parts cut, doubled, swapped or inserted."""
    data = bytearray(content)
    for _ in range(int(random.integers(1, 4))):
        at = int(random.integers(0, max(1, len(data))))
        # Headers are short and matter most: half of the faults fall there.
        at = at % min(len(data) or 1, 400) if random.random() < 0.5 else at
        size = int(random.integers(1, 40))
        match int(random.integers(0, 6)):
            case 0:
                data[at : at + 1] = bytes(
                    [(data[at] if data else 0) ^ (1 << int(random.integers(8)))]
                )
            case 1:
                del data[at:]
            case 2:
                del data[at : at + size]
            case 3:
                data[at:at] = random.bytes(size)
            case 4:
                data[at:at] = data[at : at + size]
            case 5:
                data[at : at + size] = random.bytes(size)
    return bytes(data)
