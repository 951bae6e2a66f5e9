"""Logged steps of an environment from an npz file, by the names that are usual for them."""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from envs.datasets.tables import LIMIT
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Transitions

#: What each column goes by, here and elsewhere (Gymnasium, Minari, D4RL).
_NAMES = {
    "obs": ("obs", "observations", "observation", "states", "state"),
    "action": ("action", "actions"),
    "next_obs": ("next_obs", "next_observations", "next_observation", "next_states", "next_state"),
    "reward": ("reward", "rewards"),
    "terminated": ("terminated", "terminations", "terminals", "terminal"),
    "truncated": ("truncated", "truncations", "timeouts", "timeout"),
}
_DONE = ("done", "dones")


def load_steps(path: str | Path, *, limit: int = LIMIT) -> Transitions:
    """The steps in an npz file, one array a column, as ``Transitions.from_arrays`` takes them.

    "done" is an end by the task itself, unless truncated says otherwise. Other arrays are not read.

    Raises InvalidInputError: no such file, damaged, pickles in it, a column missing, arrays that do not fit,
    more than ``limit`` bytes unpacked.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidInputError(f"steps {path}: no such file; give an .npz")
    found: dict[str, npt.NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > limit:
                raise ValueError("it is larger than the limit on unpacked bytes")
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays.files)
            for column, usual in {**_NAMES, "done": _DONE}.items():
                there = [name for name in names if name.lower() in usual]
                if there:
                    found[column] = arrays[there[0]]
    except Exception as error:  # zipfile and numpy raise all kinds for a damaged archive
        said = " ".join(str(error).split())[:200]
        raise InvalidInputError(
            f"steps {path}: cannot be read as npz ({said}); write it with numpy.savez of plain numbers"
        ) from error
    done = found.pop("done", None)
    if done is not None and "terminated" not in found:
        cut = found.get("truncated")
        if cut is None:
            warnings.warn(
                f"steps {path}: done is taken for an end of the task; where time limits are among them, "
                "store terminated and truncated",
                stacklevel=2,
            )
        found["terminated"] = done if cut is None else (done > 0) & ~(cut > 0)
    missing = [name for name in ("obs", "action", "next_obs", "reward") if name not in found]
    if missing:
        raise InvalidInputError(
            f"steps {path}: has no array {missing[0]!r}; it has {', '.join(names[:20]) or 'none'}"
        )
    try:
        return Transitions.from_arrays(**found)
    except InvalidInputError as error:
        raise InvalidInputError(f"steps {path}: {error}") from error
