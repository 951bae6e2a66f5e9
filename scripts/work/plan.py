"""What plan does, once its options are read."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from options.plan import Args

from agents.common.rules import RewardChoice, TerminationChoice
from agents.mpc import MPC, MPCSettings
from agents.planners import PLANNERS, Planner
from agents.planners.actions import BoxActions
from agents.planning_agent.checkpoint import read_for_planning
from envs.known.oracle import Oracle
from envs.tasks.drawing import make_drawable
from envs.tasks.layers import Env
from envs.tasks.make import make_env, require_time_limit
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.evaluation.statistics import interval
from mbrl_bilevel.figures.plan import draw_planners
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.studies.arguments import naming
from mbrl_bilevel.studies.cells import Cells, Done, run_cells
from mbrl_bilevel.studies.launching import Result
from mbrl_bilevel.studies.run_folder import RunFolder
from work.film import FILM_STEPS, Act, acting, film, require_film
from work.named_rules import named_reward, named_termination


def plan_episodes(args: Args, run: RunFolder) -> Result:
    """An episode a cell; then the table and the figure."""
    args = settled(args, run)
    if args.video:
        for env_id in args.env_id:
            require_film("--video", env_id, **args.making)
    spaces = {env_id: _checked_space(args, env_id) for env_id in args.env_id}
    # Among discrete actions none is sure to be no action.
    kinds = (*_BASELINES, *dict.fromkeys(args.planners))
    keys: list[Row] = [
        {"env_id": env_id, "planner": kind, "seed": seed}
        for env_id, space in spaces.items()
        for kind in kinds
        if kind != "nothing" or isinstance(space, gym.spaces.Box)
        for seed in range(args.seed, args.seed + args.seeds)
    ]
    rows = run_cells(run, args, Cells(keys, play, ("return", "steps")), "plan", args.launching())
    summary = _summary(rows)
    figure = draw_planners(run.figures / "planners.png", rows, kinds)
    told: dict[str, Any] = {"summary": summary, "figure": str(figure)}
    if args.video:
        told["videos"] = [
            str(_filmed(args, run, env_id, kind)) for env_id in spaces for kind in args.planners
        ]
    return Result({"rows": rows, "summary": summary}, told)


def _filmed(args: Args, run: RunFolder, env_id: str, kind: str) -> Path:
    """The first episode of a planner."""
    key = {"env_id": env_id, "planner": kind, "seed": args.seed}
    model = None if args.model == "oracle" else _agent_of(args, _make(args, env_id)).model
    return film(
        run.path / "videos" / f"{env_id.replace('/', '-')}-{kind}.mp4",
        lambda env: _actor(args, key, env)[0],
        model,
        partial(make_drawable, env_id, **args.making),
        seed=args.seed,
        steps=args.max_episode_steps or FILM_STEPS,
    ).path


Array = npt.NDArray[Any]


_BASELINES = ("nothing", "random-actions")


def settled(args: Args, run: RunFolder) -> Args:
    """The same with the precision measured, once for all episodes, of this call and of those before it."""
    if args.precision != "auto":
        return args
    before = (row["precision"] for row in run.rows if "precision" in row)
    measured = Imagination(precision="auto").chosen_precision
    return replace(args, precision=next(before, measured))


def play(args: Args, key: Row) -> Done:
    """One episode of ``key``'s planner."""
    started = time.perf_counter()
    env = _make(args, key["env_id"])
    act, said = _actor(args, key, env)
    limit = args.max_episode_steps or np.inf
    obs, _ = env.reset(seed=key["seed"])
    total, steps, over = 0.0, 0, False
    while not over:
        obs, reward, terminated, truncated, _ = env.step(act(np.asarray(obs)))
        total, steps = total + float(reward), steps + 1
        over = terminated or truncated or steps >= limit
    env.close()
    if not np.isfinite(total):
        raise InvalidInputError(
            f"--env-id {key['env_id']!r}: an episode returned {total}; mend the environment's reward"
        )
    planned = 0
    if key["planner"] in PLANNERS:
        planner = args.planner(key["planner"])
        planned = sum(planner.populations()) * planner.horizon
    return Done(
        {
            "return": total,
            "steps": steps,
            "terminated": bool(terminated),
            "model_steps": planned * steps,
            **said,
            "wall_seconds": time.perf_counter() - started,
        }
    )


