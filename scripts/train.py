"""Train an agent on a Gymnasium environment and report its return against real steps.

Every --eval-every steps the agent is evaluated on episodes of its own and saved; --resume goes on
from there after any stop, and ends with the same metrics.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
from _figures import draw_returns
from _pool import Cells, Done, run_cells
from _rows import Row
from _run import Result, RunArgs, RunFolder, launch, run_inside
from _shelf import Shelf
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.mpc import MPC, MPCSettings
from agents.planners import PLANNERS
from agents.value import ValueSettings
from envs.make import make_env
from envs.offline import load_minari, require_new_minari, save_minari
from envs.rewards import reward_rule
from envs.rules import load_rule, termination_rule
from mbrl_bilevel.errors import CheckpointError, InvalidInputError
from mbrl_bilevel.fit import Schedule
from mbrl_bilevel.methods import get_method
from mbrl_bilevel.model_env import Imagination
from mbrl_bilevel.statistics import interval
from mbrl_bilevel.types import Rule


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of train."""

    env_id: str = "Reacher-v5"
    """Gymnasium environment with Box observations and actions."""
    import_module: str | None = None
    """Module to import first; it registers an environment of your own."""
    env_timeout: float | None = None
    """Seconds that one call of the environment may take; none: no limit."""
    agent: Literal["mpc"] = "mpc"
    """What acts: mpc plans in the learned model at every step."""
    model: str = "bilevel"
    """How the model is trained: bilevel, bilevel-temperature, bilevel-constant,
    bilevel-k-step, bilevel-mixture, nll,
    mse, mse-network, beta-nll, beta-nll-1, faithful, nll-mixture, k-step, paper, paper-exponential."""
    steps: int = 3000
    """Real environment steps."""
    eval_every: int = 500
    """Real steps between evaluations; the episode under way is cut there."""
    eval_episodes: int = 5
    """Episodes of an evaluation."""
    termination: str | None = None
    """Your own rule, module:function of (obs, action, next_obs); standard tasks have theirs."""
    reward: str = "learned"
    """learned with the model; known: of a standard task whose observation shows it; or your own,
    module:function of (obs, action, next_obs)."""
    learning_starts: int = 250
    """Random steps before the first model."""
    refit_every: int = 250
    """Real steps between two fits of the model, each from scratch on all experience."""
    exploration: float = 0.2
    """Noise added to planned actions while learning, in half-ranges of the action space."""
    planner: Literal["icem", "cem", "mppi", "random"] = "icem"
    """Which planner; random tries --population times --iterations sequences at once."""
    horizon: int = 15
    """Steps planned ahead."""
    population: int = 64
    """Candidate action sequences in a planner's first iteration."""
    iterations: int = 3
    """Refinements of a plan."""
    no_value: bool = False
    """Plan without a terminal value; it is used only where episodes can terminate."""
    particles: int = 5
    """Imagined trajectories of each candidate; a multiple of --members."""
    propagation: Literal["ts1", "tsinf"] = "tsinf"
    """Whether a particle changes its ensemble member at every step (ts1) or never (tsinf)."""
    pessimism: float = 0.0
    """Standard deviations of the members' returns taken off a plan's score; tsinf only."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """What plans are imagined in; auto: bfloat16 where that is faster, measured at the start."""
    members: int = 5
    """Ensemble members."""
    hidden: tuple[int, ...] = (200, 200)
    """Width of each hidden layer."""
    train_steps: int = 1500
    """Gradient steps of a fit at most."""
    learning_rate: float = 1e-3
    """Adam's step size at the start of the cosine."""
    seeds: int = 1
    """Repeats: --seed, --seed + 1, …; each fills the folder seed-N inside --out."""
    jobs: int = 1
    """Processes for several seeds, each with one thread; the rows are the same whatever their number."""
    save_minari: str | None = None
    """Id under which to write the experience as a Minari data set, such as me/hopper-v0; not with
    several seeds."""
    keep_checkpoints: int = 2
    """Saved agents to keep, the newest; the best one is kept beside them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        get_method(self.model)
        self.require_at_least(1, "steps", "eval_every", most=10**9)
        self.require_at_least(1, "seeds", "jobs", "keep_checkpoints", most=100_000)
        self.require_at_least(1, "learning_starts", "refit_every", "train_steps")
        self.require_at_least(1, "eval_episodes", "horizon", "iterations", most=10_000)
        self.require_at_least(1, "particles", "members", "hidden", most=100_000)
        self.require_at_least(2, "population", most=10**6)
        if self.population * self.particles > 10**7:
            raise InvalidInputError(
                "--population times --particles are states to imagine at once: at most 10,000,000; "
                f"got {self.population} x {self.particles}"
            )
        self.require_positive("learning_rate")
        self.require_positive("exploration", zero=True)
        self.require_positive("pessimism", zero=True)
        if self.env_timeout is not None:
            self.require_positive("env_timeout")
        if self.save_minari is not None and self.seeds > 1:
            raise InvalidInputError("--save-minari: one id is for one seed; leave out --seeds")
        if self.learning_starts >= self.steps:
            raise InvalidInputError(
                f"--learning-starts must be below --steps ({self.steps}), or there is never a model; "
                f"got {self.learning_starts}"
            )
        if self.particles % self.members:
            raise InvalidInputError(
                f"--particles must be a multiple of --members ({self.members}); got {self.particles}"
            )
        self.settings()

    def settings(self) -> MPCSettings:
        """The agent's settings. Raises InvalidInputError for a number out of range."""
        if self.planner == "random":
            size: dict[str, Any] = {"population": self.population * self.iterations}
        else:
            size = {"population": self.population, "iterations": self.iterations}
        if self.planner in ("icem", "cem"):
            size["elite_fraction"] = 0.15
        planner = PLANNERS[self.planner](horizon=self.horizon, **size)
        return MPCSettings(
            method=self.model,
            planner=planner,
            imagination=Imagination(
                self.particles,
                self.propagation,
                pessimism=self.pessimism,
                precision=self.precision,
            ),
            members=self.members,
            hidden=self.hidden,
            schedule=Schedule(steps=self.train_steps, learning_rate=self.learning_rate),
            learning_starts=self.learning_starts,
            refit_every=self.refit_every,
            exploration=self.exploration,
            value=None if self.no_value else ValueSettings(),
        )


