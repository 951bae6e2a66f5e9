"""What a planning agent is made of on one task: read from a file, or chosen from what the task shows.

A file holds only what differs from the defaults of ``PlanningSettings`` and of the learner, the run it was
chosen on and what that returned.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib.resources import files
from typing import Any, TypeVar

import gymnasium as gym
from stable_baselines3 import DQN
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from agents.learners.fast_sac import FastSAC
from agents.learners.no_learner import NoLearner
from agents.planners import PLANNERS, Planner
from agents.planning_agent.settings import PlanningSettings, RolloutLength, ValueSettings
from mbrl_bilevel.base.errors import InvalidInputError, look_up
from mbrl_bilevel.imagination.settings import Branching, Imagination
from mbrl_bilevel.training.settings import Schedule, WarmStart

S = TypeVar("S", bound=PlanningSettings)

#: What a file may hold.
_KEYS: dict[str, type[Any]] = {
    "settings": dict,
    "learner": dict,
    "reward": str,
    "chosen_on": str,
    "result": str,
}
_REWARDS = ("learned", "known", "approximate")

#: Parts of the settings that are records of their own.
_PARTS: dict[str, type[Any]] = {
    "schedule": Schedule,
    "imagination": Imagination,
    "rollout": RolloutLength,
    "branching": Branching,
    "warm_start": WarmStart,
}


@dataclass(frozen=True)
class Preset:
    """``settings`` and ``learner`` hold what differs from the defaults, nested as the settings are.

    ``reward``: "learned", "known" or "approximate" (``envs.known.rewards``). ``chosen_on``: the run, with seeds
    that no published table uses; ``result``: what it returned.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    learner: Mapping[str, Any] = field(default_factory=dict)
    reward: str = "learned"
    chosen_on: str = "nothing: the default for tasks without a file"
    result: str = "unknown"

    def settings_for(self, learner: type[OffPolicyAlgorithm]) -> dict[str, Any]:
        """``settings`` without what ``learner`` cannot do: only FastSAC's actor looks ahead in a model."""
        left_out = () if issubclass(learner, FastSAC) else ("look_ahead",)
        return {name: value for name, value in self.settings.items() if name not in left_out}


def named_preset(name: str) -> Preset:
    """The preset in the file of that name.

    Raises InvalidInputError with the nearest name, or what is wrong with the file.
    """
    look_up(dict.fromkeys(NAMES), name, "unknown preset")
    return read_preset(name, (files("agents.presets") / f"{name}.toml").read_text(encoding="utf-8"))


def read_preset(name: str, text: str) -> Preset:
    """The preset that ``text``, that of the file ``name``.toml, says.

    Raises InvalidInputError with the file and the key that is wrong.
    """
    file = f"preset {name}.toml"
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidInputError(f"{file} is not TOML: {error}") from None
    for key, value in found.items():
        if key not in _KEYS:
            raise InvalidInputError(f"{file}: there is no {key!r}; there are {', '.join(_KEYS)}")
        if not isinstance(value, _KEYS[key]):
            wanted = "a table" if _KEYS[key] is dict else "text"
            raise InvalidInputError(f"{file}: {key} must be {wanted}; got {value!r}")
    try:
        look_up(dict.fromkeys(_REWARDS), found.get("reward", "learned"), "unknown reward")
        with_values(PlanningSettings(), found.get("settings", {}))
    except InvalidInputError as error:
        raise InvalidInputError(f"{file}: {error}") from None
    return Preset(name, **found)


def preset_for(env: gym.Env[Any, Any] | VecEnv) -> Preset:
    """That of the environment's name (of mbrl/Hopper-v0 that of Hopper-v5); without a file, one chosen from its spaces
    and time limit.

    The scale of its rewards needs no choice: the learner divides by their root mean square over the
    first random steps (``FastSAC.standardise``).
    """
    spec = _spec_of(env)
    if spec is not None:
        # A robot whose physics is varied has the settings of the robot.
        name = re.sub(r"^mbrl/(.+)-v0$", r"\1-v5", spec.id)
        if name in NAMES:
            return named_preset(name)
    limit = None if spec is None else spec.max_episode_steps
    return default_preset(env.observation_space, env.action_space, limit)


def default_preset(
    observation: gym.Space[Any], action: gym.Space[Any], limit: int | None
) -> Preset:
    """For a task with these spaces whose episodes are cut after ``limit`` steps (None: not known).

    A discount that sees as far as short episodes last, and a hundred steps of long ones; networks of 128
    units where little is observed, else of 256.
    """
    discrete = isinstance(action, gym.spaces.Discrete)
    length = 1000 if limit is None else limit
    gamma = 0.95 if length <= 50 else 0.98 if length <= 200 else 0.99
    wide = observation.shape is not None and sum(observation.shape) > 12
    layers = [256, 256] if wide else [128, 128]
    if discrete:
        return Preset(
            "default",
            {"learning_starts": 500, "updates_per_step": 2, "value": "critic"},
            {"gamma": gamma, "policy_kwargs": {"net_arch": layers}, "target_update_interval": 200},
        )
    return Preset(
        "default",
        {"learning_starts": 1000 if wide else 500, "value": "critic", "look_ahead": 4},
        {"gamma": gamma, "policy_kwargs": {"net_arch": layers}},
    )


