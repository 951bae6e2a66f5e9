"""Variations of the MuJoCo tasks, registered with Gymnasium: ``gym.make("mbrl/Hopper-v0", gravity=1.5)``.

One id a robot; what varies, and how far, is in ``VARIATIONS``. Importing this file registers them; the
robots themselves (``envs.tasks.perturbed``) are imported when the first is made.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import gymnasium as gym

from mbrl_bilevel.base.errors import InvalidInputError

#: One factor for all bodies, or a factor for each of the bodies named.
Factors = float | Mapping[str, float]

RUNNERS = ("HalfCheetah", "Hopper", "Walker2d", "Ant")
ROBOTS = (*RUNNERS, "Pusher")


@dataclass(frozen=True)
class Variation:
    """One thing that can vary: within ``low`` and ``high``, unchanged at ``default``.

    ``field`` is what it sets, of MuJoCo's model (or of the reward); for ``robots`` only. Where
    ``bodies``, it may be a mapping from body names to factors.
    """

    low: float
    high: float
    default: float | None
    field: str
    summary: str
    robots: tuple[str, ...] = ROBOTS
    bodies: bool = False


#: All variations, by the keyword of ``gym.make``.
VARIATIONS: dict[str, Variation] = {
    "gravity": Variation(0.2, 3.0, 1.0, "opt.gravity", "factor of gravity", RUNNERS),
    "friction": Variation(0.05, 5.0, 1.0, "geom_friction", "factor of sliding friction"),
    "mass": Variation(
        0.2, 5.0, 1.0, "body_mass, body_inertia", "factor of masses and inertias", bodies=True
    ),
    "length": Variation(
        0.5,
        2.0,
        1.0,
        "body_pos, geom_pos, geom_size, jnt_pos",
        "factor of the size of limbs; mass and inertia follow",
        RUNNERS,
        bodies=True,
    ),
    "damping": Variation(0.0, 20.0, 1.0, "dof_damping", "factor of joint damping"),
    "strength": Variation(0.1, 3.0, 1.0, "actuator_gear", "factor of the actuators' torque"),
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
    if isinstance(value, Mapping) and found.bodies and value:
        for factor in value.values():
            checked_variation(robot, name, factor)
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        kind = "a number, or a mapping from bodies to numbers" if found.bodies else "a number"
        raise InvalidInputError(f"{name} must be {kind}; got {value!r}")
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
