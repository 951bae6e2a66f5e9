"""What the dimensions of an observation are called: MuJoCo's joints where a task says how it is put together."""

from __future__ import annotations

from typing import Any

from envs.tasks.appended import Appended, OtherSystem
from envs.tasks.layers import Env, acting_layers


def observation_names(env: Env) -> tuple[str, ...]:
    """A name for each dimension of the observation, such as "rooty" and "velocity of rooty".

    Where that is not known, "observation 0" and so on. What is appended to a task (``Appended``) begins
    with "other: ".
    """
    shape = env.observation_space.shape
    assert shape is not None
    *wrappers, base = acting_layers(env)
    if wrappers and isinstance(wrappers[0], Appended):
        outer = wrappers[0]
        rest = outer.distractor
        others = observation_names(rest.env) if isinstance(rest, OtherSystem) else None
        others = others or tuple(f"channel {i}" for i in range(shape[0] - outer.own))
        return (*observation_names(outer.env), *(f"other: {name}" for name in others))
    found = () if wrappers else _parts(base)
    return found if len(found) == shape[0] else tuple(f"observation {i}" for i in range(shape[0]))


def _parts(base: Any) -> tuple[str, ...]:
    """The names that a task gives itself, or those of MuJoCo's positions, velocities and forces in the order of
    ``observation_structure``."""
    told: tuple[str, ...] | None = getattr(base, "observation_names", None)
    if told is not None:
        return told
    structure = getattr(base, "observation_structure", None)
    if not isinstance(structure, dict):
        return ()
    model = base.model
    positions, velocities = list[str](), list[str]()
    for i in range(model.njnt):
        # A free joint has 7 positions and 6 velocities, a ball 4 and 3, a slide or hinge one of each.
        many, fast = {0: (7, 6), 1: (4, 3)}.get(int(model.jnt_type[i]), (1, 1))
        joint = model.joint(i).name
        positions += _numbered(joint, many)
        velocities += _numbered(f"velocity of {joint}", fast)
    found = [*positions[int(structure.get("skipped_qpos", 0)) :], *velocities]
    for part in ("cinert", "cvel", "qfrc_actuator", "cfrc_ext"):
        found += _numbered(part, int(structure.get(part, 0)))
    return tuple(found)


def _numbered(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name} {i}" for i in range(count)]