def learner_defaults(
    learner: type[OffPolicyAlgorithm], preset: Preset | None = None
) -> dict[str, Any]:
    """The arguments that a learner of a planning agent is made with, those of ``preset`` among them.

    A class that is not the preset's own takes of it what all classes know.
    """
    over = {} if preset is None else preset.learner
    if learner is FastSAC:
        return merged(_FAST_SAC, over)
    if learner is NoLearner:
        return {}
    if learner is DQN:
        return merged({"learning_rate": 1e-3, "policy_kwargs": {"net_arch": [128, 128]}}, over)
    shared = {name: over[name] for name in ("gamma", "batch_size", "tau") if name in over}
    layers = over.get("policy_kwargs", {}).get("net_arch", [256, 256])
    return shared | {"policy_kwargs": {"net_arch": layers}}


#: LayerNorm keeps many updates a step from running away (Hiraoka et al. 2022, DroQ, arXiv 2110.02034);
#: actor and temperature learn at every fourth of them.
_FAST_SAC: dict[str, Any] = {
    "standardise": True,
    "actor_every": 4,
    "actor_q": "mean",
    "ent_coef": "auto_0.1",
    "policy_kwargs": {"net_arch": [256, 256], "layer_norm": True},
}


def merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over`` in their places, level by level."""
    found = dict(base)
    for name, value in over.items():
        both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
        found[name] = merged(found[name], value) if both else value
    return found


def as_values(settings: PlanningSettings) -> dict[str, Any]:
    """Settings as nested plain values; the planner says its ``kind``, as on the command line."""
    found = asdict(settings)
    if settings.planner is not None:
        kinds = {kind: name for name, kind in PLANNERS.items()}
        found["planner"] = {"kind": kinds[type(settings.planner)], **found["planner"]}
    return found


def with_values(base: S, over: Mapping[str, Any]) -> S:
    """``base`` with the values of ``over``, nested as ``as_values`` has them.

    Another ``kind`` of planner keeps what both kinds have, horizon and population say. Raises
    InvalidInputError for a name that is none, or a value out of range.
    """
    known = {each.name for each in fields(base)}
    for name in over:
        if name not in known:
            raise InvalidInputError(f"settings: there is no {name!r}; there are {sorted(known)}")
    values = merged(as_values(base), over)
    values["planner"] = _planner(values["planner"], over.get("planner"))
    for name, kind in _PARTS.items():
        values[name] = _made(name, kind, values[name])
    if not isinstance(values["hidden"], list | tuple):
        raise InvalidInputError(f"hidden must be a list of widths; got {values['hidden']!r}")
    values["hidden"] = tuple(values["hidden"])
    if isinstance(values["value"], Mapping):
        values["value"] = _made("value", ValueSettings, values["value"])
    return type(base)(**values)


def _planner(values: Mapping[str, Any] | None, over: Mapping[str, Any] | None) -> Planner | None:
    if values is None:
        return None
    if not isinstance(values, Mapping):
        raise InvalidInputError(f"planner must be a table, or none; got {values!r}")
    rest = dict(values)
    kind = look_up(PLANNERS, str(rest.pop("kind", "icem")), "unknown planner")
    names = {each.name for each in fields(kind)}
    asked = dict(over or {})
    asked.pop("kind", None)
    wrong = sorted(asked.keys() - names)
    if wrong:
        raise InvalidInputError(
            f"planner {kind.__name__} has no {wrong[0]!r}; it has {', '.join(sorted(names))}"
        )
    planner: Planner = _made(
        "planner", kind, {name: value for name, value in rest.items() if name in names}
    )
    return planner


def _made(name: str, kind: type[Any], values: Any) -> Any:
    if is_dataclass(values):
        return values
    try:
        return kind(**values)
    except TypeError as error:
        names = ", ".join(each.name for each in fields(kind))
        raise InvalidInputError(f"{name}: {error}; it has {names}") from None
    except InvalidInputError as error:
        told = str(error).removeprefix(f"{name}: ").removeprefix(f"{kind.__name__}: ")
        raise InvalidInputError(f"{name}: {told}") from None


def _spec_of(env: gym.Env[Any, Any] | VecEnv) -> Any:
    if not isinstance(env, VecEnv):
        return env.spec
    inside = getattr(env.unwrapped, "envs", None)
    if inside:
        return inside[0].spec
    # In another process: not every spec can be sent, and trying to would end it. Its text has the name,
    # if it is an environment at all: a vector environment may refuse whatever it likes.
    try:
        said = re.search(r"<([^<>]+)>+$", str(env.env_method("__str__", indices=[0])[0]))
        return None if said is None else gym.spec(said[1])
    except Exception:
        return None


#: Tasks with a file.
NAMES: tuple[str, ...] = tuple(
    sorted(
        path.name.removesuffix(".toml")
        for path in files("agents.presets").iterdir()
        if path.name.endswith(".toml")
    )
)
