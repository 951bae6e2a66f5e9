"""Variations of the MuJoCo tasks, registered with Gymnasium: ``gym.make("mbrl/Hopper-v0", gravity=1.5)``.

One id a robot; what varies, and how far, is in ``VARIATIONS``. Importing this file registers them; the
robots themselves (``envs.tasks.perturbed``) are imported when the first is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import gymnasium as gym

from mbrl_bilevel.base.errors import InvalidInputError

#: One factor for all parts (bodies, or actuators), or a factor for each of those named.
Factors = float | Mapping[str, float]

RUNNERS = ("HalfCheetah", "Hopper", "Walker2d", "Ant")
PENDULUMS = ("InvertedPendulum", "InvertedDoublePendulum")
ROBOTS = (*RUNNERS, "Pusher", *PENDULUMS)


@dataclass(frozen=True)
class Variation:
    """One thing that can vary: within ``low`` and ``high``, unchanged at ``default``.

    ``field`` is what it sets, of MuJoCo's model (or of the reward); for ``robots`` only. Where it has
    ``parts``, it may be a mapping from their names to factors: of bodies, or of the joints that actuators drive.
    """

    low: float
    high: float
    default: float | None
    field: str
    summary: str
    robots: tuple[str, ...] = ROBOTS
    parts: Literal["", "bodies", "joints"] = ""


#: All variations, by the keyword of ``gym.make``.
VARIATIONS: dict[str, Variation] = {
    "gravity": Variation(0.2, 3.0, 1.0, "opt.gravity", "factor of gravity", (*RUNNERS, *PENDULUMS)),
    "friction": Variation(0.05, 5.0, 1.0, "geom_friction", "factor of sliding friction"),
    "mass": Variation(
        0.2, 5.0, 1.0, "body_mass, body_inertia", "factor of masses and inertias", parts="bodies"
    ),
    "length": Variation(
        0.5,
        2.0,
        1.0,
        "body_pos, geom_pos, geom_size, jnt_pos",
        "factor of the size of limbs; mass and inertia follow",
        RUNNERS,
        parts="bodies",
    ),
    "damping": Variation(0.0, 20.0, 1.0, "dof_damping", "factor of joint damping"),
    "strength": Variation(
        -3.0,
        3.0,
        1.0,
        "actuator_gear",
        "factor of the actuators' torque; 0: lame, below 0: it pushes the other way",
        parts="joints",
    ),
    "wind": Variation(
        -40.0, 40.0, 0.0, "opt.wind", "m/s along x, in air of 1.2 kg/m³ where there is no medium"
    ),
    "target_speed": Variation(
        -10.0,
        10.0,
        None,
        "reward",
        "m/s: pays −|v − target| in place of v; times direction",
        RUNNERS,
    ),
    "direction": Variation(-1.0, 1.0, 1.0, "reward", "1 or −1: which way to run", RUNNERS),
    "goal_x": Variation(
        -0.3, 0.3, 0.0, "body_pos of goal", "m: the goal moved by this", ("Pusher",)
    ),
    "goal_y": Variation(
        -0.3, 0.3, 0.0, "body_pos of goal", "m: the goal moved by this", ("Pusher",)
    ),
}


def checked_variation(robot: str, name: str, value: object) -> None:
    """Raises InvalidInputError for a variation this robot has not, or a value out of its range."""
    found = VARIATIONS.get(name)
    if found is None or robot not in found.robots:
        known = ", ".join(n for n, v in VARIATIONS.items() if robot in v.robots)
        raise InvalidInputError(f"{robot} has no variation {name!r}; choose from {known}")
    if isinstance(value, Mapping) and found.parts and value:
        for factor in value.values():
            checked_variation(robot, name, factor)
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        many = f", or a mapping from {found.parts} to numbers" if found.parts else ""
        raise InvalidInputError(f"{name} must be a number{many}; got {value!r}")
    if not found.low <= value <= found.high:
        raise InvalidInputError(
            f"{name} ({found.summary}) must lie between {found.low:g} and {found.high:g}; got {value}"
        )
    if name == "direction" and value not in (-1.0, 1.0):
        raise InvalidInputError(f"direction must be 1 or -1; got {value}")


for _robot in ROBOTS:
    gym.register(
        f"mbrl/{_robot}-v0",
        entry_point=f"envs.tasks.perturbed:{_robot}",
        max_episode_steps=100 if _robot == "Pusher" else 1000,
    )
# A world of its own, with a ``task`` in place of variations.
gym.register("mbrl/Room-v0", entry_point="envs.tasks.room:Room", max_episode_steps=50)
