"""One agent of train: it learns in stretches, and is evaluated and saved after each."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
from options.train import Args
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor

from agents.common.rules import RewardChoice, TerminationChoice
from agents.planning_agent.agent import PlanningAgent
from agents.side_by_side import learn_side_by_side
from envs.datasets.offline import load_minari, require_new_minari, save_minari
from envs.tasks.drawing import make_drawable
from envs.tasks.make import make_env, require_time_limit
from mbrl_bilevel.base.errors import BilevelError, CheckpointError, InvalidInputError
from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.figures.returns import draw_returns
from mbrl_bilevel.studies.launching import Result
from mbrl_bilevel.studies.returns import PolicyAlone, episode_returns
from mbrl_bilevel.studies.run_folder import Bar, RunFolder
from mbrl_bilevel.studies.saved_agents import Shelf
from work.film import acting, film
from work.named_rules import named_reward, named_termination
from work.train_agents import Built, build


@dataclass(frozen=True)
class Stretch:
    """What an agent is to learn until its next evaluation."""

    agent: PlanningAgent
    steps: int
    until: int
    bar: Bar


#: A run that learns where it yields, and is sent the seconds that took.
Course = Generator[Stretch, float, Result]


def trained(args: Args, run: RunFolder) -> Result:
    """The whole of it."""
    course = training(args, run, 1)
    found = resumed(lambda: next(course))
    while isinstance(found, Stretch):
        seconds, (error,) = learn([found])
        found = resumed(
            partial(course.send, seconds) if error is None else partial(course.throw, error)
        )
    result: Result = found
    return result


def resumed(step: Callable[[], Stretch]) -> Any:
    """The next stretch of a course, or at its end what it returns."""
    try:
        return step()
    except StopIteration as end:
        return end.value


def training(args: Args, run: RunFolder, beside: int) -> Course:
    """Learn in stretches; evaluate and save after each. ``cpu_seconds`` in a row are those of learning in its
    own stretch, not since the start; None of a stretch that ended before a stop. Of ``beside`` seeds that learn at once each
    has its part of the time."""
    started = time.perf_counter()
    env = _make(args)
    require_time_limit(env, args.env_id)
    built = build(args, env)
    run.note_config("resolved", built.resolved())
    rule = named_termination(args.termination, env)
    if args.save_minari is not None and not _is_written(args):
        require_new_minari(args.save_minari, env)
    shelf = Shelf(run.checkpoints, args.keep_checkpoints)
    agent = _agent(args, built, run, env, rule, chosen_reward(args, built, env), shelf)
    for row in run.rows:
        run.rows.require(row, "step", "mean", "std", "returns")
    bar = run.bar(args.steps, "train", initial=agent.num_timesteps)
    seconds: float | None = None  # not known of a stretch that ended before a stop
    while True:
        if agent.num_timesteps and run.rows.find(step=agent.num_timesteps) is None:
            row = run.rows.append(_evaluated(args, agent) | {"cpu_seconds": seconds})
            _log(run, agent, row)
            bar.set_postfix_str(f"return {row['mean']:.1f}")
        shelf.tidy({row["step"]: row["mean"] for row in run.rows if row["mean"] is not None})
        if agent.num_timesteps >= args.steps:
            break
        steps = min(args.eval_every, args.steps - agent.num_timesteps)
        seconds = yield Stretch(agent, steps, args.steps, bar)
        agent.save(shelf.place(agent.num_timesteps))
    returns = list(run.rows)
    curves = {args.label: [returns]}
    if all("policy_mean" in row for row in returns):
        curves["its policy alone"] = [[row | {"mean": row["policy_mean"]} for row in returns]]
    figure = draw_returns(run.figures / "returns.png", curves, {}, f"{args.env_id}, {args.agent}")
    final = returns[-1]["mean"]
    metrics = {
        "returns": returns,
        "final_return": final,
        "env_steps": agent.num_timesteps,
        "wall_seconds": (time.perf_counter() - started) / beside,
        "peak_memory_mb": _peak_memory(),
        "device": str(agent.device),
    }
    if args.save_minari is not None and not _is_written(args):
        save_minari(
            agent.experience.transitions(),
            args.save_minari,
            env,
            algorithm_name=args.label,
            description=f"experience of {args.steps} steps of training, seed {args.seed}",
        )
    files = {"agent": str(shelf.place(args.steps)), "best": str(shelf.best)}
    if args.video:
        make = partial(make_drawable, args.env_id, **args.making_shorter)
        place = run.path / "videos" / "agent.mp4"
        filmed = film(place, lambda _: acting(agent), agent.model, make, seed=args.seed)
        files["video"] = str(filmed.path)
    return Result(metrics, {"final_return": final, **files, "figure": str(figure)})


def learn(stretches: Sequence[Stretch]) -> tuple[float, Sequence[BilevelError | None]]:
    """A stretch, or several alike at once; the processor seconds that one took, and the error that each ended by."""
    before = time.process_time()
    with warnings.catch_warnings():
        # A stretch may end before --learning-starts: the next one goes on.
        warnings.filterwarnings("ignore", message="learn\\(\\) ended")
        errors = _learned(stretches)
    return round((time.process_time() - before) / len(stretches), 2), errors


def _learned(stretches: Sequence[Stretch]) -> Sequence[BilevelError | None]:
    first, ticks = stretches[0], [_Tick(each.bar.update) for each in stretches]
    if len(stretches) > 1:
        agents = [each.agent for each in stretches]
        return learn_side_by_side(agents, first.steps, ticks, until=first.until)
    try:
        first.agent.learn(first.steps, ticks[0], until=first.until)
    except BilevelError as error:
        return [error]
    return [None]


def _evaluated(args: Args, agent: PlanningAgent) -> Row:
    """Returns of episodes as the agent acts, and of its policy alone where it also plans; how it is."""
    where = (partial(_make, args), args.eval_episodes, args.seed, args.env_id)
    found: Row = {"step": agent.num_timesteps, **episode_returns(agent, *where)}
    if agent.settings.planner is not None and agent.held.exists:
        alone = episode_returns(PolicyAlone(agent), *where)
        found |= {f"policy_{name}": value for name, value in alone.items()}
    health = {name.removeprefix("health/"): value for name, value in agent.progress.health}
    return found | ({"health": health} if health else {})


def _peak_memory() -> float | None:
    """Of this process, in MB; None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    # Linux counts kilobytes, macOS bytes.
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def _is_written(args: Args) -> bool:
    """Whether a run that was stopped at its very end had its Minari data set finished."""
    assert args.save_minari is not None
    try:
        return args.resume and len(load_minari(args.save_minari)) >= args.steps
    except InvalidInputError:
        return False


