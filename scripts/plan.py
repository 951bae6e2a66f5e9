"""Plan with the true simulator, or with the model of a saved agent, and compare the planners.

Each planner scores the same number of candidate plans at every step. Beside them are doing nothing and
acting at random. An episode is a planner and a seed: they start alike, and draw alike whatever --jobs.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from _args import naming
from _plan_figures import draw_planners
from _pool import Cells, Done, run_cells
from _rows import Row
from _rules import named_reward, named_termination
from _run import Result, RunArgs, RunFolder, launch

from agents.common.device import planning_device
from agents.mpc import MPC, MPCSettings
from agents.planners import CEM, PLANNERS, Planner
from agents.planners.actions import BoxActions
from agents.planning_agent.checkpoint import read_for_planning
from envs.known.oracle import Oracle
from envs.tasks.make import Env, make_env
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Rule
from mbrl_bilevel.evaluation.statistics import interval
from mbrl_bilevel.imagination.particles import Imagination

Array = npt.NDArray[Any]

#: ``act(observation [O]) -> action``, once a step from the first of an episode on.
Act = Callable[[Array], Array]

#: Who uses an option, where not all planners do.
USED_BY_PLANNERS: dict[str, tuple[str, ...]] = {
    "noise_beta": ("icem",),
    **dict.fromkeys(("add_middle", "elite_fraction"), ("icem", "cem")),
}

_BASELINES = ("nothing", "random-actions")


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of plan."""

    env_id: tuple[str, ...] = ("HalfCheetah-v5",)
    """Gymnasium environments; of MuJoCo where the model is the oracle."""
    import_module: str | None = None
    """Module to import first; it registers an environment of your own."""
    env_timeout: float | None = None
    """Seconds that one call of the environment may take; none: no limit."""
    model: str = "oracle"
    """oracle: the true simulator; or the file of an agent that train saved (planning, mpc or mbpo). Of mbpo
    it is planned in the model alone, without a value."""
    termination: str | None = None
    """The rule the saved agent was trained with, module:function; standard tasks have theirs."""
    reward: str | None = None
    """Likewise: known, approximate, or module:function; none: the reward was learned."""
    precision: Literal["float32", "bfloat16", "auto"] | None = None
    """What a saved agent's model is imagined in; none: as it was saved."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where a saved agent's plans are imagined; auto: on a CUDA device where there is one."""
    planners: tuple[Literal["icem", "cem", "mppi", "random"], ...] = ("icem", "cem", "random")
    """Which planners; random tries all its plans at once (random shooting)."""
    plans: int = 192
    """Candidate plans scored at each step, the same for every planner, refinements and all."""
    horizon: int = 15
    """Steps planned ahead."""
    iterations: int = 3
    """Refinements of a plan."""
    elite_fraction: float = 0.15
    """Part of the candidates that icem and cem are refitted to."""
    noise_beta: float = 0.25
    """Colour of icem's noise: 0 is white, 2 and more for slow systems."""
    add_middle: bool = False
    """Let doing nothing compete among the plans of icem and cem: where control costs, as on Pusher."""
    seeds: int = 3
    """Episodes of each planner: --seed, --seed + 1, …."""
    max_episode_steps: int | None = None
    """Cut episodes here; none: where the environment does."""
    jobs: int = 1
    """Processes, each with one thread; the rows are the same whatever their number."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require_at_least(1, "seeds", "jobs", most=100_000)
        self.require_at_least(1, "plans", "horizon", "iterations", most=10**6)
        if self.max_episode_steps is not None:
            self.require_at_least(1, "max_episode_steps")
        if self.env_timeout is not None:
            self.require_positive("env_timeout")
        of_an_agent = self.termination or self.reward or self.precision or self.device != "auto"
        if self.model == "oracle" and of_an_agent:
            raise InvalidInputError(
                "--termination, --reward, --precision and --device are of a saved agent; the oracle needs none"
            )
        with naming("--device"):
            planning_device(self.device)
        self.refuse_unused(USED_BY_PLANNERS, "--planners", self.planners)
        for kind in self.planners:
            _planner(self, kind)


def main(args: Args, run: RunFolder) -> Result:
    """An episode a cell; then the table and the figure."""
    args = _settled(args, run)
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
    rows = run_cells(run, args, Cells(keys, play, ("return", "steps")), "plan", args.jobs)
    summary = _summary(rows)
    figure = draw_planners(run.figures / "planners.png", rows, kinds)
    return Result({"rows": rows, "summary": summary}, {"summary": summary, "figure": str(figure)})


def _settled(args: Args, run: RunFolder) -> Args:
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
        planner = _planner(args, key["planner"])
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
        return (lambda obs: nothing), {}
    if key["planner"] == "random-actions":
        space.seed(key["seed"])
        return (lambda obs: np.asarray(space.sample())), {}
    planner = _planner(args, key["planner"])
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
    termination = named_termination(args.termination, env)
    reward = None if args.reward is None else named_reward(args.reward, env)
    with naming("--model"):
        agent = _saved(Path(args.model), env, termination, reward, args.device)
    if agent.model is None:
        raise InvalidInputError(
            f"--model: the agent in {args.model} has no model (yet, or ever: sac learns none); give the "
            "file of one that has"
        )
    imagination = agent.settings.imagination
    if args.precision is not None:
        imagination = replace(imagination, precision=args.precision)
    with naming("--horizon"):
        agent.settings = replace(agent.settings, planner=planner, imagination=imagination)
    agent.seed = seed
    state: Any = None

    def act(obs: Array) -> Array:
        nonlocal state
        action, state = agent.predict(obs, state, deterministic=True)
        return action

    return act, {"precision": agent.settings.imagination.precision, "device": str(agent.device)}


def _saved(path: Path, env: Env, termination: Rule | None, reward: Rule | None, device: str) -> MPC:
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


def _planner(args: Args, kind: str) -> Planner:
    """With the largest population whose plan costs at most ``args.plans`` candidates."""
    more: dict[str, Any] = {} if kind == "random" else {"iterations": args.iterations}
    if issubclass(PLANNERS[kind], CEM):
        more |= {"elite_fraction": args.elite_fraction, "add_middle": args.add_middle}
    if kind == "icem":
        more["noise_beta"] = args.noise_beta

    def sized(population: int) -> Planner:
        return PLANNERS[kind](horizon=args.horizon, population=population, **more)

    sizes = range(1, args.plans + 1)
    population = bisect_right(sizes, args.plans, key=lambda n: sum(sized(n).populations()))
    if population == 0:
        raise InvalidInputError(
            f"--plans must be at least --iterations ({args.iterations}), a candidate each; "
            f"got {args.plans}"
        )
    return sized(population)


def _make(args: Args, env_id: str) -> Env:
    return make_env(env_id, import_module=args.import_module, timeout=args.env_timeout)


def _checked_space(args: Args, env_id: str) -> gym.Space[Any]:
    """Its actions. What no cell could do is told before the first."""
    env = _make(args, env_id)
    if args.max_episode_steps is None and (env.spec is None or env.spec.max_episode_steps is None):
        raise InvalidInputError(
            f"--env-id {env_id!r}: its episodes may never end; give --max-episode-steps"
        )
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


if __name__ == "__main__":
    launch(Args, main)
