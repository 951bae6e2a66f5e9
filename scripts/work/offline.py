"""What offline does, once its options are read."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from options.offline import Args

from agents.cloning import fit_clone
from agents.common.spaces import require_box
from agents.mbpo import MBPO, MBPOSettings, RolloutLength
from envs.datasets.offline import load_minari
from envs.tasks.layers import Env
from envs.tasks.make import make_env, require_time_limit
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.evaluation.statistics import interval
from mbrl_bilevel.imagination.settings import Branching
from mbrl_bilevel.studies.arguments import naming
from mbrl_bilevel.studies.cells import Cells, Done, run_cells
from mbrl_bilevel.studies.launching import Result
from mbrl_bilevel.studies.returns import episode_returns
from mbrl_bilevel.studies.run_folder import RunFolder
from mbrl_bilevel.training.settings import Schedule
from work.named_rules import named_termination


def learn_offline(args: Args, run: RunFolder) -> Result:
    """A policy and a seed a cell, beside what the data itself earned."""
    env, transitions = _make(args), _load(args)
    _require_same_spaces(args, env, transitions)
    require_time_limit(env, args.env_id)
    named_termination(args.termination, env)
    env.close()
    data = _of_the_data(transitions)
    keys: list[Row] = [
        {"policy": policy, "seed": seed}
        for policy in dict.fromkeys(args.policies)
        for seed in range(args.seed, args.seed + args.seeds)
    ]
    cells = Cells(keys, learn, ("mean", "std", "returns"))
    rows = run_cells(run, args, cells, "offline", args.launching())
    summary = {
        policy: interval([row["mean"] for row in rows if row["policy"] == policy])
        for policy in dict.fromkeys(row["policy"] for row in rows)
    }
    return Result({"rows": rows, "data": data, "summary": summary}, {"data": data, **summary})


def learn(args: Args, key: Row) -> Done:
    """One policy, learned and evaluated."""
    started = time.perf_counter()
    env, data, seed = _make(args), _load(args), key["seed"]
    schedule = Schedule(steps=args.train_steps)
    policy: Any
    if key["policy"] == "clone":
        policy = fit_clone(
            data,
            env.action_space,
            generator=torch.Generator().manual_seed(seed),
            members=args.members,
            hidden=args.hidden,
            schedule=schedule,
        )
    else:
        settings = MBPOSettings(
            method=args.method,
            members=args.members,
            hidden=args.hidden,
            schedule=schedule,
            rollout=RolloutLength(args.rollout_length, args.rollout_length),
            branching=Branching(penalty=args.penalty if key["policy"] == "mopo" else 0.0),
        )
        kwargs = {
            "learning_rate": args.policy_learning_rate,
            "policy_kwargs": {"net_arch": list(args.policy_hidden)},
        }
        rule = named_termination(args.termination, env)
        policy = MBPO(
            env, settings, algorithm_kwargs=kwargs, termination=rule, seed=seed, device="cpu"
        )
        policy.learn_offline(args.updates, data)
        assert args.out is not None
        (args.out / "checkpoints").mkdir(exist_ok=True)
        policy.save(args.out / "checkpoints" / f"{key['policy']}-{seed}.safetensors")
    found = episode_returns(policy, partial(_make, args), args.eval_episodes, seed, args.env_id)
    env.close()
    return Done({**found, "wall_seconds": time.perf_counter() - started})


def _make(args: Args) -> Env:
    return make_env(args.env_id, **args.making_shorter)


def _load(args: Args) -> Transitions:
    with naming("--minari"):
        return load_minari(args.minari)


def _require_same_spaces(args: Args, env: Env, data: Transitions) -> None:
    with naming(f"--env-id {args.env_id!r}"):
        spaces = (
            require_box(env.observation_space, "observation"),
            require_box(env.action_space, "action"),
        )
    widths = [space.shape[0] for space in spaces]
    found = [data.obs.shape[1], data.action.shape[1]]
    if widths != found:
        raise InvalidInputError(
            f"--env-id {args.env_id!r} has {widths[0]} observation and {widths[1]} action dimensions, "
            f"--minari {args.minari!r} has {found[0]} and {found[1]}; give the environment of the data"
        )


def _of_the_data(data: Transitions) -> dict[str, Any]:
    """The returns of its whole episodes; null where none is."""
    numbers, episode = np.unique(data.episode, return_inverse=True)
    whole = np.bincount(episode, data.terminated | data.truncated) > 0
    returns = np.bincount(episode, data.reward)[whole]
    found = {"steps": len(data), "episodes": len(numbers), "whole_episodes": len(returns)}
    if not len(returns):
        return {**found, "mean": None, "std": None, "best": None}
    spread = {"mean": float(returns.mean()), "std": float(returns.std())}
    return {**found, **spread, "best": float(returns.max())}