def _make(args: Args) -> gym.Env[Any, Any]:
    return make_env(args.env_id, **args.making_shorter)


def chosen_reward(args: Args, built: Built, env: gym.Env[Any, Any]) -> RewardChoice:
    """The rule that --reward names, or else the preset."""
    try:
        return named_reward(built.reward, env)
    except InvalidInputError:
        if args.reward is not None:
            raise
        if not built.settings.uses_model:  # nothing asks for it
            return None
        raise InvalidInputError(
            f"--preset {built.preset.name} asks for --reward {built.reward}, but the observation of "
            f"{args.env_id!r} does not show its reward; give --reward learned"
        ) from None


def _agent(
    args: Args,
    built: Built,
    run: RunFolder,
    env: gym.Env[Any, Any],
    rule: TerminationChoice,
    reward: RewardChoice,
    shelf: Shelf,
) -> PlanningAgent:
    """The newest saved agent that is whole, or a new one."""
    monitored = Monitor(env)
    given: dict[str, Any] = {"termination": rule, "reward": reward, "device": args.device}
    damaged: CheckpointError | None = None
    for path in shelf.newest_first() if args.resume else []:
        try:
            agent = built.kind.load(path, monitored, **given)
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
    return built.make(monitored, seed=args.seed, **given)


def _log(run: RunFolder, agent: PlanningAgent, row: dict[str, Any]) -> None:
    run.scalar("eval/return", row["mean"], row["step"])
    if "policy_mean" in row:
        run.scalar("eval/policy_return", row["policy_mean"], row["step"])
    for name, value in agent.progress.health:
        run.scalar(name, value, row["step"])
    fitted = agent.last_fit
    if fitted is not None:
        held_out = float(np.mean(fitted.criterion))
        run.scalar("model/held_out", held_out, row["step"])
        for name, value in fitted.outer.items():
            run.scalar(f"model/{name}", value, row["step"])


class _Tick(BaseCallback):
    """Moves the progress bar at every real step."""

    def __init__(self, update: Callable[[int], object]) -> None:
        super().__init__()
        self._update = update

    def _on_step(self) -> bool:
        self._update(1)
        return True
