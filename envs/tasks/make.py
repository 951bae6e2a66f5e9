"""Environments by name: one clear error for each thing a user can get wrong.

make_env = import the user's module, ``gymnasium.make``, check the spaces.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np

from envs.tasks.appended import Appended
from envs.tasks.guard import Guard
from envs.tasks.layers import Env, wrappers_of
from envs.tasks.user_module import import_user_module
from mbrl_bilevel.base.errors import InvalidInputError


def make_env(
    env_id: str,
    *,
    import_module: str | None = None,
    timeout: float | None = None,
    distractor: str | None = None,
    **kwargs: Any,
) -> Env:
    """The registered environment ``env_id``, guarded, with the spaces this project works on.

    ``import_module`` is imported first (the working directory is searched too): it registers the
    user's own environments. ``kwargs`` go to ``gymnasium.make``. The observation space is a 1-D Box
    [O], the action space a 1-D Box [A] with finite bounds, or Discrete. Where it raises, answers nonsense or
    takes more than ``timeout`` seconds for one call, that is an EnvironmentFailedError (``Guard``).
    What is known of its ending and its reward goes with it (``Guard.known_rules``): agents ask for it.

    ``distractor`` appends observations that are not the task's (``envs.tasks.appended``): those of another
    environment by its id, or "noise:8", "background:8" for 8 channels.

    Raises ``InvalidInputError``: the module cannot be imported, the environment is unknown or
    cannot be made, or one of its spaces is of another kind.
    """
    if import_module is not None:
        import_user_module(import_module, f"--import-module {import_module!r}:")
    if env_id.startswith("mbrl/"):
        importlib.import_module("envs.tasks.variations")  # registers this project's own
    try:
        with _told_by_us():
            env: Env = gym.make(env_id, **kwargs)
    except (gym.error.Error, ImportError) as error:  # ImportError: module:Name-v0, or MuJoCo v2, v3
        raise InvalidInputError(_cannot_make(env_id, error)) from error
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise InvalidInputError(
                f"--env-id {env_id!r}: it cannot be made ({' '.join(str(error).split())}); "
                "mend the environment"
            ) from error
        raise InvalidInputError(
            f"--env-id {env_id!r}: it does not take all of the arguments {sorted(kwargs)}; "
            f"leave out the one named here: {error}"
        ) from error
    except InvalidInputError as error:  # of this project's own, whose line is clear
        raise InvalidInputError(f"--env-id {env_id!r}: {error}") from error
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise InvalidInputError(
            f"--env-id {env_id!r}: it cannot be made ({said}); mend the environment"
        ) from error
    problem = _space_problem(env)
    if problem is not None:
        env.close()
        raise InvalidInputError(f"--env-id {env_id!r}: {problem}")
    if distractor is not None:
        env = Appended(env, distractor, _bare)
    return Guard(env, timeout)


def require_time_limit(env: Env, env_id: str, remedy: str = "give --max-episode-steps") -> None:
    """Raises InvalidInputError, which ends with the ``remedy``, unless a TimeLimit cuts the episodes of ``env``:
    one in which nothing ends by itself would be evaluated for ever."""
    if not any(isinstance(layer, gym.wrappers.TimeLimit) for layer in wrappers_of(env)):
        raise InvalidInputError(f"--env-id {env_id!r}: its episodes may never end; {remedy}")


def _bare(env_id: str) -> Env:
    """The environment ``env_id`` as a distractor."""
    try:
        return make_env(env_id)
    except InvalidInputError as error:
        raise InvalidInputError(str(error).replace("--env-id", "--distractor", 1)) from error


@contextmanager
def _told_by_us() -> Iterator[None]:
    """Gymnasium says in colours what our one line says: that a version is old, or a name is near."""
    before = gym.logger.min_level
    gym.logger.min_level = gym.logger.ERROR
    try:
        yield
    finally:
        gym.logger.min_level = before


def _cannot_make(env_id: str, error: Exception) -> str:
    """Why ``env_id`` cannot be made, and the nearest name that could."""
    nearest = _nearest_id(env_id)
    hint = "" if nearest is None else f"; did you mean {nearest!r}?"
    if isinstance(error, ImportError) or env_id in gym.registry:
        return f"--env-id {env_id!r}: {str(error).rstrip('.')}{hint}"
    return (
        f"--env-id {env_id!r}: no environment of this name is registered{hint or '.'} "
        "For one of your own, name the module that registers it with --import-module"
    )


def _nearest_id(env_id: str) -> str | None:
    """The newest version of the registered id with the most similar name, or None."""
    newest: dict[str, str] = {}
    for spec in sorted(gym.registry.values(), key=lambda spec: spec.version or 0):
        newest[spec.id.rpartition("-v")[0].lower() or spec.id.lower()] = spec.id
    name = env_id.rpartition(":")[2].lower()
    stem, _, version = name.rpartition("-v")
    name = stem if stem and version.isdigit() else name
    matches = difflib.get_close_matches(name, newest, n=1)
    return newest[matches[0]] if matches and newest[matches[0]] != env_id else None


def _space_problem(env: Env) -> str | None:
    """What is wrong with the spaces, with the remedy; None if nothing."""
    obs, action = env.observation_space, env.action_space
    if not (isinstance(obs, gym.spaces.Box) and len(obs.shape) == 1):
        return (
            f"the observation space must be a 1-D Box; got {obs}; "
            "wrap the environment with gymnasium.wrappers.FlattenObservation where you register it"
        )
    if isinstance(action, gym.spaces.Discrete):
        return None if action.n > 1 else f"the action space must leave a choice; got {action}"
    if not isinstance(action, gym.spaces.Box):
        return (
            f"the action space must be a 1-D Box or Discrete; got {action}; "
            "flatten it into one of them where you register the environment"
        )
    if len(action.shape) != 1:
        return (
            f"the action space must be a 1-D Box; got {action}; "
            "flatten it with gymnasium.wrappers.TransformAction where you register the environment"
        )
    if not (np.isfinite(action.low).all() and np.isfinite(action.high).all()):
        return (
            f"the action space must have finite bounds; got {action}; give it some with "
            "gymnasium.wrappers.TransformAction where you register the environment"
        )
    return None