def _actor(args: Args, key: Row, env: Env) -> tuple[Act, Row]:
    """What acts, and what its row says of it."""
    space: Any = env.action_space
    if key["planner"] == "nothing":
        nothing = np.clip(np.zeros_like(space.low), space.low, space.high)
        return (lambda obs: nothing.copy()), {}
    if key["planner"] == "random-actions":
        space.seed(key["seed"])
        return (lambda obs: np.asarray(space.sample())), {}
    planner = args.planner(key["planner"])
    if args.model == "oracle":
        return _with_oracle(planner, env, key["seed"]), {}
    return _with_agent(args, planner, env, key["seed"])


def _with_oracle(planner: Planner, env: Env, seed: int) -> Act:
    space: Any = env.action_space
    oracle, generator = Oracle(env, threads=1), torch.Generator().manual_seed(seed)
    memory = planner.initial_state(1, BoxActions(space.low, space.high))

    def act(obs: Array) -> Array:
        nonlocal memory
        action, memory, _ = planner.plan(oracle.score, memory, generator)
        return np.asarray(action[0].numpy(), dtype=space.dtype)

    return act


def _with_agent(args: Args, planner: Planner, env: Env, seed: int) -> tuple[Act, Row]:
    """The saved model and value, with this planner in place of the agent's own."""
    agent = _agent_of(args, env)
    if agent.model is None:
        raise InvalidInputError(
            f"--model: the agent in {args.model} has no model (yet, or ever: sac learns none); give the "
            "file of one that has"
        )
    imagination = agent.settings.imagination
    if args.precision is not None:
        imagination = replace(imagination, precision=args.precision)
    if args.screen is not None:
        with naming("--screen"):
            imagination = replace(imagination, screen=args.screen)
    with naming("--horizon"):
        agent.settings = replace(agent.settings, planner=planner, imagination=imagination)
    agent.seed = seed
    return acting(agent), {
        "precision": imagination.precision,
        "screen": imagination.screen,
        "device": str(agent.device),
    }


def _agent_of(args: Args, env: Env) -> MPC:
    termination = named_termination(args.termination, env)
    reward = None if args.reward is None else named_reward(args.reward, env)
    with naming("--model"):
        return _saved(Path(args.model), env, termination, reward, args.device)


def _saved(
    path: Path, env: Env, termination: TerminationChoice, reward: RewardChoice, device: str
) -> MPC:
    """A planning agent around the model in the file of any agent, with its own fitted value, if any."""
    agent = MPC(env, termination=termination, reward=reward, device=device)
    agent.model, agent.value, settings = read_for_planning(
        path, agent.env, termination=termination, reward=reward
    )
    if settings.planner is not None:
        agent.settings = settings
    elif agent.model is not None:
        members = agent.model.members
        agent.settings = MPCSettings(members=members, imagination=Imagination(members), value=None)
    return agent


def _make(args: Args, env_id: str) -> Env:
    return make_env(env_id, **args.making)


def _checked_space(args: Args, env_id: str) -> gym.Space[Any]:
    """Its actions. What no cell could do is told before the first."""
    env = _make(args, env_id)
    if args.max_episode_steps is None:
        require_time_limit(env, env_id)
    _actor(args, {"planner": args.planners[0], "seed": args.seed}, env)
    env.close()
    return env.action_space


def _summary(rows: Sequence[Row]) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["env_id"], row["planner"]), []).append(row)
    return [
        {
            "env_id": env_id,
            "planner": planner,
            "return": interval([row["return"] for row in found]),
            "steps": float(np.mean([row["steps"] for row in found])),
        }
        for (env_id, planner), found in groups.items()
    ]