def main(args: Args, run: RunFolder) -> Result:
    """One agent, or several seeds of it, each in a run folder of its own inside this one."""
    return _one(args, run) if args.seeds == 1 else _several(args, run)


def _several(args: Args, run: RunFolder) -> Result:
    # Measured once for all seeds, whatever their processes are doing at the time.
    args = replace(args, precision=args.settings().imagination.precision)
    keys = [{"seed": seed} for seed in range(args.seed, args.seed + args.seeds)]
    cells = Cells(keys, train_seed, ("final_return", "steps", "means"))
    rows = run_cells(run, replace(args, out=run.path), cells, "train", args.jobs)
    curves = [
        [{"step": k, "mean": mean} for k, mean in zip(row["steps"], row["means"], strict=True)]
        for row in rows
    ]
    returns = [
        {"step": points[0]["step"], **_spread([point["mean"] for point in points])}
        for points in zip(*curves, strict=True)
    ]
    figure = draw_returns(
        run.figures / "returns.png", {args.model: curves}, {}, f"{args.env_id}, {args.agent}"
    )
    final = interval([row["final_return"] for row in rows])
    metrics = {
        "returns": returns,
        "final_return": final["mean"],
        "final": final,
        "env_steps": args.steps * len(rows),
        "wall_seconds": sum(row["wall_seconds"] for row in rows),
        "rows": rows,
    }
    return Result(metrics, {"final_return": final, "figure": str(figure)})


def _spread(values: list[float]) -> dict[str, Any]:
    return {"std": float(np.std(values)), **interval(values)}


def train_seed(args: Args, key: Row) -> Done:
    """One seed of several, in its own folder, where it goes on after a stop."""
    assert args.out is not None
    folder = args.out / f"seed-{key['seed']}"
    begun = (folder / "config.json").exists()
    own = replace(args, out=folder, seed=key["seed"], seeds=1, jobs=1, quiet=True, resume=begun)
    metrics = run_inside("train", own, _one)
    means = [point["mean"] for point in metrics["returns"]]
    steps = [point["step"] for point in metrics["returns"]]
    kept = {name: metrics[name] for name in ("final_return", "wall_seconds")}
    return Done({**kept, "steps": steps, "means": means, "folder": folder.name})


