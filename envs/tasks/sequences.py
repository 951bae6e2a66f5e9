"""Sequences of tasks for continual learning: one dynamics whose data shifts, or a dynamics that changes.

A new one is a line: ``SEQUENCES["hopper-wind"] = changing("Hopper", [{"wind": w} for w in (0, 10, -10)])``;
one of your own environments, of several robots too, is ``examples/my_sequence.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from envs.tasks.gaits import Gaits
from envs.tasks.layers import Env
from envs.tasks.make import make_env
from envs.tasks.pushing import Pushing
from envs.tasks.room import OBJECTS
from envs.tasks.variations import ROBOTS, VARIATIONS
from mbrl_bilevel.base.errors import InvalidInputError, look_up
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.data.splits import sample_segments, stretch_means

#: ``collect(env, behaviour, steps, seed=…, max_episode_steps=…)``: that of ``agents.common.experience``, passed in.
Collect = Callable[..., Transitions]

#: ``make_behaviour(env, generator)`` gives the ``behaviour(obs, t) -> action`` that collects a task's data.
MakeBehaviour = Callable[[Env, np.random.Generator], Callable[[npt.NDArray[Any], int], Any]]

#: Steps of an episode, and of the stretches that belong to one region.
_EPISODE, STRETCH = 100, 20


@dataclass(frozen=True)
class Region:
    """The stretches whose mean of observation ``index`` lies between two quantiles, ``low`` and ``high``."""

    index: int
    low: float
    high: float


@dataclass(frozen=True)
class Task:
    """One task: a ``robot`` with a ``variation``, driven by gaits of these ``frequencies``, or by a ``behaviour``;
    of what they do, one ``region`` only, if given. A ``context`` is appended to every observation.

    ``robot`` is one of ``variations.ROBOTS``, or the id of any registered environment with Box actions, a
    robot of your own say; the ``variation`` is then what its maker is called with (``gymnasium.make``).
    """

    name: str
    robot: str
    variation: Mapping[str, Any]
    frequencies: tuple[float, float] = (0.02, 0.2)
    region: Region | None = None
    context: tuple[float, ...] = ()
    behaviour: MakeBehaviour | None = None

    def make(self) -> Env:
        """Its environment."""
        env_id = f"mbrl/{self.robot}-v0" if self.robot in ROBOTS else self.robot
        told = ",".join(map(repr, self.context))
        return make_env(env_id, distractor=f"constant:{told}" if told else None, **self.variation)

    def data(
        self, collect: Collect, *, rows: int, test_rows: int, seed: int
    ) -> tuple[Transitions, Transitions]:
        """Training and test steps, from episodes of their own; those of a seed are always the same.

        Raises InvalidInputError for counts below one.
        """
        if min(rows, test_rows) < 1:
            raise InvalidInputError(
                f"rows and test_rows must be at least 1; got {rows}, {test_rows}"
            )
        env = self.make()
        pools = [self._pool(env, collect, n, (seed, k)) for k, n in enumerate((rows, test_rows))]
        env.close()
        if self.region is not None:
            # The test's region is that of training, in the units of the observation.
            speeds, _ = stretch_means(pools[0], pools[0].obs[:, self.region.index], STRETCH)
            between = np.quantile(speeds, (self.region.low, self.region.high))
            if self.region.high == 1.0:
                between[1] = np.inf
            if self.region.low == 0.0:
                between[0] = -np.inf
            pools = [_within(pool, self.region.index, *between) for pool in pools]
        random = np.random.default_rng([seed, 2])
        train, test = (
            sample_segments(pool, min(n, len(pool)), STRETCH, random)
            for pool, n in zip(pools, (rows, test_rows), strict=True)
        )
        return train, test

    def _pool(self, env: Env, collect: Collect, rows: int, seed: tuple[int, int]) -> Transitions:
        """Enough that a region still has ``rows``, or nearly."""
        share = 1.0 if self.region is None else self.region.high - self.region.low
        steps = int(np.ceil(1.2 * rows / share / _EPISODE)) * _EPISODE
        random = np.random.default_rng(seed)
        assert isinstance(env.action_space, gym.spaces.Box)
        behaviour = (
            Gaits(env.action_space, random, self.frequencies)
            if self.behaviour is None
            else self.behaviour(env, random)
        )
        first = int(random.integers(2**31))
        return collect(env, behaviour, steps, seed=first, max_episode_steps=_EPISODE)


@dataclass(frozen=True)
class TaskSequence:
    """``tasks`` in their order, of one robot or of several with spaces of one width. ``kind`` "shared": one dynamics, so that no forgetting is needed;
    "changing": what was true of an earlier task need not be of a later one."""

    kind: Literal["shared", "changing"]
    tasks: tuple[Task, ...]
    summary: str

    def __post_init__(self) -> None:
        if not self.tasks:
            raise InvalidInputError("a sequence needs tasks; got none")

    def check(self) -> None:
        """Raises InvalidInputError where one model cannot learn all tasks: their observations or actions differ
        in width, or a robot is none."""
        widths = {}
        for task in self.tasks:
            env = task.make()
            widths[task.name] = (env.observation_space.shape, env.action_space.shape)
            env.close()
        (first, wanted), *rest = widths.items()
        for name, found in rest:
            if found != wanted:
                raise InvalidInputError(
                    f"sequence: one model learns all tasks, but task {name!r} has observations {found[0]} and "
                    f"actions {found[1]}, and {first!r} {wanted[0]} and {wanted[1]}; bring them to one width by "
                    "a wrapper of yours"
                )

    def told_apart(self) -> TaskSequence:
        """The same with the number of each task, one-hot, appended to its observations: what an agent of all of them
        goes by, as in Continual World (Wołczyk et al. 2021, arXiv 2105.10919)."""
        told = np.eye(len(self.tasks)).tolist()
        tasks = (
            replace(task, context=(*task.context, *number))
            for task, number in zip(self.tasks, told, strict=True)
        )
        return replace(self, tasks=tuple(tasks))

    def with_context(self) -> TaskSequence:
        """The same with the numbers that vary appended to every observation of a task.

        Raises InvalidInputError where nothing varies but the data.
        """
        flat = [_numbers(task.variation) for task in self.tasks]
        names = sorted({name for found in flat for name in found})
        if not names:
            raise InvalidInputError("with_context: these tasks differ in their data only")
        known = (VARIATIONS.get(name.partition(".")[0]) for name in names)
        usual = [0.0 if found is None else found.default or 0.0 for found in known]
        contexts = [
            tuple(found.get(n, u) for n, u in zip(names, usual, strict=True)) for found in flat
        ]
        tasks = (replace(t, context=c) for t, c in zip(self.tasks, contexts, strict=True))
        return replace(self, tasks=tuple(tasks))


def changing(
    robot: str, variations: Sequence[Mapping[str, Any]], summary: str = ""
) -> TaskSequence:
    """One task for each of ``variations`` (``envs.tasks.variations.VARIATIONS``) of a robot's dynamics."""
    tasks = tuple(Task(f"{i}:{_named(v)}", robot, v) for i, v in enumerate(variations))
    return TaskSequence("changing", tasks, summary)


