"""The MuJoCo tasks with their physics or their reward varied, through the fields of MuJoCo's own model.

What can vary is in ``envs.tasks.variations.VARIATIONS``. A robot made without any variation is Gymnasium's (v5).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mujoco
import numpy as np
import numpy.typing as npt
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.envs.mujoco.ant_v5 import AntEnv
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv
from gymnasium.envs.mujoco.hopper_v5 import HopperEnv
from gymnasium.envs.mujoco.inverted_double_pendulum_v5 import InvertedDoublePendulumEnv
from gymnasium.envs.mujoco.inverted_pendulum_v5 import InvertedPendulumEnv
from gymnasium.envs.mujoco.pusher_v5 import PusherEnv
from gymnasium.envs.mujoco.walker2d_v5 import Walker2dEnv
from gymnasium.utils.ezpickle import EzPickle

from envs.tasks.variations import VARIATIONS, Factors, checked_variation
from mbrl_bilevel.base.errors import InvalidInputError

#: Density of air in kg/m³: without a medium there is no wind.
_AIR = 1.2


class _Varied(MujocoEnv, EzPickle):
    """Takes the variations from the keywords; the others go to Gymnasium's class.

    Raises InvalidInputError for a variation, a body or a joint that is not there, or a value out of range.
    """

    def __init__(self, **kwargs: Any) -> None:
        given = {name: kwargs.pop(name) for name in VARIATIONS if name in kwargs}
        for name, value in given.items():
            checked_variation(type(self).__name__, name, value)
        #: What was asked for; all else is at its default.
        self.variation: dict[str, Any] = given
        super().__init__(**kwargs)
        # What a copy is rebuilt from; Gymnasium's class has just said it without ours.
        EzPickle.__init__(self, **kwargs, **given)

    @property
    def paid_as(self) -> type:
        """The class whose reward this pays: Gymnasium's, or its own where the reward is varied too."""
        varied = any(VARIATIONS[name].field == "reward" for name in self.variation)
        return type(self) if varied else type(self).__bases__[-1]

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model, data = super()._initialize_simulation()
        if "length" in self.variation:
            model = self._resized(model, self.variation["length"])
        _vary(model, self.variation)
        data = mujoco.MjData(model)
        if "mass" in self.variation:
            # What MuJoCo derives from masses: subtree masses, inverse weights.
            mujoco.mj_setConst(model, data)
            mujoco.mj_resetData(model, data)
        return model, data

    def _resized(self, model: mujoco.MjModel, factors: Factors) -> mujoco.MjModel:
        """Compiled anew, so that masses and inertias follow the sizes; standing as high as before."""
        spec = mujoco.MjSpec.from_file(self.fullpath)
        factor = _factor_of("body", factors, [body.name for body in spec.bodies[1:]])
        for body in spec.bodies[1:]:
            _resize(body, factor(body.name))
        with warnings.catch_warnings():
            # HalfCheetah's own file says settotalmass, which its user can do nothing about.
            warnings.filterwarnings("ignore", message=".*settotalmass")
            root = spec.worldbody.first_body()
            root.pos = root.pos + np.array([0.0, 0.0, _lowest(model) - _lowest(spec.compile())])
            resized = spec.compile()
        resized.vis.global_.offwidth = model.vis.global_.offwidth
        resized.vis.global_.offheight = model.vis.global_.offheight
        return resized


class _Runner(_Varied):
    """A robot paid for running: to a target speed, or the other way, if asked."""

    def _get_rew(self, x_velocity: float, action: Any) -> tuple[float, dict[str, Any]]:
        along = self.variation.get("direction", 1.0) * x_velocity
        target = self.variation.get("target_speed")
        paid = along if target is None else -abs(along - target)
        found: tuple[float, dict[str, Any]] = super()._get_rew(paid, action)  # type: ignore[misc]
        return found


class HalfCheetah(_Runner, HalfCheetahEnv):
    """HalfCheetah-v5, varied."""


