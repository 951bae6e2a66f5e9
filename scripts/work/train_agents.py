"""The agent that the options of train come to: the preset first, the options given over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, cast

import gymnasium as gym
from options.from_settings import Part, Place, as_options, given_settings
from options.train import WITHOUT, Args
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.common.first_model import require_enough_for_a_model
from agents.learners.named import learner_class
from agents.learners.no_learner import NoLearner
from agents.mbpo import MBPO, MBPOSettings
from agents.mpc import MPC, MPCSettings
from agents.planners import PLANNERS
from agents.planning_agent.agent import PlanningAgent
from agents.planning_agent.settings import PlanningSettings
from agents.presets import Preset, named_preset, preset_for
from agents.presets.preset import as_values, learner_defaults, merged, with_values
from envs.tasks.layers import Env
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.arguments import naming, option_name


@dataclass(frozen=True)
class Built:
    """What the options come to on one environment."""

    kind: type[PlanningAgent]
    settings: PlanningSettings
    learner: type[OffPolicyAlgorithm]
    learner_kwargs: Mapping[str, Any]
    reward: str
    preset: Preset

    def resolved(self) -> dict[str, Any]:
        """All values that the run goes by, for its config.json."""
        return {
            "preset": self.preset.name,
            "settings": as_values(self.settings),
            "learner_class": self.learner.__name__,
            "learner": dict(self.learner_kwargs),
            "reward": self.reward,
        }

    def make(self, env: Env, **given: Any) -> PlanningAgent:
        """A new agent for ``env``; ``given``: seed, device, rules."""
        return self.kind(
            env,
            self.settings,
            algorithm=self.learner,
            algorithm_kwargs=self.learner_kwargs,
            **given,
        )


def build(args: Args, env: Env) -> Built:
    """What is made of these options on ``env``: the preset's values, and the given ones over them.

    Raises InvalidInputError for values that do not go together, and options that the agent would
    ignore.
    """
    preset = _preset(args, env)
    kind, base = _agent(args)
    learner = _learner(args, env)
    alone = {"planner": None, "real_share": 1.0, "value": None}
    start = preset.settings_for(learner)
    if args.agent == "sac":
        start = {n: v for n, v in start.items() if n in _PACE} | alone
    over, arguments = _given(args)
    # What decides which parts there are, before the options of parts that are not there.
    parts: dict[str, Any] = {n: over[n] for n in ("real_share", "look_ahead") if n in over}
    if "planner" in over and over["planner"] is None:
        parts["planner"] = None
    _refuse_idle(args, with_values(base, merged(start, parts)), learner)
    with _typed():
        settings = with_values(base, _with_particles(args, base, merged(start, over)))
    kwargs = merged(_learner_start(args, learner, preset), arguments)
    _check_together(args, settings, kwargs)
    reward = args.reward or ("learned" if args.agent in ("mpc", "mbpo") else preset.reward)
    return Built(kind, settings, learner, kwargs, reward, preset)


def _preset(args: Args, env: Env) -> Preset:
    if args.agent in ("mpc", "mbpo") or args.preset == "none":
        return Preset("none")
    return preset_for(env) if args.preset == "auto" else named_preset(args.preset)


def _agent(args: Args) -> tuple[type[PlanningAgent], PlanningSettings]:
    if args.agent == "mpc":
        return MPC, MPCSettings()
    if args.agent == "mbpo":
        return MBPO, MBPOSettings(learning_starts=250)
    if args.agent == "sac" and args.preset == "none":
        return MBPO, MBPOSettings(real_share=1.0, learning_starts=250, updates_per_step=1)
    return PlanningAgent, PlanningSettings()


def _learner(args: Args, env: Env) -> type[OffPolicyAlgorithm]:
    if args.agent == "mpc":
        if args.learner is not None:
            raise InvalidInputError("--learner: mpc has no learner; leave it out")
        return NoLearner
    discrete = isinstance(env.action_space, gym.spaces.Discrete)
    if discrete and args.agent == "sac" and args.learner is None:
        raise InvalidInputError(
            f"--env-id {args.env_id!r}: sac is for continuous actions; give --learner dqn, or "
            "--agent planning, mpc or mbpo"
        )
    with naming("--learner"):
        kind = learner_class(args.learner or ("dqn" if discrete else "fast-sac"))
    if discrete != (kind.__name__ == "DQN"):
        raise InvalidInputError(
            f"--learner {args.learner}: {kind.__name__} does not take the actions of "
            f"{args.env_id!r}, {env.action_space}; leave it out"
        )
    return kind


def _learner_start(args: Args, learner: type[OffPolicyAlgorithm], preset: Preset) -> dict[str, Any]:
    """The learner's arguments before any option."""
    if preset.name == "none" and args.agent != "planning":
        return {} if learner is NoLearner else {"policy_kwargs": {"net_arch": [256, 256]}}
    return learner_defaults(learner, preset)


def _given(args: Args) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options that were given, nested as the settings and as the learner's arguments are."""
    found: dict[str, Any] = {}
    for place, value in given_settings(args):
        found = merged(found, _nested(place, _CHOSEN.get((*place, value), value)))
    arguments: dict[str, Any] = found.pop("learner", {})
    if args.planner == "random" and args.population is not None:
        found["planner"]["population"] = args.population * (args.iterations or 1)
        found["planner"].pop("iterations", None)
    if args.planner == "none":
        found |= {"planner": None, "value": None}
    start = args.initial_temperature
    if args.fixed_temperature:
        arguments["ent_coef"] = 1.0 if start is None else start
    elif start is not None:
        arguments["ent_coef"] = f"auto_{start}"
    return found, arguments


