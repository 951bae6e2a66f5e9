"""Learn a policy from a Minari data set alone, and see what it earns in the real environment.

mopo: MBPO on the data's steps and on branches imagined from them, less a penalty where the model is not
to be trusted (Yu et al. 2020); mbpo: the same without the penalty; clone: behaviour cloning. What MBPO
learned is saved under checkpoints/, for MBPO.load.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from _args import naming
from _pool import Cells, Done, run_cells
from _returns import episode_returns
from _rows import Row
from _rules import named_termination
from _run import Result, RunArgs, RunFolder, launch

from agents.cloning import fit_clone
from agents.common.spaces import require_box
from agents.mbpo import MBPO, MBPOSettings, RolloutLength
from envs.datasets.offline import load_minari
from envs.tasks.make import Env, make_env
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.evaluation.statistics import interval
from mbrl_bilevel.imagination.branches import Branching
from mbrl_bilevel.training.fit import Schedule
from mbrl_bilevel.training.methods import get_method


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of offline."""

    minari: str
    """Minari data set to learn from, by id or folder."""
    env_id: str = "HalfCheetah-v5"
    """Gymnasium environment it comes from, to evaluate in."""
    import_module: str | None = None
    """Module to import first; it registers an environment of your own."""
    env_timeout: float | None = None
    """Seconds that one call of the environment may take; none: no limit."""
    max_episode_steps: int | None = None
    """Cut the episodes of the evaluation as those of the data set are; none: where the environment
    does."""
    termination: str | None = None
    """Your own rule, module:function of (obs, action, next_obs); standard tasks have theirs."""
    policies: tuple[Literal["mopo", "mbpo", "clone"], ...] = ("mopo", "mbpo", "clone")
    """What is learned."""
    model: str = "bilevel"
    """How the model is trained, as in train."""
    penalty: float = 1.0
    """Of mopo: what comes off an imagined reward, times the model's uncertainty there."""
    updates: int = 20_000
    """Of mopo and mbpo: updates of actor and critics."""
    rollout_length: int = 5
    """Of mopo and mbpo: steps of an imagined branch."""
    policy_hidden: tuple[int, ...] = (128, 128)
    """Of mopo and mbpo: width of each hidden layer of actor and critics."""
    policy_learning_rate: float = 3e-4
    """Of mopo and mbpo: Adam's step size for actor, critics and temperature."""
    members: int = 5
    """Ensemble members, of the model and of the clone."""
    hidden: tuple[int, ...] = (200, 200)
    """Width of each of their hidden layers."""
    train_steps: int = 3000
    """Gradient steps of a fit at most."""
    eval_episodes: int = 10
    """Episodes of an evaluation."""
    seeds: int = 3
    """Repeats of each policy: --seed, --seed + 1, …."""
    jobs: int = 1
    """Processes, each with one thread; the rows are the same whatever their number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        with naming("--model"):
            get_method(self.model)
        self.require_at_least(
            1, "seeds", "jobs", "members", "hidden", "policy_hidden", most=100_000
        )
        self.require_at_least(1, "updates", "train_steps", "eval_episodes")
        self.require_at_least(1, "rollout_length", most=1000)
        self.require_positive("penalty", zero=True)
        self.require_positive("policy_learning_rate")
        if self.max_episode_steps is not None:
            self.require_at_least(1, "max_episode_steps")
        if self.env_timeout is not None:
            self.require_positive("env_timeout")


def main(args: Args, run: RunFolder) -> Result:
    """A policy and a seed a cell, beside what the data itself earned."""
    env, transitions = _make(args), _load(args)
    _require_same_spaces(args, env, transitions)
    named_termination(args.termination, env)
    env.close()
    data = _of_the_data(transitions)
    keys: list[Row] = [
        {"policy": policy, "seed": seed}
        for policy in dict.fromkeys(args.policies)
        for seed in range(args.seed, args.seed + args.seeds)
    ]
    cells = Cells(keys, learn, ("mean", "std", "returns"))
    rows = run_cells(run, replace(args, out=run.path), cells, "offline", args.jobs)
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
            method=args.model,
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
        policy = MBPO(env, settings, algorithm_kwargs=kwargs, termination=rule, seed=seed)
        policy.learn_offline(args.updates, data)
        assert args.out is not None
        (args.out / "checkpoints").mkdir(exist_ok=True)
        policy.save(args.out / "checkpoints" / f"{key['policy']}-{seed}.safetensors")
    found = episode_returns(policy, partial(_make, args), args.eval_episodes, seed, args.env_id)
    env.close()
    return Done({**found, "wall_seconds": time.perf_counter() - started})


def _make(args: Args) -> Env:
    more = {} if args.max_episode_steps is None else {"max_episode_steps": args.max_episode_steps}
    return make_env(args.env_id, import_module=args.import_module, timeout=args.env_timeout, **more)


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


if __name__ == "__main__":
    launch(Args, main)
