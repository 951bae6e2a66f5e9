"""An environment that may raise, hang or answer nonsense, told in one line instead of a traceback.

Wraps ``reset`` and ``step``; a time limit interrupts Python code, on systems with SIGALRM.
"""

from __future__ import annotations

import math
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium.utils import RecordConstructorArgs

from mbrl_bilevel.base.errors import BilevelError, EnvironmentFailedError, InvalidInputError

if TYPE_CHECKING:
    from mbrl_bilevel.base.known_rules import KnownRules

T = TypeVar("T")


class Guard(gym.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Raises EnvironmentFailedError where the environment raises, returns an observation of another
    shape than its space, a reward that is no number, or takes longer than ``timeout`` seconds for
    one call (None: no limit). NaN is let through: who records experience refuses it there.

    The limit needs the main thread of a POSIX system, and an environment that hangs inside a C
    library without returning to Python cannot be interrupted.
    """

    def __init__(self, env: gym.Env[Any, Any], timeout: float | None = None) -> None:
        RecordConstructorArgs.__init__(self, timeout=timeout)
        gym.Wrapper.__init__(self, env)
        if timeout is not None and not 0.0 < timeout < math.inf:
            raise InvalidInputError(f"timeout must be a positive number of seconds; got {timeout}")
        if timeout is not None and not hasattr(signal, "setitimer"):
            raise InvalidInputError("timeout: this system has no timer signals; leave it out")
        self._timeout, self._steps = timeout, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As of the environment. Raises EnvironmentFailedError."""
        self._steps = 0
        obs, info = self._call(lambda: self.env.reset(seed=seed, options=options), 2)
        self._check(obs)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As of the environment. Raises EnvironmentFailedError."""
        self._steps += 1
        obs, reward, terminated, truncated, info = self._call(lambda: self.env.step(action), 5)
        self._check(obs)
        try:
            number = float(reward)
        except (TypeError, ValueError):
            raise self._failed(f"returned the reward {reward!r}, which is no number") from None
        return obs, number, bool(terminated), bool(truncated), info

    def known_rules(self, env: gym.Env[Any, Any]) -> KnownRules:
        """What is known of the ending and the reward of ``env``: this one, inside all of its wrappers.

        Agents find this through wrappers and call it with the outermost one, so that none that changes
        actions, observations or rewards is missed.
        """
        # Loads PyTorch, which making an environment does not need.
        from envs.known.rules import known_rules

        return known_rules(env)

    def _call(self, call: Callable[[], T], parts: int) -> T:
        try:
            with _time_limit(self._timeout):
                answer = call()
        except BilevelError:
            raise
        except _TimeIsUpError:
            raise self._failed(f"took longer than {self._timeout} s") from None
        except (Exception, SystemExit) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise self._failed(f"raised {said}") from error
        if not isinstance(answer, tuple) or len(answer) != parts:
            raise self._failed(f"did not return {parts} values, as Gymnasium asks")
        return answer

    def _check(self, obs: Any) -> None:
        shape = np.shape(obs)
        if shape != self.observation_space.shape:
            raise self._failed(
                f"returned an observation of shape {shape}, not {self.observation_space.shape}"
            )

    def _failed(self, what: str) -> EnvironmentFailedError:
        name = self.spec.id if self.spec is not None else type(self.unwrapped).__name__
        when = f"step {self._steps} of an episode" if self._steps else "reset"
        return EnvironmentFailedError(
            f"environment {name} {what}, at {when}; mend it (gymnasium.utils.env_checker.check_env "
            "helps), then go on with --resume"
        )


class _TimeIsUpError(BaseException):
    """Not an Exception: the environment must not be able to swallow it by accident."""


@contextmanager
def _time_limit(seconds: float | None) -> Iterator[None]:
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise _TimeIsUpError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
