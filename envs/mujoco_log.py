"""MuJoCo's warnings go to Python's logging, not to a file in the working directory."""

from __future__ import annotations

import logging

import mujoco

_log = logging.getLogger("mujoco")
#: The kinds of warning that this process has logged.
reported: set[str] = set()


def quiet_mujoco() -> None:
    """Keep MuJoCo from writing MUJOCO_LOG.TXT into the working directory; for the whole process.

    Its warnings go to the logger "mujoco" instead (by default: to stderr), each kind once. A
    warning handler of the user's own stays. Either way MuJoCo itself writes and prints nothing.
    """
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(_report)


def _report(message: str) -> None:
    """Log a warning of MuJoCo's, each kind once: an unstable simulation repeats it every step."""
    kind = message.partition(" Time =")[0]
    if kind in reported:
        return
    reported.add(kind)
    # The standard HalfCheetah uses a deprecated XML attribute; its user can do nothing about it.
    level = logging.DEBUG if "is deprecated" in message else logging.WARNING
    _log.log(level, "MuJoCo: %s", message)
