"""The cells of a study as a TOML file declares them: tasks in order, each with its columns and seeds."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.reading import is_number, is_seed, is_text

#: The line that returns are scaled by, beside the target.
RANDOM = "random actions"

#: Options of train that are not a column's: they are said elsewhere in the study, or are study's own.
_TAKEN = (
    *("--seed", "--seeds", "--steps", "--env-id", "--eval-every", "--eval-episodes"),
    *("--out", "--resume", "--jobs", "--threads", "--quiet", "--no-report"),
    *("--launcher", "--ray-address", "--cell-cpus", "--cell-gpus"),
)


@dataclass(frozen=True)
class Cell:
    """One run of train. ``options`` are all that it is told, but for where to write."""

    task: str
    column: str
    seed: int
    steps: int
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        """Where its files lie below a folder."""
        return f"{self.task}/{self.column}-{self.seed}"


@dataclass(frozen=True)
class Published:
    """A published return after so many real steps."""

    name: str
    step: int
    value: float


@dataclass(frozen=True)
class Task:
    """An environment. ``steps``: how far each column is trained; ``targets``: the returns to reach, by real
    steps; ``lines``: returns that nothing is learned for, by name."""

    env_id: str
    steps: Mapping[str, int]
    seeds: tuple[int, ...]
    eval_every: int
    eval_episodes: int
    options: tuple[str, ...] = ()
    targets: Mapping[int, float] = field(default_factory=dict)
    lines: Mapping[str, float] = field(default_factory=dict)
    published: tuple[Published, ...] = ()

    def evaluated(self, column: str) -> list[int]:
        """The steps after which a column is evaluated."""
        last = self.steps[column]
        return [*range(self.eval_every, last, self.eval_every), last]


@dataclass(frozen=True)
class Grid:
    """A study. ``columns``: options of train by name; ``compare``: pairs of columns to subtract; ``shown``:
    the steps of the tables, beside those of the targets."""

    columns: Mapping[str, tuple[str, ...]]
    tasks: tuple[Task, ...]
    compare: tuple[tuple[str, str], ...]
    shown: tuple[int, ...]

    def cells(self) -> Iterator[Cell]:
        """In the order they are run: task by task, in each seed by seed."""
        for task in self.tasks:
            for seed in task.seeds:
                for column in task.steps:
                    yield self.cell(task, column, seed)

    def cell(self, task: Task, column: str, seed: int) -> Cell:
        """One column of a task with one seed."""
        options = (
            *(f"--env-id={task.env_id}", f"--seed={seed}", f"--steps={task.steps[column]}"),
            *(f"--eval-every={task.eval_every}", f"--eval-episodes={task.eval_episodes}"),
            *(*self.columns[column], *task.options),
        )
        return Cell(task.env_id, column, seed, task.steps[column], options)


def read_grid(path: Path) -> Grid:
    """The study that the file declares. Raises InvalidInputError, in one line, for anything odd in it."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError(f"{path}: {error.strerror}; give a study's TOML file") from None
    except ValueError as error:  # no UTF-8, or no TOML
        raise InvalidInputError(f"{path}: {error}") from None
    except RecursionError:
        raise InvalidInputError(f"{path}: it is nested too deeply for a study's file") from None
    try:
        return _grid(document)
    except InvalidInputError as error:
        raise InvalidInputError(f"{path}: {error}") from None


def _grid(document: dict[str, Any]) -> Grid:
    rest = dict(document)
    columns = {
        _known(name, _is_name, "a column's name", "letters, digits, dots and dashes"): _split(words)
        for name, words in _take(rest, "columns", _is_table, "a table of options").items()
    }
    seeds = _take(rest, "seeds", _is_seeds, "a list of different seeds", [0])
    compare = _take(rest, "compare", _is_list, "a list of pairs of columns", [])
    shown = _take(rest, "shown", _is_counts, "a list of different steps", [])
    tasks = _take(rest, "tasks", _is_filled, "[[tasks]] tables")
    _refuse_rest(rest)
    for pair in compare:
        if not (_is_texts(pair) and len(pair) == 2 and set(pair) <= columns.keys()):
            raise InvalidInputError(f"compare: {pair} is no pair of columns")
    found = tuple(_task(each, columns, seeds) for each in tasks)
    names = [task.env_id for task in found]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInputError(f"tasks: {name} is there twice; make one of them")
    return Grid(columns, found, tuple((a, b) for a, b in compare), tuple(shown))


