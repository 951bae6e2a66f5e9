"""A run at Weights & Biases, beside its folder (``--wandb``, the extra ``[wandb]``): options, curves as they come, rows and
summary at the end.

Where it is logged, and whether at all over a network, is said by W&B's own variables (``WANDB_PROJECT``,
``WANDB_MODE=offline``).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import util
from pathlib import Path
from typing import Any

from mbrl_bilevel.base.errors import InvalidInputError

#: Unless WANDB_PROJECT names another.
PROJECT = "mbrl-bilevel"


def require_wandb() -> None:
    """Raises InvalidInputError where W&B is not installed."""
    found = util.find_spec("wandb")
    if found is None or found.origin is None:  # a folder ./wandb is none
        raise InvalidInputError(
            "--wandb: Weights & Biases is not installed: pip install -e '.[wandb]', or leave the option out"
        )


class WandbRun:
    """One run there. The files that W&B writes are in ``folder``/wandb."""

    def __init__(self, folder: Path, config: Mapping[str, Any], identity: str) -> None:
        """``config``: what the run's config.json holds; ``identity`` is the same when a run is resumed, which then goes on
        there. A run inside another is in the group of that one. Raises InvalidInputError where W&B refuses, as
        when nobody is logged in."""
        import wandb

        outer = folder.parent
        inside = (outer / "config.json").exists()
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT") or PROJECT,
                id=identity,
                resume="allow",
                name=f"{outer.name}/{folder.name}" if inside else folder.name,
                group=outer.name if inside else folder.name,
                job_type=config["script"],
                config=dict(config),
                dir=folder,
                # Seeds of a train have runs of their own, in this process too.
                reinit="create_new",
                settings=wandb.Settings(silent=True, console="off", disable_git=True),
            )
        except wandb.Error as error:
            raise InvalidInputError(
                f"--wandb: {error}; log in by `wandb login`, or set WANDB_MODE=offline"
            ) from error
        # The curves of different methods and seeds do not come in the order of their steps.
        self._run.define_metric("*", step_metric="step")

    def scalar(self, name: str, value: float, step: int) -> None:
        """A point of the curve ``name``."""
        self._run.log({name: value, "step": step})

    def finish(
        self, rows: Iterable[Mapping[str, Any]], summary: Mapping[str, Any] | None, failed: bool
    ) -> None:
        """End it, with the rows as a table. ``summary``: None of a run that was stopped; ``failed``: by an error."""
        import wandb

        columns, data = _table([flat(row) for row in rows])
        if data:
            self._run.log({"rows": wandb.Table(columns=[*columns], data=data)})
        self._run.summary.update(flat(summary or {}))
        self._run.finish(exit_code=int(failed))


def flat(
    document: Mapping[str, Any], before: str = ""
) -> dict[str, str | int | float | bool | None]:
    """Numbers and texts by their names, those inside others as ``outer.inner``; lists are left out."""
    found: dict[str, str | int | float | bool | None] = {}
    for name, value in document.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{name}.")
        elif value is None or isinstance(value, str | int | float):
            found[before + name] = value
    return found


def _table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """A column a name; a column that holds both texts and numbers would be refused, so its values are texts."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    data = [[row.get(name) for name in columns] for row in rows]
    for place in range(len(columns)):
        if len({isinstance(line[place], str) for line in data if line[place] is not None}) > 1:
            for line in data:
                line[place] = None if line[place] is None else str(line[place])
    return columns, data
