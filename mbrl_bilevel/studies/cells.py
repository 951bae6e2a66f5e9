"""The cells of a study (a method, a size, a seed each) run side by side, each finished row kept.

The rows are the same wherever the cells are run (``Launcher``): a cell depends on its key alone, and each
process computes with one thread.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Generic, TypeVar

from mbrl_bilevel.base.errors import BilevelError
from mbrl_bilevel.base.rows import Row
from mbrl_bilevel.studies.arguments import RunArgs
from mbrl_bilevel.studies.run_folder import RunFolder

R = TypeVar("R", bound=RunArgs)

#: Curves for TensorBoard: name -> (step, value) pairs.
Curves = Mapping[str, Sequence[tuple[int, float]]]


@dataclass(frozen=True)
class Done:
    """What a finished cell gives back.

    ``row``: what its row holds beside the key, numbers, lists, strings or dicts of them; NaN is kept as null
    and listed under ``non_finite``. ``curves``: for TensorBoard, metric -> (step, value) pairs, such as
    ``FitResult.history``.
    """

    row: Mapping[str, object]
    curves: Curves = field(default_factory=dict)


#: What becomes of a cell: its result, or the error that it failed by.
Outcome = Done | BilevelError


@dataclass(frozen=True)
class SideBySide(Generic[R]):
    """Cells that can be done at once, ``size`` of them at most, where they differ in the column ``differ`` alone.

    ``work(args, keys)`` does them and says what became of each, in their order; like ``Cells.work`` it is a function
    at the top level of its file. Where it raises a BilevelError they are done one after another.
    """

    size: int
    work: Callable[[R, Sequence[Row]], Sequence[Outcome]]
    differ: str = "seed"


@dataclass(frozen=True)
class Cells(Generic[R]):
    """The cells of a study: one piece of work, done for many keys.

    ``keys``: a dict for each cell that says which one it is, ``{"method": "nll", "seed": 0}``; no two are
    the same. ``work(args, key)`` does one of them; all that it draws and computes depends on these two alone,
    and it is a function at the top level of its file, since other processes import it by name.
    ``columns``: what every finished row holds beside its key, numbers or lists of them; a row on disk
    without one is refused on a resume. ``folder(key)``: where a cell writes files as well, the name of the
    folder inside ``args.out`` that is its own; a cell that is tried again finds there what it wrote before, also on
    another machine. None: the row is all. ``side_by_side``: how several are done at once; None: each by itself.
    """

    keys: Sequence[Row]
    work: Callable[[R, Row], Done]
    columns: Sequence[str] = ()
    folder: Callable[[Row], str] | None = None
    side_by_side: SideBySide[R] | None = None
    #: The column in which a key that stands for several cells has a list; None: each key is one cell's.
    differ: str | None = None

    def folders(self, key: Row) -> list[str]:
        """Those that the cell of ``key`` fills, or the cells that it stands for."""
        if self.folder is None:
            return []
        each = [key] if self.differ is None else _apart(key, self.differ)
        return [self.folder(single) for single in each]


@dataclass(frozen=True)
class Launcher:
    """Where cells are run: on this machine (``local``) or on a Ray cluster (``on_ray``).

    ``outcomes(args, cells, todo)``: run the cells with the keys ``todo``, and give (key, outcome) pairs as they end.
    ``session()``: a context that holds what they run on; entered by ``run_cells``, and once around several of
    its calls by whoever wants to start it only once.
    """

    outcomes: Callable[[Any, Cells[Any], Sequence[Row]], Generator[tuple[Row, Outcome]]]
    session: Callable[[], AbstractContextManager[object]] = nullcontext


def run_cells(run: RunFolder, args: R, cells: Cells[R], desc: str, launcher: Launcher) -> list[Row]:
    """Do the cells that the run's folder has no row of, and give all rows back in the order of the keys.

    ``args`` is handed to each cell, its ``out`` being the run's folder; ``desc`` stands beside the progress bar;
    ``launcher`` says where the cells run (``LauncherArgs.launching()``), and the rows are the same wherever.

    A cell that fails by a BilevelError is told in a line on stderr and left in rows.jsonl with its
    error under ``failed``; the others go on, and it is tried again under --resume. ``run.failed``
    counts them. A process that is killed costs its cell alone. Raises the first failure if every cell failed.
    """
    _finished(run, cells)  # a row that was edited is told now, not after hours of work
    todo = [key for key in cells.keys if run.rows.find(**key) is None]
    bar = run.bar(len(cells.keys), desc, initial=len(cells.keys) - len(todo))
    failures: list[tuple[Row, BilevelError]] = []
    told = 0
    with (
        launcher.session() if todo else nullcontext(),
        closing(_ending(launcher, replace(args, out=run.path), cells, todo)) as ending,
    ):
        for key, outcome in ending:
            if isinstance(outcome, BilevelError):
                failures.append((key, outcome))
            else:
                run.rows.append(key | dict(outcome.row))
                _draw(run, key, outcome.curves)
            if len(
                run.rows
            ):  # if nothing works, it is the options or the data: one error says it all
                _tell(run, failures[told:])
                told = len(failures)
            bar.update(1)
    bar.close()
    rows = _finished(run, cells)
    if failures and not rows:
        raise failures[0][1]
    run.failed = len(failures)
    return rows


def _ending(
    launcher: Launcher, args: R, cells: Cells[R], todo: Sequence[Row]
) -> Generator[tuple[Row, Outcome]]:
    """The outcomes of ``todo`` as they come; of those that are done side by side, all at once."""
    beside = cells.side_by_side
    if beside is None or beside.size == 1:
        yield from launcher.outcomes(args, cells, todo)
        return
    keys = _grouped(todo, beside)
    work = partial(_work_together, cells.work, beside)
    together = Cells(keys, work, folder=cells.folder, differ=beside.differ)
    with closing(launcher.outcomes(args, together, keys)) as ending:
        for key, outcome in ending:
            single = _apart(key, beside.differ)
            each = outcome.each if isinstance(outcome, _Several) else (outcome,) * len(single)
            yield from zip(single, each, strict=True)


@dataclass(frozen=True)
class _Several(Done):
    """What became of each of several cells."""

    each: tuple[Outcome, ...] = ()


def _grouped(todo: Sequence[Row], beside: SideBySide[R]) -> list[Row]:
    """The keys of ``todo``, as many in one as go side by side: that one has a list where they differ."""
    groups: list[Row] = []
    open_groups: dict[str, Row] = {}
    for key in todo:
        name = repr({**key, beside.differ: None})
        group = open_groups.get(name)
        if group is None or len(group[beside.differ]) == beside.size:
            open_groups[name] = group = {**key, beside.differ: []}
            groups.append(group)
        group[beside.differ].append(key[beside.differ])
    return groups


def _apart(key: Row, differ: str) -> list[Row]:
    return [{**key, differ: value} for value in key[differ]]


def _work_together(
    work: Callable[[R, Row], Done], beside: SideBySide[R], args: R, key: Row
) -> _Several:
    keys = _apart(key, beside.differ)
    try:
        each = beside.work(args, keys)
    except BilevelError:  # they do not go together: each answers for itself
        each = [attempt(work, args, single) for single in keys]
    return _Several({}, each=tuple(each))


def _tell(run: RunFolder, failures: Sequence[tuple[Row, BilevelError]]) -> None:
    for key, error in failures:
        line = " ".join(str(error).split())
        run.rows.append(key | {"failed": line})
        print(f"failed: {_named(key)}: {line}", file=sys.stderr, flush=True)


def _finished(run: RunFolder, cells: Cells[R]) -> list[Row]:
    """Raises InvalidInputError for a row whose columns are not what this script wrote."""
    rows = [row for key in cells.keys if (row := run.rows.find(**key)) is not None]
    return [run.rows.require(row, *cells.columns) for row in rows]


def attempt(work: Callable[[R, Row], Done], args: R, key: Row) -> Outcome:
    """Do one cell in this process; what it gives back, or the BilevelError that it failed by."""
    try:
        return work(args, key)
    except BilevelError as error:
        return error


def killed() -> BilevelError:
    """What is told of a cell whose process was killed whenever it was tried."""
    return BilevelError("its process was killed, perhaps for want of memory; ask for less of it")


def one_thread() -> None:
    """From here on, PyTorch, NumPy and scikit-learn compute with one thread in this process."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(1)
    threadpool_limits(1)  # of NumPy and scikit-learn


def _draw(run: RunFolder, key: Row, curves: Curves) -> None:
    for name, points in curves.items():
        for step, value in points:
            run.scalar(f"{name}/{_named(key, '/')}", value, step)


def _named(key: Row, between: str = " ") -> str:
    return between.join(str(value) for value in key.values())
