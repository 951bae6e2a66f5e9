"""One world, many objects: a body in a room with six of them, a task each; ``gym.make("mbrl/Room-v0", task="door")``.

The dynamics and the spaces are those of all tasks; what differs is where the body starts and what is paid.
The idea is that of Continual Bench (arXiv 2507.09177): one world, so that one model can be right
about all tasks at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.utils.ezpickle import EzPickle

from mbrl_bilevel.base.errors import look_up

Array = npt.NDArray[Any]

_JOINTS = ("x", "y", "yaw", "button", "door", "drawer", "block x", "block y", "block yaw", "wheel")
#: What is observed, in m, rad, m/s and rad/s.
NAMES = (
    *("x", "y", "cos yaw", "sin yaw", "button", "door", "drawer"),
    *("block x", "block y", "block yaw", "cos wheel", "sin wheel", "ball x", "ball y"),
    *(f"velocity of {joint}" for joint in (*_JOINTS, "ball x", "ball y")),
)
_AT = {name: index for index, name in enumerate(NAMES)}
#: Half a width by which the body's start varies (m), and its direction (rad).
_PLACE, _TURN = 0.15, 0.6


@dataclass(frozen=True)
class Object:
    """What a task is about. ``touch`` is where to push the object (m), from ``start`` on; where an object moves
    freely, ``moves`` names the two coordinates that tell where it is. ``progress(obs [..., O]) -> [...]``, arrays
    or tensors, is 1 where the task is done."""

    touch: tuple[float, float]
    start: tuple[float, float]
    progress: Callable[[Any], Any]
    moves: tuple[str, str] | None = None

    def place(self, obs: Any) -> tuple[Any, Any]:
        """Where to push it, x and y [...]."""
        if self.moves is None:
            return self.touch
        return obs[..., _AT[self.moves[0]]], obs[..., _AT[self.moves[1]]]

    def reward(self, obs: Any, action: Any, next_obs: Any) -> Any:
        """progress(s') − .2·‖body − place‖(s') − .01·‖a‖², [...]."""
        x, y = self.place(next_obs)
        away = ((next_obs[..., 0] - x) ** 2 + (next_obs[..., 1] - y) ** 2) ** 0.5
        return self.progress(next_obs) - 0.2 * away - 0.01 * (action**2).sum(-1)


def _share(name: str, start: float, end: float) -> Callable[[Any], Any]:
    """How far one number has come from ``start`` to ``end``, from 0 to 1."""
    return lambda obs: ((obs[..., _AT[name]] - start) / (end - start)).clip(0.0, 1.0)


def _near(name: str, x: float, y: float) -> Callable[[Any], Any]:
    """1 within .28 m of a mark, 0 from 1.5 m on."""

    def progress(obs: Any) -> Any:
        dx, dy = obs[..., _AT[f"{name} x"]] - x, obs[..., _AT[f"{name} y"]] - y
        return ((1.5 - (dx**2 + dy**2) ** 0.5) / (1.5 - 0.28)).clip(0.0, 1.0)

    return progress


#: The tasks: press the button, open the door, close the drawer, roll the ball and push the block to their marks, and
#: spin the wheel.
OBJECTS = {
    "ball": Object((1.5, -1.8), (2.5, -1.8), _near("ball", 0.3, -1.8), ("ball x", "ball y")),
    "button": Object((-1.8, 2.6), (-1.8, 1.8), _share("button", 0.0, 0.12)),
    "door": Object((1.9, 2.0), (1.9, 1.2), _share("door", 0.0, 1.3)),
    "drawer": Object((2.7, 0.0), (1.6, 0.0), _share("drawer", 0.5, 0.05)),
    "block": Object((-1.2, -2.0), (-0.2, -2.0), _near("block", -2.2, -2.0), ("block x", "block y")),
    "wheel": Object((-1.75, 0.0), (-1.75, -0.9), _share("velocity of wheel", 0.0, 4.0)),
}


class Room(MujocoEnv, EzPickle):
    """The room with one ``task`` of ``OBJECTS``. Actions in [−1, 1]: forces ahead and to the left (30 N), and
    a torque (2 Nm). ``info["success"]`` says whether progress is 1; nothing ends an episode but
    its time.

    The room is never at rest at the start: every object is somewhere in its range and moves, whatever the
    task. So what one task shows of the others' objects has a scale, but not what happens when they are pushed.

    Raises InvalidInputError for an unknown task, with the nearest name.
    """

    metadata = {"render_modes": ["human", "rgb_array", "depth_array"], "render_fps": 20}  # noqa: RUF012
    observation_names = NAMES

    def __init__(self, task: str = "button", **kwargs: Any) -> None:
        EzPickle.__init__(self, task, **kwargs)
        self.object, self.task = look_up(OBJECTS, task, "unknown task"), task
        space = gym.spaces.Box(-np.inf, np.inf, (len(NAMES),), np.float64)
        path = str(Path(__file__).with_name("room.xml").resolve())
        MujocoEnv.__init__(self, path, 4, space, **{"camera_name": "room", **kwargs})

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:  # type: ignore[override]
        """A twentieth of a second."""
        before = self._get_obs()
        self.do_simulation(action, self.frame_skip)
        obs = self._get_obs()
        reward = float(self.object.reward(before, np.asarray(action, np.float64), obs))
        if self.render_mode == "human":
            self.render()  # type: ignore[no-untyped-call]
        return obs, reward, False, False, {"success": bool(self.object.progress(obs) >= 1.0)}

    def reset_model(self) -> Array:
        """The body near the task's object; everything else somewhere, and moving."""
        draw, (x, y), (to_x, to_y) = self.np_random, self.object.start, self.object.touch
        yaw = np.arctan2(to_y - y, to_x - x) + draw.uniform(-_TURN, _TURN)
        body = (*np.add((x, y), draw.uniform(-_PLACE, _PLACE, 2)), yaw)
        fixed = draw.uniform((0.0, 0.0, 0.2), (0.05, 1.0, 0.5))
        block = np.add((-1.2, -2.0, 0.0), draw.uniform(-0.2, 0.2, 3) * (1.0, 1.0, 2.0))
        ball = (*np.add((1.5, -1.8), draw.uniform(-0.2, 0.2, 2)), 0.2, 1.0, 0.0, 0.0, 0.0)
        qpos = np.concatenate([body, fixed, block, [draw.uniform(-np.pi, np.pi)], ball])
        spread = (0.2, 0.2, 0.5, 0.6, 1.0, 0.4, 0.4, 0.4, 1.0, 3.0)
        vx, vy = draw.normal(0.0, 0.5, 2)
        # A ball that rolls without slip: ω = (−vy, vx, 0)/r.
        rolling = (vx, vy, 0.0, -vy / 0.2, vx / 0.2, 0.0)
        qvel = np.concatenate([draw.normal(0.0, spread), rolling])
        self.set_state(qpos, qvel)  # type: ignore[no-untyped-call]
        return self._get_obs()

    def _get_obs(self) -> Array:
        qpos, qvel = self.data.qpos, self.data.qvel
        turned = (np.cos(qpos[2]), np.sin(qpos[2]), *qpos[3:9], np.cos(qpos[9]), np.sin(qpos[9]))
        return np.concatenate([qpos[:2], turned, qpos[10:12], qvel[:12]])