def get_sequence(name: str) -> TaskSequence:
    """The sequence of that name. Raises InvalidInputError with the nearest name."""
    return look_up(SEQUENCES, name, "unknown sequence")


def _named(variation: Mapping[str, Any]) -> str:
    return ",".join(f"{n}={v:g}" for n, v in _numbers(variation).items()) or "plain"


def _numbers(variation: Mapping[str, Any]) -> dict[str, float]:
    """One number a name; those of parts are called ``mass.torso``. What is no number is left out."""
    found: dict[str, float] = {}
    for name, value in variation.items():
        if isinstance(value, Mapping):
            found |= {f"{name}.{part}": float(factor) for part, factor in value.items()}
        elif not isinstance(value, str):
            found[name] = float(value)
    return found


def _within(transitions: Transitions, index: int, low: float, high: float) -> Transitions:
    means, stretch = stretch_means(transitions, transitions.obs[:, index], STRETCH)
    kept = transitions[((low <= means) & (means < high))[stretch]]
    if not len(kept):
        raise InvalidInputError("no test step lies in this region: ask for more test_rows")
    return kept


#: Place of the forward velocity in HalfCheetah's observation.
_CHEETAH_SPEED = 8

SEQUENCES: dict[str, TaskSequence] = {
    "room": TaskSequence(
        "shared",
        tuple(Task(name, "mbrl/Room-v0", {"task": name}, behaviour=Pushing) for name in OBJECTS),
        "one room with six objects, of which each task moves one",
    ),
    "halfcheetah-speed": TaskSequence(
        "shared",
        tuple(
            Task(
                f"quarter {k}", "HalfCheetah", {}, region=Region(_CHEETAH_SPEED, k / 4, (k + 1) / 4)
            )
            for k in range(4)
        ),
        "four quarters of the speeds that gaits reach, the slowest first",
    ),
    "halfcheetah-behaviour": TaskSequence(
        "shared",
        tuple(
            Task(f"f={low:g}", "HalfCheetah", {}, frequencies=(low, 1.5 * low))
            for low in (0.02, 0.05, 0.1, 0.2)
        ),
        "gaits that grow faster",
    ),
    "pusher-goal": TaskSequence(
        "shared",
        tuple(
            Task(f"goal {x:g},{y:g}", "Pusher", {"goal_x": x, "goal_y": y})
            for x, y in ((0.0, 0.0), (0.15, 0.15), (-0.15, 0.15), (0.15, -0.15))
        ),
        "goals that move; the observation shows where",
    ),
    "halfcheetah-gravity": changing(
        "HalfCheetah", [{"gravity": g} for g in (1.0, 0.5, 1.5, 0.75, 1.25)], "factors of gravity"
    ),
    "halfcheetah-body": changing(
        "HalfCheetah",
        [
            {},
            {"length": {"bthigh": 1.3, "bshin": 1.3}},
            {"length": {"fthigh": 0.7, "fshin": 0.7}},
            {"mass": {"torso": 1.5}},
        ],
        "limbs and torsos of other sizes",
    ),
    "hopper-mass": changing("Hopper", [{"mass": m} for m in (1.0, 0.5, 1.5, 2.0)], "masses"),
    "walker-friction": changing(
        "Walker2d", [{"friction": f} for f in (1.0, 0.2, 2.0, 0.5)], "friction of the ground"
    ),
    "halfcheetah-mix": changing(
        "HalfCheetah",
        [
            {},
            {"gravity": 0.6},
            {"strength": 0.6},
            {"friction": 0.3},
            {"mass": 1.5},
            {"damping": 10.0},
            {"length": {"bthigh": 1.3, "bshin": 1.3}},
            {"wind": 20.0},
            {"gravity": 1.4, "strength": 1.3},
            {"mass": {"torso": 0.6}, "friction": 2.0},
        ],
        "ten tasks that differ in one thing or two",
    ),
    "halfcheetah-flipped": changing(
        "HalfCheetah",
        [
            {},
            {"strength": {"bthigh": -1.0, "fthigh": -1.0}},
            {"strength": {"bshin": -1.0, "fshin": -1.0}},
            {"strength": -1.0},
        ],
        "motors that push the other way",
    ),
    "halfcheetah-lame": changing(
        "HalfCheetah",
        [
            {},
            {"strength": {"bthigh": 0.0, "bshin": 0.0, "bfoot": 0.0}},
            {"strength": {"fthigh": 0.0, "fshin": 0.0, "ffoot": 0.0}},
            {"strength": {"bthigh": 0.0, "fthigh": 0.0}},
        ],
        "legs without strength",
    ),
    "halfcheetah-planets": changing(
        "HalfCheetah", [{"gravity": g} for g in (1.0, 0.2, 2.0, 0.5, 3.0)], "gravity, far apart"
    ),
    "hopper-planets": changing(
        "Hopper", [{"gravity": g} for g in (1.0, 0.2, 2.0, 0.5, 3.0)], "gravity, far apart"
    ),
    "doublependulum-flipped": changing(
        "InvertedDoublePendulum",
        [{}, {"strength": -1.0}, {"strength": 0.5}],
        "a motor that pushes the other way, then with half its strength",
    ),
    "halfcheetah-long": changing(
        "HalfCheetah",
        [
            {},
            {"strength": {"bthigh": 0.0}},
            {"gravity": 0.3},
            {"strength": {"fthigh": -1.0, "bthigh": -1.0}},
            {"mass": 2.0},
            {"strength": {"fthigh": 0.0, "fshin": 0.0, "ffoot": 0.0}},
            {"gravity": 2.5},
            {"strength": {"bshin": -1.0, "fshin": -1.0}},
            {"friction": 0.1},
            {"strength": 0.4},
            {"damping": 10.0},
            {"strength": {"bthigh": 0.0, "bshin": 0.0, "bfoot": 0.0}},
            {"wind": 30.0},
            {"strength": {"bthigh": -1.0}},
            {"gravity": 0.3, "mass": 0.5},
            {"strength": {"fshin": 0.0, "bshin": 0.0}},
            {"mass": {"torso": 3.0}},
            {"strength": 2.0},
            {"strength": {"fthigh": -1.0, "fshin": -1.0, "ffoot": -1.0}},
            {"strength": -1.0, "gravity": 2.0},
        ],
        "twenty tasks: lame legs, motors that push the other way, gravity, masses, grip, drag and wind",
    ),
}
