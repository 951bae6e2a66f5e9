"""The row of bench about continual learning: what one more task costs after seven, beside after one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from bench_rows.pair import Pair, Sizes, make_data
from mbrl_bilevel.continual.keeping import Elastic
from mbrl_bilevel.continual.learner import Learner
from mbrl_bilevel.continual.recipes import get_recipe
from mbrl_bilevel.training.settings import Schedule

#: Tasks seen before the one that is timed.
_MANY, _FEW = 7, 1
#: For the facts of the row: these keep a penalty a task, one penalty for all, and rows.
_OTHERS = {"ewc": "nll+ewc", "online_ewc": "nll+online-ewc", "replay": "nll+replay"}


def continual_task(sizes: Sizes, seed: int) -> Pair:
    """Learning the eighth task by bilevel+kl; the peer is the second, by the same method.

    A ratio of one is a cost that does not grow with the tasks seen. ``ewc_ratio`` and the others are the
    same ratio of other ways of keeping, from three turns each: EWC's falls with every task.
    """

    def facts() -> Mapping[str, float]:
        return {
            f"{name}_ratio": _ratio(
                _learning(method, sizes, seed, _FEW), _learning(method, sizes, seed, _MANY)
            )
            for name, method in _OTHERS.items()
        }

    return Pair(
        _learning("bilevel+kl", sizes, seed, _MANY),
        _learning("bilevel+kl", sizes, seed, _FEW),
        check=lambda: None,  # two tasks: they are not to agree
        peer_name="the second task, same method, data and steps",
        amount=float(_steps(sizes) * sizes.batch_size * sizes.members),
        unit="training samples/s",
        slow=True,
        facts=facts,
    )


def _learning(method: str, sizes: Sizes, seed: int, tasks: int) -> Callable[[], object]:
    """Learns one more task after ``tasks`` of them. What is kept of those is real; that no step was made
    on them changes no cost."""
    generator = torch.Generator().manual_seed(seed)
    data = make_data(sizes, seed)
    learner = Learner.start(
        get_recipe(method),
        data.x,
        data.y,
        generator=generator,
        members=sizes.members,
        hidden=sizes.hidden,
    )
    keep = learner.recipe.keep
    if isinstance(keep, Elastic):  # its Fisher information costs the same for every task
        keep = replace(keep, rows=1)
    for _ in range(tasks):
        keep = keep.after(learner.model.policy, data, generator)
    learner = replace(learner, recipe=replace(learner.recipe, keep=keep))
    steps = _steps(sizes)
    # Never stopped early: what learns sooner would look faster.
    schedule = Schedule(steps, sizes.batch_size, patience=steps)
    return lambda: learner.learn(data.x, data.y, generator=generator, schedule=schedule)


def _steps(sizes: Sizes) -> int:
    return min(sizes.steps, 300)


def _ratio(few: Callable[[], object], many: Callable[[], object]) -> float:
    """The median time of ``few`` over that of ``many``, in turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(3):
        for call, kept in zip((few, many), times, strict=True):
            began = time.perf_counter()
            call()
            kept.append(time.perf_counter() - began)
    return statistics.median(times[0]) / statistics.median(times[1])