class Hopper(_Runner, HopperEnv):
    """Hopper-v5, varied."""


class Walker2d(_Runner, Walker2dEnv):
    """Walker2d-v5, varied."""


class Ant(_Runner, AntEnv):
    """Ant-v5, varied."""


class Pusher(_Varied, PusherEnv):
    """Pusher-v5, varied."""


class InvertedPendulum(_Varied, InvertedPendulumEnv):
    """InvertedPendulum-v5, varied."""


class InvertedDoublePendulum(_Varied, InvertedDoublePendulumEnv):
    """InvertedDoublePendulum-v5, varied."""


def _vary(model: mujoco.MjModel, variation: Mapping[str, Any]) -> None:
    """Set the fields of a compiled model, in place."""
    model.opt.gravity[:] *= variation.get("gravity", 1.0)
    model.geom_friction[:, 0] *= variation.get("friction", 1.0)
    model.dof_damping[:] *= variation.get("damping", 1.0)
    driven = [model.joint(joint).name for joint in model.actuator_trnid[:, 0]]
    factor = _factor_of("driven joint", variation.get("strength", 1.0), driven)
    model.actuator_gear[:] *= np.array([[factor(name)] for name in driven])
    if variation.get("wind", 0.0) != 0.0:
        model.opt.wind[0] = variation["wind"]
        model.opt.density = model.opt.density or _AIR
    if "mass" in variation:
        names = [model.body(i).name for i in range(model.nbody)]
        factor = _factor_of("body", variation["mass"], names[1:])
        for i, name in enumerate(names[1:], start=1):
            model.body_mass[i] *= factor(name)
            model.body_inertia[i] *= factor(name)
    for axis, name in enumerate(("goal_x", "goal_y")):
        if name in variation:
            model.body("goal").pos[axis] += variation[name]


def _factor_of(part: str, factors: Factors, names: Sequence[str]) -> Callable[[str], float]:
    if not isinstance(factors, Mapping):
        return lambda name: float(factors)
    unknown = sorted(set(factors) - set(names))
    if unknown:
        raise InvalidInputError(
            f"no {part} {unknown[0]!r}; choose from {', '.join(filter(None, names))}"
        )
    return lambda name: float(factors.get(name, 1.0))


def _resize(body: Any, factor: float) -> None:
    """Scale along its limb all that the body consists of; the radii of capsules stay, and so does the
    place where its parent holds it."""
    if body.parent.name != "world":
        body.pos = body.pos + (1.0 - factor) * _anchor(body)
        for joint in body.joints:
            joint.pos = joint.pos * factor
    for geom in body.geoms:
        geom.pos = geom.pos * factor
        ends = np.array(geom.fromto)
        if np.isfinite(ends).all():
            geom.fromto = ends * factor
        elif geom.type == mujoco.mjtGeom.mjGEOM_CAPSULE:
            geom.size = np.array([geom.size[0], geom.size[1] * factor, geom.size[2]])
        else:
            geom.size = np.array(geom.size) * factor
    for child in body.bodies:
        child.pos = child.pos + (factor - 1.0) * (child.pos + _anchor(child))


def _anchor(body: Any) -> npt.NDArray[np.float64]:
    """From a body's origin to the joint that holds it, in the axes of its parent."""
    turned = np.zeros(3)
    if body.joints:
        mujoco.mju_rotVecQuat(turned, np.array(body.joints[0].pos), np.array(body.quat))
    return turned


def _lowest(model: mujoco.MjModel) -> float:
    """Height of the robot's lowest point as the model is written down; a capsule's end, a sphere."""
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    own = model.geom_bodyid > 0
    reach = np.where(model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE, model.geom_size[:, 1], 0.0)
    down = data.geom_xpos[:, 2] - reach * np.abs(data.geom_xmat[:, 8]) - model.geom_size[:, 0]
    return float(down[own].min())
