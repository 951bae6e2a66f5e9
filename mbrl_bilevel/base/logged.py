"""Logged arrays of any type and layout as the columns of ``Transitions``."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.rounding import narrowed

Array = npt.NDArray[Any]

#: A next observation is where the next step begins if it is off by no more than this share of the spread.
_NEAR = 1e-3


def columns_of(given: Mapping[str, Any]) -> dict[str, Array]:
    """The columns of ``Transitions`` from arrays by name, flags None where they are not given; see
    ``Transitions.from_arrays``. Raises InvalidInputError for arrays that do not fit each other."""
    arrays = {name: _numbers(name, value) for name, value in given.items() if value is not None}
    rows = arrays["reward"]
    streams = 1
    if rows.ndim == 2 and arrays["obs"].ndim > 2 and arrays["obs"].shape[:2] == rows.shape:
        streams = rows.shape[1]
        arrays = {
            name: _one_after_another(name, value, rows.shape) for name, value in arrays.items()
        }
    n = len(arrays["obs"])
    for name, value in arrays.items():
        flat = ("obs", "action", "next_obs")
        if value.ndim == 0 or len(value) != n or not n:
            raise InvalidInputError(
                f"Transitions.from_arrays: {name} must have a row for each of the {n} of obs, and one at "
                f"least; got shape {value.shape}"
            )
        arrays[name] = value.reshape(n, -1) if name in flat else value.reshape(n, -1)[:, 0]
        if name not in flat and value.size != n:
            raise InvalidInputError(
                f"Transitions.from_arrays: {name} must hold one number a step, [{n}]; got {value.shape}"
            )
    if arrays["obs"].shape != arrays["next_obs"].shape:
        raise InvalidInputError(
            f"Transitions.from_arrays: obs {arrays['obs'].shape} and next_obs {arrays['next_obs'].shape} "
            "must agree"
        )
    obs, next_obs = narrowed(arrays["obs"], arrays["next_obs"])
    never = np.zeros(n, dtype=np.bool_)
    terminated, truncated = (_flags(k, arrays.get(k, never)) for k in ("terminated", "truncated"))
    last = terminated | truncated
    last[n // streams - 1 :: n // streams] = True
    episode, t = _episodes(last | _jumps(obs, next_obs, last))
    return {
        "obs": obs,
        "action": narrowed(arrays["action"])[0],
        "reward": narrowed(arrays["reward"])[0],
        "next_obs": next_obs,
        "terminated": terminated,
        "truncated": truncated,
        "episode": episode,
        "t": t,
    }


def _numbers(name: str, value: Any) -> Array:
    try:
        found = np.asarray(value)
        # A copy, in C order and the machine's own bytes, whatever came.
        return np.array(found, dtype=np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"Transitions.from_arrays: {name} must be an array of numbers; "
            f"{' '.join(str(error).split())[:120]}"
        ) from None


def _one_after_another(name: str, value: Array, shape: tuple[int, ...]) -> Array:
    """[T, B, …] to [B·T, …]: one environment after another."""
    if value.shape[:2] != shape:
        raise InvalidInputError(
            f"Transitions.from_arrays: {name} must be [T, B, …] = {shape} as the reward; got {value.shape}"
        )
    return value.swapaxes(0, 1).reshape(-1, *value.shape[2:])


def _flags(name: str, value: Array) -> npt.NDArray[np.bool_]:
    if not np.isin(value, (0.0, 1.0)).all():
        raise InvalidInputError(f"Transitions.from_arrays: {name} must be flags, True or False")
    return value > 0.0


def _jumps(obs: Array, next_obs: Array, last: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """[N]: the rows within an episode whose next observation is not where the next row begins."""
    found = np.zeros(len(obs), dtype=np.bool_)
    if len(obs) > 1:
        near = _NEAR * obs.std(0)
        found[:-1] = ~(np.abs(obs[1:] - next_obs[:-1]) <= near).all(1) & ~last[:-1]
    if found.any():
        warnings.warn(
            f"Transitions.from_arrays: after {int(found.sum())} of {len(obs)} steps the next row begins "
            "elsewhere than this one ended, and no flag says so: an episode ends there; give the rows in "
            "order of time, with their flags",
            stacklevel=4,
        )
    return found


def _episodes(last: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Which episode each row belongs to and its time in it, [N], from which rows are the last of one."""
    episode = np.concatenate([[0], np.cumsum(last[:-1])]).astype(np.int64)
    first = np.searchsorted(episode, episode)
    return episode, np.arange(len(last), dtype=np.int64) - first
