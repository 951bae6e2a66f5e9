"""Environments that draw themselves, also on machines without a screen.

MuJoCo draws through EGL where there is no screen, else through OSMesa; what is there is found out by drawing once.
"""

from __future__ import annotations

import ctypes.util
import os
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.envs.mujoco import MujocoEnv

from envs.tasks.layers import Env
from envs.tasks.make import make_env
from mbrl_bilevel.base.errors import InvalidInputError

Picture = npt.NDArray[np.uint8]

#: Debian's names of what MuJoCo needs to draw without a screen.
_REMEDY = "apt-get install libegl1 libgl1-mesa-dri, or libosmesa6 and MUJOCO_GL=osmesa"


def make_drawable(env_id: str, **options: Any) -> Env:
    """``make_env(env_id, **options)`` that can ``render()`` a picture [height, width, 3].

    Raises InvalidInputError where it cannot be drawn here, with the remedy, and what ``make_env`` raises.
    """
    choose_backend()
    env = make_env(env_id, render_mode="rgb_array", **options)
    env.reset(seed=0)
    try:
        picture = np.asarray(env.render())
    except Exception as error:  # whatever the drivers and libraries raise
        env.close()
        said = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        remedy = _REMEDY if isinstance(env.unwrapped, MujocoEnv) else "install what it names"
        raise InvalidInputError(
            f"{env_id!r} cannot be drawn here ({said}); {remedy}, or do without a video"
        ) from error
    if picture.ndim != 3 or picture.shape[2] != 3:
        env.close()
        raise InvalidInputError(
            f"{env_id!r} does not draw itself: render() with render_mode='rgb_array' gives no picture; do "
            "without a video"
        )
    _look_well(env)
    return env


def choose_backend() -> None:
    """Set MUJOCO_GL where nobody has, and there is no screen to draw on."""
    if "MUJOCO_GL" in os.environ or not sys.platform.startswith("linux"):
        return
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return
    for backend, library in (("egl", "EGL"), ("osmesa", "OSMesa")):
        if ctypes.util.find_library(library) is not None:
            os.environ["MUJOCO_GL"] = backend
            return


def picture_of(env: Env) -> Picture:
    """What ``env`` looks like now [height, width, 3]."""
    return np.asarray(env.render(), dtype=np.uint8)


def _look_well(env: Env) -> None:
    """Of MuJoCo: follow the robot where the task has a camera for that; and no shadows and mirrors, which take five
    sixths of the time where the processor draws."""
    task: Any = env.unwrapped
    if not isinstance(task, MujocoEnv):
        return
    import mujoco

    camera = mujoco.mj_name2id(task.model, mujoco.mjtObj.mjOBJ_CAMERA, "track")
    renderer: Any = task.mujoco_renderer
    if camera != -1:
        renderer.camera_id = camera
    flags = renderer.viewer.scn.flags
    flags[mujoco.mjtRndFlag.mjRND_SHADOW] = 0
    flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