def _with_particles(args: Args, base: PlanningSettings, over: dict[str, Any]) -> dict[str, Any]:
    """``over`` with as many particles as members plan, where they were not given and do not go up."""
    values = merged(as_values(base), over)
    name = "members" if values["elites"] is None else "elites"
    particles, count = values["imagination"]["particles"], values[name]
    if values["planner"] is None or particles % count == 0:
        return over
    if args.particles is not None:
        raise InvalidInputError(
            f"--particles must be a multiple of {option_name(name)} ({count}); got {particles}"
        )
    return merged(over, {"imagination": {"particles": count}})


def _refuse_idle(args: Args, settings: PlanningSettings, learner: type[OffPolicyAlgorithm]) -> None:
    """Raises InvalidInputError for an option of a part that the agent does not have."""
    if args.agent == "mpc" and args.planner == "none":
        raise InvalidInputError(
            "--planner none: mpc has nothing else to act by; give a planner, or --agent planning"
        )
    has: dict[Part, bool] = {
        "model": settings.uses_model and args.agent != "sac",
        "plan": settings.planner is not None and args.agent in ("planning", "mpc"),
        "imagined": settings.imagines and args.agent != "sac",
        "learner": learner is not NoLearner,
    }
    off = "planner" if args.agent == "planning" and args.planner == "none" else None
    for each in fields(args):
        parts: tuple[Part, ...] = each.metadata.get("parts", ())
        part = next((part for part in parts if not has[part]), None)
        if each.name == off or part is None or getattr(args, each.name) == each.default:
            continue
        raise InvalidInputError(
            f"{option_name(each.name)}: --agent {args.agent} {WITHOUT[part]} and would ignore "
            "it; leave it out"
        )
    if args.real_share is not None and (learner is NoLearner or args.agent == "sac"):
        without = WITHOUT["imagined" if args.agent == "sac" else "learner"]
        raise InvalidInputError(
            f"--real-share: --agent {args.agent} {without} and would ignore it; leave it out"
        )
    for name, users in _USERS.items():
        if learner.__name__ not in users and getattr(args, name) not in (None, False):
            raise InvalidInputError(
                f"{option_name(name)} is of --learner {_listed(users.values())}, "
                f"{learner.__name__} would ignore it: leave it out"
            )


def _check_together(args: Args, settings: PlanningSettings, learner: Mapping[str, Any]) -> None:
    if args.value in ("critic", "none"):
        for place, _ in given_settings(args):
            if len(place) > 1 and place[0] == "value":
                raise InvalidInputError(
                    f"{option_name('_'.join(place))}: with --value {args.value} no value is fitted, which would "
                    "ignore it; leave it out"
                )
    if args.value == "critic" and args.agent == "mpc":
        raise InvalidInputError("--value critic: --agent mpc has no critics; give fitted or none")
    if settings.learning_starts >= args.steps:
        raise InvalidInputError(
            f"--learning-starts must be below --steps ({args.steps}), or nothing is learned; "
            f"got {settings.learning_starts}"
        )
    for name in ("shrink", "perturb", "warm_part"):
        if getattr(args, name) is not None and settings.fresh_every == 1:
            raise InvalidInputError(
                f"{option_name(name)}: each fit is from scratch and would ignore it; give --fresh-every 2 or more"
            )
    for name in ("exploration", "imitation"):
        if getattr(args, name) is not None and settings.plan_share == 0.0:
            raise InvalidInputError(
                f"{option_name(name)}: with --plan-share 0 no step is acted by plan while learning, which "
                "would ignore it; leave it out"
            )
    drawn, critics = learner.get("target_critics"), learner.get("policy_kwargs", {})
    if drawn is not None and drawn > (most := critics.get("n_critics", 2)):
        raise InvalidInputError(f"--target-critics must be at most --critics ({most}); got {drawn}")
    if settings.uses_model:
        with _typed():
            require_enough_for_a_model(settings.members, settings.learning_starts, 0)


#: What the learner alone takes of a preset's settings.
_PACE = ("learning_starts", "updates_per_step", "n_steps", "real_rows")


_FAST = {"FastSAC": "fast-sac"}


_ENTROPIC = _FAST | {"SAC": "sac", "TQC": "tqc", "CrossQ": "crossq"}


#: Whose an option is that not all learners take: their classes, and what --learner calls them.
_USERS: dict[str, dict[str, str]] = {
    **dict.fromkeys(("actor_every", "critics", "target_critics"), _FAST),
    **dict.fromkeys(("layer_norm", "dropout", "imitation"), _FAST),
    **dict.fromkeys(("look_ahead", "look_ahead_lambda"), _FAST),
    **dict.fromkeys(("initial_temperature", "fixed_temperature"), _ENTROPIC),
    "tau": _FAST | {"SAC": "sac", "TD3": "td3", "DDPG": "ddpg", "DQN": "dqn", "TQC": "tqc"},
}


@contextmanager
def _typed() -> Iterator[None]:
    """What is refused inside by the name of a setting is told by that of its option."""
    try:
        yield
    except InvalidInputError as error:
        raise InvalidInputError(as_options(str(error))) from error


def _listed(names: Iterable[str]) -> str:
    *others, last = names
    return f"{', '.join(others)} and {last}" if others else last


#: What a word stands for that chooses one of several things.
_CHOSEN: dict[tuple[Any, ...], Any] = {
    **{("planner", kind): {"kind": kind} for kind in PLANNERS},
    **{("planner", "none"): None, ("value", "none"): None, ("value", "fitted"): {}},
}


def _nested(place: Place, value: Any) -> dict[str, Any]:
    for name in reversed(place):
        value = {name: list(value) if isinstance(value, tuple) else value}
    return cast(dict[str, Any], value)
