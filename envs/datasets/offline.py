"""Minari data sets to and from Transitions (https://minari.farama.org), episode by episode.

Nothing in a data set is executed: the environment it names is not made, and a data set that could
only be read by making it is refused.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import numpy.typing as npt
from gymnasium.envs.registration import EnvSpec
from minari.data_collector import EpisodeBuffer

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.base.rounding import Changes

_MAX_METADATA = 10_000_000  # bytes


def load_minari(dataset: str | Path | minari.MinariDataset) -> Transitions:
    """The steps of the Minari data set ``dataset``, by its id or by the path of its folder; or of one that Minari has
    loaded, and perhaps filtered (``minari.load_dataset(…).filter_episodes(…)``).

    Read one episode at a time into arrays made once, as float32; observations as float64 where float32
    would lose their changes. What ``save_minari`` wrote comes
    back bit for bit; other data sets get episode numbers 0, 1, … and times from 0.

    Raises InvalidInputError: not found, damaged, not stored as HDF5, spaces other than 1-D Boxes,
    NaN or infinity in the data.
    """
    if isinstance(dataset, minari.MinariDataset):
        return _read_all(dataset.id, lambda: dataset)
    name = str(dataset)
    folder = Path(dataset) if Path(dataset).is_dir() else _folder_of(name)
    data = folder / "data" if (folder / "data").is_dir() else folder
    _check_metadata(name, data)
    return _read_all(name, lambda: minari.MinariDataset(data))


def _read_all(name: str, opened: Callable[[], minari.MinariDataset]) -> Transitions:
    try:
        return _read(name, opened())
    except InvalidInputError:
        raise
    except Exception as error:  # h5py and Minari raise all kinds for a damaged file
        raise InvalidInputError(
            f"Minari data set {name!r}: it is damaged ({_one_line(error)}); download or write it again"
        ) from error


def save_minari(
    transitions: Transitions,
    dataset_id: str,
    env: gym.Env[Any, Any],
    *,
    algorithm_name: str = "unknown",
    author: str = "unknown",
    author_email: str = "unknown",
    code_permalink: str = "unknown",
    description: str = "",
) -> Path:
    """Write ``transitions`` as the Minari data set ``dataset_id``; gives its folder.

    An id is NAME-vN, or NAMESPACE/NAME-vN; Minari keeps it under ~/.minari/datasets or
    $MINARI_DATASETS_PATH. ``env`` is the environment they come from: its spaces and, where JSON can
    hold it, its specification are written too, without this project's own wrappers. ``algorithm_name``, ``author``,
    ``author_email``, ``code_permalink`` and ``description`` are what Minari tells of a data set. Stretches of steps
    that do not follow each other become episodes of their own.

    Raises InvalidInputError: the id is malformed or taken, or ``env`` has other spaces.
    """
    folder = require_new_minari(dataset_id, env)
    widths = (env.observation_space.shape, env.action_space.shape)
    if widths != (transitions.obs.shape[1:], transitions.action.shape[1:]):
        raise InvalidInputError(
            f"env has observations and actions of shapes {widths}, the transitions "
            f"{(transitions.obs.shape[1:], transitions.action.shape[1:])}; give the env they come from"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on scores and e-mails we do not ask for
        minari.create_dataset_from_buffers(
            dataset_id,
            list(_buffers(transitions)),
            env=_spec(env),
            observation_space=_as_float32(env.observation_space),
            action_space=_as_float32(env.action_space),
            algorithm_name=algorithm_name,
            author=author,
            author_email=author_email,
            code_permalink=code_permalink,
            description=description,
            data_format="hdf5",
        )
    return folder


def require_new_minari(dataset_id: str, env: gym.Env[Any, Any]) -> Path:
    """Where the data set of steps in ``env`` will lie. Raises InvalidInputError if the id is malformed or taken,
    or the spaces of ``env`` are no 1-D Boxes."""
    _check_spaces(dataset_id, env.observation_space, env.action_space)
    folder = _folder_of(dataset_id)
    if folder.exists():
        raise InvalidInputError(
            f"Minari data set {dataset_id!r} exists already; raise its version, or delete it with "
            f"`minari delete {dataset_id}`"
        )
    return folder


def _folder_of(dataset_id: str) -> Path:
    try:
        minari.dataset.minari_dataset.parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        raise InvalidInputError(
            f"Minari data set {dataset_id!r}: no such folder, and as an id it must be NAME-vN or "
            "NAMESPACE/NAME-vN, such as mujoco/hopper/medium-v0"
        ) from error
    return Path(minari.storage.datasets_root_dir.get_dataset_path(dataset_id))


def _check_metadata(name: str, data: Path) -> None:
    """Refuse what Minari would have to make an environment for, or import another reader."""
    path = data / "metadata.json"
    if not path.is_file():
        raise InvalidInputError(
            f"Minari data set {name!r}: not found at {data}; fetch it with `minari download {name}`, "
            "or check its name with `minari list local`"
        )
    try:
        if path.stat().st_size > _MAX_METADATA:
            raise ValueError("its metadata is too large")
        metadata = json.loads(path.read_text())
        spaces = [metadata[key] for key in ("observation_space", "action_space")]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInputError(
            f"Minari data set {name!r}: its metadata is damaged ({_one_line(error)}); download or "
            "write it again"
        ) from error
    if not all(isinstance(space, str) for space in spaces):
        raise InvalidInputError(f"Minari data set {name!r}: its metadata names no spaces")
    if metadata.get("data_format") != "hdf5":
        raise InvalidInputError(
            f"Minari data set {name!r}: it is stored as {metadata.get('data_format')!r}; "
            "only hdf5 is read here"
        )


def _read(name: str, found: minari.MinariDataset, dtype: Any = np.float32) -> Transitions:
    _check_spaces(name, found.spec.observation_space, found.spec.action_space)
    obs_dim, action_dim = (
        int(np.prod(space.shape)) for space in (found.observation_space, found.action_space)
    )
    n = int(found.total_steps)
    if n < 1:
        raise InvalidInputError(f"Minari data set {name!r}: it holds no steps")
    columns: dict[str, npt.NDArray[Any]] = {
        "obs": np.empty((n, obs_dim), dtype),
        "action": np.empty((n, action_dim), np.float32),
        "reward": np.empty(n, np.float32),
        "next_obs": np.empty((n, obs_dim), dtype),
        "terminated": np.empty(n, np.bool_),
        "truncated": np.empty(n, np.bool_),
        "episode": np.empty(n, np.int64),
        "t": np.empty(n, np.int64),
    }
    first, changes = 0, Changes()
    notes = found.storage.get_episode_metadata(found.episode_indices)
    for number, (episode, note) in enumerate(zip(found.iterate_episodes(), notes, strict=True)):
        rows = slice(first, first + len(episode))
        options = note.get("options") or {}
        observations = np.asarray(episode.observations)
        if observations.shape != (len(episode) + 1, obs_dim) or rows.stop > n:
            raise InvalidInputError(
                f"Minari data set {name!r}: episode {number} holds {observations.shape} observations "
                f"for {len(episode)} steps; download or write it again"
            )
        changes.add(observations[:-1], observations[1:])
        columns["obs"][rows], columns["next_obs"][rows] = observations[:-1], observations[1:]
        columns["action"][rows] = np.asarray(episode.actions).reshape(len(episode), action_dim)
        columns["reward"][rows] = episode.rewards
        columns["terminated"][rows] = episode.terminations
        columns["truncated"][rows] = episode.truncations
        columns["episode"][rows] = int(options.get("episode", number))
        start = int(options.get("t", 0))
        columns["t"][rows] = np.arange(start, start + len(episode))
        first = rows.stop
    if first != n:
        raise InvalidInputError(
            f"Minari data set {name!r}: it promises {n} steps but holds {first}; download it again"
        )
    if dtype == np.float32 and len(
        changes.lost()
    ):  # once more: seldom, and half the memory otherwise
        return _read(name, found, np.float64)
    try:
        return Transitions(**columns)
    except InvalidInputError as error:
        raise InvalidInputError(f"Minari data set {name!r}: {error}") from error


def _buffers(transitions: Transitions) -> Iterator[EpisodeBuffer]:
    """One for each stretch in which every step follows from the one before."""
    follows = (
        (np.diff(transitions.episode) == 0)
        & (np.diff(transitions.t) == 1)
        & (transitions.obs[1:] == transitions.next_obs[:-1]).all(1)
        & ~(transitions.terminated | transitions.truncated)[:-1]
    )
    cuts = np.concatenate([[0], np.flatnonzero(~follows) + 1, [len(transitions)]])
    for number, (first, last) in enumerate(pairwise(cuts)):
        part = transitions[slice(int(first), int(last))]
        yield EpisodeBuffer(
            id=number,
            options={"episode": int(part.episode[0]), "t": int(part.t[0])},
            observations=np.concatenate([part.obs, part.next_obs[-1:]]),
            actions=part.action,
            rewards=part.reward,
            terminations=part.terminated,
            truncations=part.truncated,
        )


def _check_spaces(name: str, *spaces: gym.Space[Any]) -> None:
    for what, space in zip(("observation", "action"), spaces, strict=True):
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise InvalidInputError(
                f"Minari data set {name!r}: its {what} space must be a 1-D Box; got {space}"
            )


def _as_float32(space: gym.Space[Any]) -> gym.spaces.Box:
    """The space of what is written: experience is recorded in single precision."""
    assert isinstance(space, gym.spaces.Box)
    low, high = space.low.astype(np.float32), space.high.astype(np.float32)
    return gym.spaces.Box(low, high, dtype=np.float32)


def _spec(env: gym.Env[Any, Any]) -> EnvSpec | None:
    """Of the environment as a reader can make it: our guard is no part of the task."""
    spec = env.unwrapped.spec if env.spec is None else env.spec
    if spec is None:
        return None
    wrappers = tuple(
        w for w in spec.additional_wrappers if not w.entry_point.startswith(("envs.", "agents."))
    )
    kept = {f.name: getattr(spec, f.name) for f in fields(spec) if f.init}
    entry: Any = spec.entry_point
    if isinstance(entry, type):  # as JSON it goes by its name
        entry = f"{entry.__module__}:{entry.__qualname__}"
    spec = EnvSpec(**(kept | {"additional_wrappers": wrappers, "entry_point": entry}))
    try:
        spec.to_json()
    except (TypeError, ValueError):  # made by a function, or with one: the spaces must do
        return None
    return spec


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]