def _one(args: Args, run: RunFolder) -> Result:
    """Learn in stretches; evaluate and save after each."""
    started = time.perf_counter()
    env = _make(args)
    rule = load_rule(args.termination) if args.termination else termination_rule(env)
    if args.save_minari is not None and not _is_written(args):
        require_new_minari(args.save_minari)
    shelf = Shelf(run.checkpoints, args.keep_checkpoints)
    agent = _agent(args, run, env, rule, _reward(args, env), shelf)
    for row in run.rows:
        run.rows.require(row, "step", "mean", "std", "returns")
    bar = run.bar(args.steps, "train", initial=agent.num_timesteps)
    while True:
        if agent.num_timesteps and run.rows.find(step=agent.num_timesteps) is None:
            row = run.rows.append({"step": agent.num_timesteps} | _evaluate(args, agent))
            _log(run, agent, row)
            bar.set_postfix_str(f"return {row['mean']:.1f}")
        shelf.tidy({row["step"]: row["mean"] for row in run.rows if row["mean"] is not None})
        if agent.num_timesteps >= args.steps:
            break
        with warnings.catch_warnings():
            # A stretch may end before --learning-starts: the next one goes on.
            warnings.filterwarnings("ignore", message="learn\\(\\) ended")
            agent.learn(min(args.eval_every, args.steps - agent.num_timesteps), _Tick(bar.update))
        agent.save(shelf.place(agent.num_timesteps))
    returns = list(run.rows)
    figure = draw_returns(
        run.figures / "returns.png", {args.model: [returns]}, {}, f"{args.env_id}, {args.agent}"
    )
    final = returns[-1]["mean"]
    metrics = {
        "returns": returns,
        "final_return": final,
        "env_steps": agent.num_timesteps,
        "wall_seconds": time.perf_counter() - started,
    }
    if args.save_minari is not None and not _is_written(args):
        save_minari(
            agent.experience.transitions(),
            args.save_minari,
            env,
            algorithm_name=f"{args.agent}, model {args.model}",
            description=f"experience of {args.steps} steps of training, seed {args.seed}",
        )
    files = {"agent": str(shelf.place(args.steps)), "best": str(shelf.best)}
    return Result(metrics, {"final_return": final, **files, "figure": str(figure)})


def _is_written(args: Args) -> bool:
    """Whether a run that was stopped at its very end had its Minari data set finished."""
    assert args.save_minari is not None
    try:
        return args.resume and len(load_minari(args.save_minari)) >= args.steps
    except InvalidInputError:
        return False


def _make(args: Args) -> gym.Env[Any, Any]:
    return make_env(args.env_id, import_module=args.import_module, timeout=args.env_timeout)


def _reward(args: Args, env: gym.Env[Any, Any]) -> Rule | None:
    if args.reward == "learned":
        return None
    if args.reward != "known":
        return load_rule(args.reward, probability=False)
    rule = reward_rule(env)
    if rule is None:
        raise InvalidInputError(
            f"--reward known: the observation of {args.env_id!r} does not show its reward; use "
            "--reward learned, or module:function of your own"
        )
    return rule


def _agent(
    args: Args,
    run: RunFolder,
    env: gym.Env[Any, Any],
    rule: Rule | None,
    reward: Rule | None,
    shelf: Shelf,
) -> MPC:
    """The newest saved agent that is whole, or a new one."""
    monitored = Monitor(env)
    damaged: CheckpointError | None = None
    for path in shelf.newest_first() if args.resume else []:
        try:
            agent = MPC.load(path, monitored, termination=rule, reward=reward)
        except CheckpointError as error:
            damaged = error
            print(f"passed over: {error}", file=sys.stderr, flush=True)
        else:
            return agent
    if damaged is not None:
        raise damaged
    if len(run.rows):
        raise InvalidInputError(
            f"--resume: {shelf.folder} holds no agent although evaluations were made; start anew "
            "with another --out"
        )
    return MPC(monitored, args.settings(), termination=rule, reward=reward, seed=args.seed)


def _evaluate(args: Args, agent: MPC) -> dict[str, Any]:
    """Episodes side by side, planned in one batch, from starts that training never sees."""

    def make() -> Any:
        return Monitor(_make(args))

    envs = DummyVecEnv([make for _ in range(args.eval_episodes)])
    envs.seed(args.seed + 1_000_000)
    found: Any
    found, _ = evaluate_policy(agent, envs, args.eval_episodes, return_episode_rewards=True)
    envs.close()
    if not np.isfinite(found).all():
        raise InvalidInputError(
            f"--env-id {args.env_id!r}: an evaluation returned {found}; mend the environment's reward"
        )
    return {"mean": float(np.mean(found)), "std": float(np.std(found)), "returns": list(found)}


def _log(run: RunFolder, agent: MPC, row: dict[str, Any]) -> None:
    run.tensorboard.add_scalar("eval/return", row["mean"], row["step"])
    fitted = agent.last_fit
    if fitted is not None:
        held_out = float(np.mean(fitted.criterion))
        run.tensorboard.add_scalar("model/held_out", held_out, row["step"])
        for name, value in fitted.outer.items():
            run.tensorboard.add_scalar(f"model/{name}", value, row["step"])


class _Tick(BaseCallback):
    """Moves the progress bar at every real step."""

    def __init__(self, update: Callable[[int], object]) -> None:
        super().__init__()
        self._update = update

    def _on_step(self) -> bool:
        self._update(1)
        return True


if __name__ == "__main__":
    launch(Args, main)