def _task(table: Any, columns: Mapping[str, Any], seeds: list[int]) -> Task:
    rest = dict(_known(table, _is_table, "tasks", "tables"))
    env_id = _take(rest, "env_id", _is_env_id, "the name of an environment")
    try:
        mine = _take(rest, "columns", _is_texts, "a list of columns")
        for column in mine:
            if column not in columns or mine.count(column) > 1:
                raise InvalidInputError(f"columns: {column!r} is unknown, or there twice")
        steps = dict.fromkeys(mine, _take(rest, "steps", _is_count, "a number of steps"))
        for column, count in _take(rest, "steps_of", _is_table, "steps by column", {}).items():
            if column not in steps or not _is_count(count):
                raise InvalidInputError(f"steps_of: {column!r} is no column here, or has no steps")
            steps[column] = count
        task = Task(
            env_id,
            steps,
            tuple(_take(rest, "seeds", _is_seeds, "a list of different seeds", seeds)),
            _take(rest, "eval_every", _is_count, "a number of steps"),
            _take(rest, "eval_episodes", _is_count, "a number of episodes"),
            _split(_take(rest, "options", is_text, "options of train", "")),
            _targets(_take(rest, "targets", _is_table, "returns by step", {})),
            _take(rest, "lines", _is_numbers, "returns by name", {}),
            tuple(map(_published, _take(rest, "published", _is_list, "a list of tables", []))),
        )
        _refuse_rest(rest)
        _check_targets(task)
    except InvalidInputError as error:
        raise InvalidInputError(f"{env_id}: {error}") from None
    return task


def _targets(table: Mapping[str, Any]) -> dict[int, float]:
    for step, value in table.items():
        if not (re.fullmatch("[1-9][0-9]{0,9}", step) and is_number(value)):
            raise InvalidInputError(f"targets: {step} = {value} is no return after a step")
    return {
        int(step): float(value) for step, value in sorted(table.items(), key=lambda x: int(x[0]))
    }


def _check_targets(task: Task) -> None:
    evaluated = {step for column in task.steps for step in task.evaluated(column)}
    for step, value in task.targets.items():
        if step not in evaluated:
            raise InvalidInputError(f"targets: no column is evaluated after {step} steps")
        if task.lines.get(RANDOM, value) == value:
            raise InvalidInputError(f"lines: give {RANDOM!r}, other than the target, to scale by")


def _published(table: Any) -> Published:
    rest = dict(_known(table, _is_table, "published", "tables"))
    found = Published(
        _take(rest, "name", is_text, "text"),
        _take(rest, "step", _is_count, "a number of steps"),
        float(_take(rest, "value", is_number, "a number")),
    )
    _refuse_rest(rest)
    return found


def _take(
    rest: dict[str, Any], name: str, test: Callable[[Any], bool], what: str, default: Any = None
) -> Any:
    """The value of that name, taken out of ``rest``."""
    if name not in rest and default is None:
        raise InvalidInputError(f"{name} is missing; give {what}")
    return _known(rest.pop(name, default), test, name, what)


def _known(value: Any, test: Callable[[Any], bool], name: str, what: str) -> Any:
    if not test(value):
        raise InvalidInputError(f"{name}: {value!r} will not do; give {what}")
    return value


def _refuse_rest(rest: Mapping[str, Any]) -> None:
    for name in rest:
        raise InvalidInputError(f"{name!r} is not known here; leave it out")


def _split(words: Any) -> tuple[str, ...]:
    try:
        found = tuple(shlex.split(_known(words, is_text, "options", "options of train")))
    except ValueError as error:
        raise InvalidInputError(f"options: {words!r}: {error}") from None
    for word in found:
        if word.replace("_", "-").startswith(_TAKEN):
            raise InvalidInputError(
                f"options: {word} is not a column's to choose; leave it out, what may be chosen is "
                "said by keys of the task"
            )
    return found


def _is_name(value: Any) -> bool:
    return re.fullmatch(r"\w[\w.-]*", value) is not None


def _is_env_id(value: Any) -> bool:
    return isinstance(value, str) and all(map(_is_name, value.split("/")))


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_filled(value: Any) -> bool:
    return isinstance(value, list) and bool(value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value <= 10**9


def _is_counts(value: Any) -> bool:
    good = isinstance(value, list) and all(map(_is_count, value))
    return good and len(value) == len(set(value))


def _is_seeds(value: Any) -> bool:
    good = isinstance(value, list) and all(map(is_seed, value))
    return good and 0 < len(value) == len(set(value))


def _is_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(is_number, value.values()))
