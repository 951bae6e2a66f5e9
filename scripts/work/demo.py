"""What demo does, once its options are read."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from options.demo import ALONE, Args

from agents.mpc import MPCSettings
from agents.planners.actions import BoxActions
from envs.known.oracle import Oracle
from envs.tasks.make import make_env, require_time_limit
from mbrl_bilevel.base.errors import BilevelError
from mbrl_bilevel.base.reading import read_rows
from mbrl_bilevel.figures.models import draw_overview
from mbrl_bilevel.figures.returns import draw_returns
from mbrl_bilevel.studies.launching import Result
from mbrl_bilevel.studies.run_folder import Bar, RunFolder


def demonstrate(args: Args, run: RunFolder) -> Result:
    """Start the parts as processes of their own, watch their rows, then draw."""
    started = time.perf_counter()
    env = make_env(args.env_id)
    require_time_limit(env, args.env_id, "register it with max_episode_steps")
    Oracle(env, threads=1).close()
    parts = _parts(args, run)
    evaluations = -(-args.steps // args.eval_every)
    rows_expected = len(args.methods) * args.seeds + len(args.agents) * evaluations
    bar = run.bar(rows_expected + 1, "demo (models fitted, agents evaluated)")
    with _watching(run, parts, bar), ThreadPoolExecutor(2) as pool:
        work: list[Callable[[], object]] = [
            partial(_run_part, run, args.wandb, name, command) for name, command in parts.items()
        ]
        work.insert(1, partial(_reference_lines, args, run))
        try:
            for future in [pool.submit(job) for job in work]:
                future.result()
        except BaseException:  # stopped or failed: what has not begun does not begin
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    lines = run.rows.find(name="references") or {}
    names = ("doing nothing", "random actions", "true simulator")
    references = {name: run.rows.require(lines, name)[name] for name in names}
    curves = {name: [read_rows(run.path / _folder(name))] for name in args.agents}
    compared = read_rows(run.path / "compare")
    title = f"{args.env_id}: the agent by its model, and its learner alone"
    figures = [
        draw_returns(run.figures / "returns.png", curves, references, title),
        draw_overview(run.figures / "models.png", compared, args.methods),
    ]
    finals = {name: curves[name][0][-1]["mean"] for name in args.agents}
    metrics = {
        "final_return": finals,
        "references": references,
        "rows": compared,
        "wall_seconds": time.perf_counter() - started,
    }
    _tell(args, figures, finals, references)
    return Result(metrics, {"final_return": finals, "figures": [str(f) for f in figures]})


SCRIPTS = Path(__file__).resolve().parents[1]


def _parts(args: Args, run: RunFolder) -> dict[str, list[str]]:
    """The command line of each part; every one goes on where it was stopped."""
    shared = [f"--env-id={args.env_id}", f"--seed={args.seed}"]
    pace = [f"--steps={args.steps}", f"--eval-every={args.eval_every}"]
    pace.append(f"--eval-episodes={args.eval_episodes}")
    parts = {}
    for name in args.agents:
        kind = ["--agent=sac"] if name == ALONE else ["--agent=planning", f"--method={name}"]
        parts[_folder(name)] = ["train.py", *shared, *kind, *pace]
    sizes = [f"--n-train={args.n_train}", f"--seeds={args.seeds}"]
    return {"compare": ["compare.py", *shared, *sizes, "--methods", *args.methods], **parts}


def _folder(agent: str) -> str:
    return f"train-{agent.replace(' ', '-')}"


def _run_part(run: RunFolder, wandb: bool, name: str, command: list[str]) -> None:
    script, *options = command
    told = ["--wandb"] if wandb else []
    fixed = [
        *told,
        "--out",
        str(run.path / name),
        "--resume",
        "--quiet",
        "--no-report",
        "--threads=1",
    ]
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / script), *options, *fixed],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise BilevelError(f"{name} ended with exit code {done.returncode}: {last[0]}")


def _reference_lines(args: Args, run: RunFolder) -> None:
    """What doing nothing, random actions and planning without model error return."""
    if run.rows.find(name="references") is not None:
        return
    env = make_env(args.env_id)
    random = np.random.default_rng(args.seed)
    space: Any = env.action_space
    nothing = np.clip(np.zeros_like(space.low), space.low, space.high)
    values: dict[str, float] = {
        "doing nothing": _mean_return(env, nothing.copy, 50, args.seed),
        "random actions": _mean_return(
            env, lambda: random.uniform(space.low, space.high), 50, args.seed
        ),
    }
    planner = MPCSettings().planner
    assert planner is not None
    oracle, generator = Oracle(env, threads=1), torch.Generator().manual_seed(args.seed)
    total = []
    for episode in range(args.reference_episodes):
        memory = planner.initial_state(1, BoxActions(space.low, space.high))

        def plan() -> Any:
            nonlocal memory
            action, memory, _ = planner.plan(oracle.score, memory, generator)
            return action[0].numpy()

        total.append(_mean_return(env, plan, 1, args.seed + episode))
    values["true simulator"] = float(np.mean(total))
    env.close()
    run.rows.append({"name": "references", **values})


def _mean_return(env: Any, act: Callable[[], Any], episodes: int, seed: int) -> float:
    total = 0.0
    for episode in range(episodes):
        env.reset(seed=seed + episode)
        done = False
        while not done:
            _, reward, terminated, truncated, _ = env.step(act())
            total += float(reward)
            done = terminated or truncated
    return total / episodes


@contextmanager
def _watching(run: RunFolder, parts: dict[str, list[str]], bar: Bar) -> Iterator[None]:
    """Move the bar as rows appear in the parts' folders."""
    over = threading.Event()

    def watch() -> None:
        seen = 0
        while True:
            last = over.wait(0.5)
            done = dict.fromkeys(parts, 0)
            for name in parts:
                with suppress(BilevelError):  # a damaged row: the part itself ends by it
                    done[name] = len(read_rows(run.path / name))
            count = len(run.rows) + sum(done.values())
            bar.update(count - seen)
            seen = count
            # Written anew even where nothing was finished, so that the clock is seen to run.
            bar.set_postfix_str(", ".join(f"{name} {n}" for name, n in done.items() if n))
            if last:
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _tell(
    args: Args, figures: list[Path], finals: dict[str, float], lines: dict[str, float]
) -> None:
    """For the person who typed ``make demo``; stdout's last line stays the JSON summary."""
    print(f"\n{args.env_id}, return after {args.steps} real steps:")
    for name, value in {**finals, **lines}.items():
        print(f"  {name:16s} {value:8.2f}")
    print("figures:")
    for figure in figures:
        print(f"  {figure}")
