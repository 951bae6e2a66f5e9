"""What an agent needs of an environment: the shape of its spaces, and actions in the form it takes.

Planners, models and Transitions see every action as a vector: a point in a box, or a one-hot choice.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.env_util import is_wrapped
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, unwrap_vec_normalize

from agents.common.own_arrays import OwnArrays, RawEnds
from agents.planners.actions import ActionSet, BoxActions, DiscreteActions
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.rounding import as_type

Array = npt.NDArray[Any]
ActionSpace = gym.spaces.Box | gym.spaces.Discrete


def vector_env(env: gym.Env[Any, Any] | VecEnv | str) -> VecEnv:
    """The environment as SB3 steps it, watched by a Monitor; a registered name is made first, as in SB3.

    What it hands over stays as it was (``agents.common.own_arrays``); a VecEnv stays what it is, but for the
    wrapper that this puts inside its VecNormalize. Raises InvalidInputError for a name that Gymnasium does not know, or another thing.
    """
    if isinstance(env, VecEnv):
        normalised = unwrap_vec_normalize(env)
        if normalised is not None and not isinstance(normalised.venv, RawEnds):
            normalised.venv = RawEnds(normalised.venv)
        return env
    if isinstance(env, str):
        try:
            env = gym.make(env)
        except gym.error.Error as error:
            said = " ".join(str(error).split())
            raise InvalidInputError(
                f"env: {said}; give a registered name or an environment"
            ) from None
    if not isinstance(env, gym.Env):
        raise InvalidInputError(
            f"env must be a gymnasium.Env, a VecEnv of SB3 or a registered name; got {type(env).__name__}"
        )
    owned = OwnArrays(env)
    watched = owned if is_wrapped(env, Monitor) else Monitor(owned)
    return DummyVecEnv([lambda: watched])


def require_box(space: gym.Space[Any], what: str) -> gym.spaces.Box:
    """``space`` itself. Raises InvalidInputError unless it is a one-dimensional Box, and a bounded one
    if ``what`` is "action"."""
    if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
        remedy = "for example with gymnasium.wrappers.FlattenObservation"
        if what == "action":  # Gymnasium has no FlattenAction
            shape = space.shape if isinstance(space, gym.spaces.Box) else "…"
            remedy = (
                "with gymnasium.wrappers.TransformAction(env, lambda a: a.reshape("
                f"{shape}), gymnasium.spaces.flatten_space(env.action_space))"
            )
        raise InvalidInputError(
            f"the {what} space must be a one-dimensional Box; got {space}: wrap the environment, {remedy}"
        )
    if what == "action" and not space.is_bounded():
        raise InvalidInputError(
            f"the action space must have finite bounds; got {space}: "
            "wrap the environment with gymnasium.wrappers.TransformAction, giving it a bounded action_space"
        )
    return space


def require_actions(space: gym.Space[Any]) -> ActionSpace:
    """``space`` itself. Raises InvalidInputError unless it is a bounded one-dimensional Box, or Discrete
    with two choices or more."""
    if isinstance(space, gym.spaces.Box):
        return require_box(space, "action")
    if not isinstance(space, gym.spaces.Discrete):
        raise InvalidInputError(
            f"the action space must be a one-dimensional Box or Discrete; got {space}: "
            "flatten it into one of them with a wrapper"
        )
    if space.n < 2:
        raise InvalidInputError(f"the action space must leave a choice; got {space}")
    return space


def checked_observation(
    space: gym.spaces.Box, observation: Array | dict[str, Array]
) -> tuple[Array, bool]:
    """``observation`` [O] or [S, O] as float32 [S, O], and whether it was one alone.

    Raises InvalidInputError for another shape, a dict, NaN or infinity.
    """
    if isinstance(observation, dict):
        raise InvalidInputError("observation must be an array [O] or [S, O]; got a dict")
    obs = np.asarray(observation, dtype=np.float32)
    expected = int(space.shape[0])
    if obs.ndim not in (1, 2) or obs.shape[-1] != expected:
        raise InvalidInputError(
            f"observation must be [{expected}] or [S, {expected}]; got {obs.shape}"
        )
    if not np.isfinite(obs).all():
        raise InvalidInputError("observation holds NaN or infinity")
    return np.atleast_2d(obs), obs.ndim == 1


def action_set(space: ActionSpace) -> ActionSet:
    """The actions of ``space`` as planners see them."""
    if isinstance(space, gym.spaces.Discrete):
        return DiscreteActions(int(space.n))
    return BoxActions(space.low, space.high)


def action_bounds(space: ActionSpace) -> tuple[Array, Array]:
    """The lowest and the highest vectors [A] of ``space``; of one-hot ones 0 and 1."""
    if isinstance(space, gym.spaces.Discrete):
        return np.zeros(int(space.n)), np.ones(int(space.n))
    return space.low, space.high


def require_recorded(space: ActionSpace, actions: Array) -> None:
    """Raises InvalidInputError unless the vectors ``actions`` [N, A] of recorded steps are within ``space``,
    but for rounding."""
    low, high = action_bounds(space)
    if actions.shape[1] != len(low):
        raise InvalidInputError(
            f"transitions: actions have width {actions.shape[1]}, those of the environment {len(low)}; "
            "give data of this environment"
        )
    slack = 1e-5 * np.maximum(np.abs(low), np.abs(high))
    rows, columns = np.nonzero((actions < low - slack) | (actions > high + slack))
    if len(rows):
        row, i = rows[0], columns[0]
        raise InvalidInputError(
            f"transitions: action[{row}, {i}] is {actions[row, i]:g}, outside the action space, "
            f"{low[i]:g} to {high[i]:g}; clip the actions, or give data of this environment"
        )


def to_vector(space: gym.Space[Any], action: Any) -> Array:
    """An action of ``space`` as a vector [A]: one-hot if ``space`` is Discrete, else as it is."""
    if not isinstance(space, gym.spaces.Discrete):
        return np.asarray(action)
    vector = np.zeros(int(space.n), dtype=np.float32)
    vector[int(action) - int(space.start)] = 1.0
    return vector


def from_vectors(space: ActionSpace, vectors: Array) -> Array:
    """Vectors [S, A] as the environment takes them: [S, A] within the box, rounded to the nearest where it is
    of integers, or choices [S]."""
    if isinstance(space, gym.spaces.Discrete):
        return np.asarray(space.start + vectors.argmax(-1), dtype=space.dtype)
    # Clipped last: rounding to the space's own type must not leave the bounds either.
    return np.asarray(np.clip(as_type(vectors, space.dtype), space.low, space.high))
