"""Observations that are not the task's: another system, noise or a changing background, appended to any task.

A test bed: what a model spends on them it lacks where the task pays. The task's own dimensions come first. Numbers
that never change tell an agent which of several tasks it is in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Protocol, TypeVar

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.utils import RecordConstructorArgs

from envs.tasks.layers import Env, acting_layers, wrappers_of
from mbrl_bilevel.base.errors import InvalidInputError

Array = npt.NDArray[Any]
T = TypeVar("T")


class Distractor(Protocol):
    """What is appended: numbers within ``space``, a 1-D Box, that go on by themselves."""

    @property
    def space(self) -> gym.spaces.Box: ...

    def reset(self, random: np.random.Generator) -> Array:
        """The first observation [C] of an episode; all that follows is drawn from ``random``."""

    def step(self) -> Array:
        """The next one, [C]."""

    def close(self) -> None: ...


class OtherSystem:
    """The observation of another environment under random actions that nobody sees. Where its episode ends
    before the task's, another begins."""

    def __init__(self, env: Env) -> None:
        if not isinstance(env.observation_space, gym.spaces.Box):
            raise InvalidInputError(
                f"distractor: its observations must be a Box; got {env.observation_space}"
            )
        self.env, self.space = env, env.observation_space

    def reset(self, random: np.random.Generator) -> Array:
        self.env.action_space.seed(int(random.integers(2**31)))
        obs: Array = self.env.reset(seed=int(random.integers(2**31)))[0]
        return obs

    def step(self) -> Array:
        obs, _, terminated, truncated, _ = self.env.step(self.env.action_space.sample())
        if terminated or truncated:
            obs = self.env.reset()[0]
        found: Array = obs
        return found

    def close(self) -> None:
        self.env.close()


class Noise:
    """``channels`` numbers, standard normal and new at each step: unpredictable."""

    def __init__(self, channels: int) -> None:
        self.channels, self.space = channels, _unbounded(channels)

    def reset(self, random: np.random.Generator) -> Array:
        self._random = random
        return self.step()

    def step(self) -> Array:
        return self._random.standard_normal(self.channels)

    def close(self) -> None:
        """There is nothing to close."""


class Background:
    """``channels`` waves with periods from 10 to 100 steps and phases of their own, drawn for each episode: they
    change with time alone, and are predictable from each other at best."""

    def __init__(self, channels: int) -> None:
        self.channels, self.space = channels, _unbounded(channels)

    def reset(self, random: np.random.Generator) -> Array:
        self._phase = random.uniform(0.0, 2.0 * math.pi, self.channels)
        self._rate = (
            2.0 * math.pi / np.exp(random.uniform(math.log(10.0), math.log(100.0), self.channels))
        )
        return np.sin(self._phase)

    def step(self) -> Array:
        self._phase = self._phase + self._rate
        return np.sin(self._phase)

    def close(self) -> None:
        """There is nothing to close."""


class Constant:
    """``numbers`` that stay as they are: which task this is, say."""

    def __init__(self, numbers: Sequence[float]) -> None:
        self.numbers, self.space = np.asarray(numbers, np.float64), _unbounded(len(numbers))

    def reset(self, random: np.random.Generator) -> Array:
        return self.numbers

    def step(self) -> Array:
        return self.numbers

    def close(self) -> None:
        """There is nothing to close."""


class Appended(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """``env`` with the observations of a ``distractor`` behind its own, which are the first ``own`` of them.

    The task is as before: actions, rewards, endings. ``distractor`` is the id of an environment, which
    ``make`` makes, "noise:8" or "background:8" for 8 channels, or "constant:0,1,0" for numbers. Raises InvalidInputError for a number of
    channels that is none, or an environment whose observations are no 1-D Box; and as ``make`` does.
    """

    def __init__(self, env: Env, distractor: str, make: Callable[[str], Env] = gym.make) -> None:
        RecordConstructorArgs.__init__(self, distractor=distractor)
        gym.Wrapper.__init__(self, env)
        space = env.observation_space
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise InvalidInputError(
                f"distractor: it is appended to observations that are a 1-D Box; got {space}"
            )
        self.distractor, self.own = _parsed(distractor, make), space.shape[0]
        other = self.distractor.space
        self._dtype = space.dtype
        self.observation_space = gym.spaces.Box(
            np.concatenate([space.low, other.low.ravel()]).astype(space.dtype),
            np.concatenate([space.high, other.high.ravel()]).astype(space.dtype),
            dtype=space.dtype,
        )
        self._random = np.random.default_rng()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Both anew; ``seed`` seeds both, each by itself."""
        obs, info = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._random = np.random.default_rng([seed, 1])
        return self._with(obs, self.distractor.reset(self._random)), info

    def step(self, action: Any) -> tuple[Array, Any, bool, bool, dict[str, Any]]:
        """Both one step on; reward and ending are the task's."""
        obs, reward, terminated, truncated, info = self.env.step(action)
        return self._with(obs, self.distractor.step()), reward, terminated, truncated, info

    def close(self) -> None:
        """Close both."""
        self.distractor.close()
        super().close()

    def _with(self, obs: Any, other: Array) -> Array:
        return np.concatenate([obs, other.ravel()]).astype(self._dtype)


def task_dims(env: Env) -> tuple[int, ...]:
    """Which dimensions of the observation are the task's own: all, unless something is appended."""
    shape = env.observation_space.shape
    assert shape is not None
    found = (layer.own for layer in wrappers_of(env) if isinstance(layer, Appended))
    return tuple(range(next(found, shape[0])))


def for_own_dims(rule_of: Callable[[Env], T | None]) -> Callable[[Env], T | None]:
    """Let a function env -> rule see through an ``Appended``, which its rule then does as well."""

    @wraps(rule_of)
    def found(env: Env) -> Any:
        inside = _inside(env)
        if inside is None:
            return rule_of(env)
        rule: Any = found(inside.env)
        own = inside.own
        return rule and (
            lambda obs, action, next_obs: rule(obs[..., :own], action, next_obs[..., :own])
        )

    return found


def _inside(env: Env) -> Appended | None:
    """The Appended that ``env`` is, if only bystanders are around it."""
    outermost = acting_layers(env)[0]
    return outermost if isinstance(outermost, Appended) else None


def _parsed(text: str, make: Callable[[str], Env]) -> Distractor:
    kind, _, number = text.partition(":")
    if kind == "constant":
        return Constant(_numbers(text, number))
    if kind not in _CHANNELS:
        return OtherSystem(make(text))
    if not number.isdecimal() or not int(number):
        raise InvalidInputError(f"distractor {text!r}: say how many channels, such as {kind}:8")
    return _CHANNELS[kind](int(number))


def _numbers(text: str, written: str) -> list[float]:
    try:
        found = [float(number) for number in written.split(",")]
    except ValueError:
        found = [math.nan]
    if not np.isfinite(found).all():
        raise InvalidInputError(f"distractor {text!r}: say which numbers, such as constant:0,1,0")
    return found


_CHANNELS: dict[str, Callable[[int], Distractor]] = {"noise": Noise, "background": Background}


def _unbounded(channels: int) -> gym.spaces.Box:
    return gym.spaces.Box(-np.inf, np.inf, (channels,), np.float64)
