"""Several runs put together: repeats are pooled; what was run otherwise, or twice, is told apart by its run."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Sequence

from mbrl_bilevel.pages.contract import Row
from mbrl_bilevel.pages.folders import Run
from mbrl_bilevel.pages.looks import SEPARATOR

#: Options in which runs may differ and still be put together: they are in the rows, or change no number.
FREE = frozenset(
    (
        *("out", "resume", "quiet", "no_report", "threads", "jobs", "seed", "seeds", "save_minari"),
        *("keep_checkpoints", "methods", "env_id", "minari", "csv", "data", "n_train"),
        *("sequences", "planners", "policies", "only"),
        *("launcher", "ray_address", "cell_cpus", "cell_gpus", "side_by_side"),
    )
)

#: The method of a row, what it is compared on, and which repeat it is.
Key = tuple[str, Hashable, Hashable]


def together(runs: Sequence[Run], key: Callable[[Run, Row], Key]) -> Iterator[tuple[str, Run, Row]]:
    """Each row with its label and its run.

    A method that stands in two runs on the same data keeps its name in both if these were run with the same
    options and have no repeat in common; or else the name of the run is put behind it.
    """
    of: dict[tuple[str, Hashable], list[tuple[Run, set[Hashable]]]] = {}
    for run in runs:
        mine: dict[tuple[str, Hashable], set[Hashable]] = {}
        for row in run.rows:
            method, where, repeat = key(run, row)
            mine.setdefault((method, where), set()).add(repeat)
        for line, repeats in mine.items():
            of.setdefault(line, []).append((run, repeats))
    apart = {line for line, found in of.items() if not _poolable(found)}
    for run in runs:
        for row in run.rows:
            method, where, _ = key(run, row)
            label = f"{method}{SEPARATOR}{run.name}" if (method, where) in apart else method
            yield label, run, row


def _poolable(found: Sequence[tuple[Run, set[Hashable]]]) -> bool:
    if len({_settings(run) for run, _ in found}) > 1:
        return False
    return sum(len(repeats) for _, repeats in found) == len(set().union(*(r for _, r in found)))


def _settings(run: Run) -> str:
    kept = {name: value for name, value in run.options.items() if name not in FREE}
    return json.dumps(kept, sort_keys=True, default=str)
