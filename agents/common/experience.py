"""Real experience from a Gymnasium environment, as Transitions.

Every value is checked as it comes: an environment that returns NaN is stopped there, not later.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

from agents.common.own_arrays import OwnArrays
from agents.common.spaces import ActionSpace, from_vectors, to_vector
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Transitions
from mbrl_bilevel.base.rounding import narrowed

Array = npt.NDArray[Any]

#: ``behaviour(obs [O], t) -> action``, as the environment takes it; ``t``: the time step in the episode.
Behaviour = Callable[[Array, int], Array]


class Recorder:
    """Grows a list of steps; ``transitions()`` gives them as one record."""

    def __init__(self) -> None:
        self._rows: list[tuple[Array, Array, float, Array, bool, bool, int, int]] = []
        self._seen: Transitions | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def add(
        self,
        obs: Array,
        action: Array,
        reward: float,
        next_obs: Array,
        *,
        terminated: bool,
        truncated: bool,
        episode: int,
        t: int,
    ) -> None:
        """Append one step. Raises InvalidInputError for NaN or infinity in what was observed."""
        require_finite("observation", next_obs, episode, t)
        require_finite("reward", np.asarray(reward), episode, t)
        # Copies, rounded together at the end.
        arrays = (np.array(value, dtype=np.float64) for value in (obs, action, next_obs))
        obs, action, next_obs = arrays
        row = (obs, action, float(reward), next_obs, terminated, truncated, episode, t)
        self._rows.append(row)
        self._seen = None

    def extend(self, transitions: Transitions) -> None:
        """Append steps recorded elsewhere."""
        columns = zip(
            transitions.obs.copy(),
            transitions.action.copy(),
            transitions.reward.tolist(),
            transitions.next_obs.copy(),
            transitions.terminated.tolist(),
            transitions.truncated.tolist(),
            transitions.episode.tolist(),
            transitions.t.tolist(),
            strict=True,
        )
        self._rows.extend(columns)
        self._seen = None

    def transitions(self) -> Transitions:
        """All steps so far, grouped by episode. Raises InvalidInputError if there are none."""
        if not self._rows:
            raise InvalidInputError("no steps were recorded; collect some first")
        if self._seen is None:
            # Environments stepped side by side take turns.
            rows = sorted(self._rows, key=lambda row: row[6])
            obs, action, reward, next_obs, terminated, truncated, episode, t = zip(
                *rows, strict=True
            )
            before, after = narrowed(np.asarray(obs), np.asarray(next_obs))
            self._seen = Transitions(
                before,
                narrowed(np.asarray(action))[0],
                narrowed(np.asarray(reward))[0],
                after,
                np.asarray(terminated, dtype=np.bool_),
                np.asarray(truncated, dtype=np.bool_),
                np.asarray(episode, dtype=np.int64),
                np.asarray(t, dtype=np.int64),
            )
        return self._seen


class RandomBehaviour:
    """Random actions of the space: episodes of independent draws and of slow ones in turn.

    Slow episodes follow a first-order autoregression (correlation .9), which moves a body further
    than white noise does. Each has the same spread. Of discrete actions, a slow episode makes a
    uniform choice and at each step keeps it with probability .9, else draws anew.
    """

    def __init__(self, space: ActionSpace, generator: np.random.Generator) -> None:
        self._space = space
        if isinstance(space, gym.spaces.Box):
            # Of integers each has a stretch of one, the first and the last as well.
            half = 0.5 if np.issubdtype(space.dtype, np.integer) else 0.0
            self._low = space.low.astype(np.float64) - half
            self._high = space.high.astype(np.float64) + half
        else:
            self._low = self._high = np.zeros(int(space.n))
        self._generator = generator
        self._slow = True
        self._noise = np.zeros_like(self._low)

    def __call__(self, obs: Array, t: int) -> Array:
        if t == 0:
            self._slow = not self._slow
            self._noise = self._generator.standard_normal(self._low.shape)
        if isinstance(self._space, gym.spaces.Discrete):
            return self._choice(t)
        if not self._slow:
            return from_vectors(self._space, self._generator.uniform(self._low, self._high))
        fresh = self._generator.standard_normal(self._low.shape)
        self._noise = 0.9 * self._noise + np.sqrt(1.0 - 0.9**2) * fresh
        centre, half = (self._high + self._low) / 2.0, (self._high - self._low) / 2.0
        return from_vectors(self._space, centre + half * self._noise)

    def _choice(self, t: int) -> Array:
        # Uniform: the largest of independent draws from one distribution.
        if not self._slow or self._generator.random() > 0.9:
            self._noise = self._generator.standard_normal(self._low.shape)
        return from_vectors(self._space, self._noise)


def collect(
    env: gym.Env[Array, Array],
    behaviour: Behaviour,
    steps: int,
    *,
    seed: int,
    max_episode_steps: int | None = None,
) -> Transitions:
    """``steps`` steps of ``behaviour`` in ``env``, starting with a reset from ``seed``.

    ``max_episode_steps`` cuts episodes (as truncated) before the environment's own limit.
    Raises InvalidInputError for NaN or infinity from the environment.
    """
    if steps < 1:
        raise InvalidInputError(f"steps must be at least 1; got {steps}")
    if max_episode_steps is not None and max_episode_steps < 1:
        raise InvalidInputError(f"max_episode_steps must be at least 1; got {max_episode_steps}")
    # Here and below copies: neither the environment nor the behaviour may write into what is recorded.
    env, recorder, episode, t = OwnArrays(env), Recorder(), 0, 0
    obs, _ = env.reset(seed=seed)
    require_finite("observation", obs, 0, -1)
    while len(recorder) < steps:
        action = behaviour(np.array(obs), t)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        truncated = truncated or (max_episode_steps is not None and t + 1 >= max_episode_steps)
        recorder.add(
            obs,
            to_vector(env.action_space, action),
            float(reward),
            next_obs,
            terminated=bool(terminated),
            truncated=bool(truncated),
            episode=episode,
            t=t,
        )
        obs, t = next_obs, t + 1
        if terminated or truncated:
            episode, t = episode + 1, 0
            obs, _ = env.reset()
            require_finite("observation", obs, episode, -1)
    return recorder.transitions()


def require_finite(what: str, value: Array, episode: int, t: int) -> None:
    """Raise InvalidInputError if ``value`` is not finite in single precision; ``t`` −1: at reset."""
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.asarray(value).astype(np.float32)).all()
    if not finite:
        when = "reset" if t < 0 else f"step {t}"
        raise InvalidInputError(
            f"the environment returned NaN or infinity in the {what} (episode {episode}, {when}); "
            "mend the environment before training on it"
        )
