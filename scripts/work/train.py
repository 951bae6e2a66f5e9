"""What train does, once its options are read: one agent, or several seeds of it, some of them at once perhaps."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from options.train import Args

from mbrl_bilevel.base.errors import BilevelError, InvalidInputError
from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.evaluation.statistics import interval
from mbrl_bilevel.figures.returns import draw_returns
from mbrl_bilevel.studies.cells import Cells, Done, Outcome, SideBySide, run_cells
from mbrl_bilevel.studies.launchers import HERE
from mbrl_bilevel.studies.launching import Result, run_inside
from mbrl_bilevel.studies.run_folder import RunFolder
from work.film import require_film
from work.train_one import Stretch, learn, resumed, trained, training


def train(args: Args, run: RunFolder) -> Result:
    """One agent, or several seeds of it, each in a run folder of its own inside this one."""
    if args.video:
        require_film("--video", args.env_id, **args.making_shorter)
    return trained(args, run) if args.seeds == 1 else _several(args, run)


def _several(args: Args, run: RunFolder) -> Result:
    # Measured once for all seeds, whatever their processes are doing at the time.
    args = args.settled()
    keys: list[Row] = [
        # A run that goes on to more steps has rows of its own.
        {"seed": seed, "env_steps": args.steps}
        for seed in range(args.seed, args.seed + args.seeds)
    ]
    columns = ("final_return", "steps", "means")
    beside = SideBySide(args.side_by_side, train_seeds)
    cells = Cells(keys, train_seed, columns, _folder, side_by_side=beside)
    rows = run_cells(run, args, cells, "train", args.launching())
    curves = [
        [{"step": k, "mean": mean} for k, mean in zip(row["steps"], row["means"], strict=True)]
        for row in rows
    ]
    returns = [
        {"step": points[0]["step"], **_spread([point["mean"] for point in points])}
        for points in zip(*curves, strict=True)
    ]
    figure = draw_returns(
        run.figures / "returns.png", {args.label: curves}, {}, f"{args.env_id}, {args.agent}"
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


def _folder(key: Row) -> str:
    return f"seed-{key['seed']}"


def train_seed(args: Args, key: Row) -> Done:
    """One seed of several, in its own folder, where it goes on after a stop."""
    return _told(key, run_inside("train", _own(args, key), trained))


def train_seeds(args: Args, keys: Sequence[Row]) -> list[Outcome]:
    """Several of them at once: where the one that is furthest behind learns, those that are as far learn with it.

    What became of each. Raises InvalidInputError where they do not go together.
    """
    courses: list[_Inside] = []
    try:
        for key in keys:
            courses.append(_Inside(args, key, len(keys)))
        while going := [course for course in courses if course.outcome is None]:
            behind = min(course.stretch.agent.num_timesteps for course in going)
            level = [c for c in going if c.stretch.agent.num_timesteps == behind]
            seconds, errors = learn([course.stretch for course in level])
            for course, error in zip(level, errors, strict=True):
                course.go_on(seconds, error)
    except InvalidInputError as error:
        print(f"--side-by-side: {error}", file=sys.stderr, flush=True)
        raise
    finally:
        for course in courses:
            course.close()
    return [course.outcome for course in courses if course.outcome is not None]


def _own(args: Args, key: Row) -> Args:
    """The options of one seed of several."""
    assert args.out is not None
    folder = args.out / _folder(key)
    begun = (folder / "config.json").exists()
    filmed = args.video and key["seed"] == args.seed
    alone: dict[str, Any] = {"seed": key["seed"], "seeds": 1, "side_by_side": 1, **HERE}
    return replace(args, out=folder, quiet=True, resume=begun, video=filmed, **alone)


def _told(key: Row, metrics: dict[str, Any]) -> Done:
    means = [point["mean"] for point in metrics["returns"]]
    steps = [point["step"] for point in metrics["returns"]]
    kept = {name: metrics[name] for name in ("final_return", "wall_seconds")}
    return Done({**kept, "steps": steps, "means": means, "folder": _folder(key)})


class _Inside:
    """One of the seeds that learn at once, in its folder: where it is, and what became of it."""

    def __init__(self, args: Args, key: Row, beside: int) -> None:
        self._key, self._course = key, _filled(_own(args, key), beside)
        self.stretch: Stretch
        self.outcome: Outcome | None = None
        self._step(lambda: next(self._course))

    def go_on(self, seconds: float, error: BilevelError | None) -> None:
        """Its stretch took so many seconds, or ended by an error."""
        if error is None:
            self._step(lambda: self._course.send(seconds))
        else:
            self._step(lambda: self._course.throw(error))

    def close(self) -> None:
        """Leave the folder, where it goes on under --resume."""
        self._course.close()

    def _step(self, to: Callable[[], Stretch]) -> None:
        try:
            found = resumed(to)
        except BilevelError as error:
            self.outcome = error
            return
        if isinstance(found, Stretch):
            self.stretch = found
        else:
            self.outcome = _told(self._key, found)


def _filled(args: Args, beside: int) -> Generator[Stretch, float, dict[str, Any]]:
    """As ``run_inside``, in steps."""
    with RunFolder("train", args) as run:
        if run.summary is None:
            result = yield from training(args, run, beside)
            run.finish(result.metrics, result.summary)
        return run.metrics
