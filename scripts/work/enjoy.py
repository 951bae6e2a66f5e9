"""What enjoy does, once its options are read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from options.enjoy import Args

from agents.planning_agent.agent import PlanningAgent
from envs.tasks.drawing import make_drawable
from mbrl_bilevel.base.checkpoint import load_checkpoint
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.reading import config_in
from work.film import acting, film, require_film
from work.named_rules import named_reward, named_termination


def enjoy(args: Args) -> Mapping[str, object]:
    """Film an episode of the agent; the file, the steps and their return."""
    file = _agent_file(args.file)
    run = config_in(file.parent.parent)
    if run.get("script") != "train":  # the file lies elsewhere
        run = {}
    told = run.get("args", {})
    env_id = args.env_id or told.get("env_id") or _named_in(file)
    options = {
        "import_module": args.import_module or told.get("import_module"),
        "distractor": told.get("distractor"),
    }
    require_film("FILE", env_id, **options)
    make = partial(make_drawable, env_id, **options)
    env = make()
    reward = args.reward or run.get("resolved", {}).get("reward")
    agent = PlanningAgent.load(
        file,
        env,
        termination=named_termination(args.termination or told.get("termination"), env),
        reward=None if reward is None else named_reward(reward, env),
    )
    path = args.out or file.with_suffix(".mp4")
    found = film(
        path,
        lambda _: acting(agent),
        agent.model,
        make,
        seed=args.seed,
        steps=args.steps,
        ahead=args.ahead,
    )
    return {"video": found.path, "env_id": env_id, "steps": found.steps, "return": found.total}


def _agent_file(path: Path) -> Path:
    """The best agent of a run of train, or of its first seed; or the file itself."""
    if not path.is_dir():
        return path
    found = [path, *sorted(path.glob("seed-*"))]
    for folder in found:
        if (best := folder / "checkpoints" / "best.safetensors").exists():
            return best
    raise InvalidInputError(
        f"FILE: {path} holds no agent; give a run folder of train, or an agent's file"
    )


def _named_in(file: Path) -> str:
    spaces: Any = load_checkpoint(file).config.get("spaces")
    name = spaces.get("env_id") if isinstance(spaces, dict) else None
    if not isinstance(name, str):
        raise InvalidInputError(f"FILE: {file} names no environment; say which: --env-id")
    return name
