"""The rules that an agent goes by: given by hand, known to its environment, or learned by its model.

An environment that knows its rules says so itself (``mbrl_bilevel.base.known_rules``; ``envs.make_env`` makes
such ones).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium as gym
from stable_baselines3.common.vec_env import (
    VecCheckNan,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
)

from agents.common.own_arrays import RawEnds
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.known_rules import KnownRules
from mbrl_bilevel.base.records import Rule

#: None: the one that the environment knows, or learned where it knows none.
TerminationChoice = Rule | Literal["known", "learned"] | None
#: None: learned.
RewardChoice = Rule | Literal["known", "approximate", "learned"] | None

# They leave alone what the model sees, which is raw around a VecNormalize.
_BYSTANDERS = (VecCheckNan, VecMonitor, VecNormalize, RawEnds)


@dataclass(frozen=True)
class Rules:
    """Each rule, None where the model learns it; ``from_env``: the rules that the environment gave, by name,
    and as what ("known" or "approximate")."""

    termination: Rule | None = None
    reward: Rule | None = None
    from_env: Mapping[str, str] = field(default_factory=dict)

    def asked_of(self, env: VecEnv) -> Rules:
        """The same, with the rules of ``env`` in place of those that another environment gave.

        Raises InvalidInputError where ``env`` does not know one of them.
        """
        choices: dict[str, Any] = {
            "termination": self.termination or "learned",
            "reward": self.reward,
        }
        return chosen_rules(env, **(choices | dict(self.from_env)))


def chosen_rules(env: VecEnv, termination: TerminationChoice, reward: RewardChoice) -> Rules:
    """The rules that these two choices mean in ``env``.

    Raises InvalidInputError for another choice, or a rule that ``env`` is asked for and does not know.
    """
    known = rules_told_by(env)
    if termination is None and known.termination is not None:
        termination = "known"
    offered: dict[str, dict[str, Rule | None]] = {
        "termination": {"known": known.termination},
        "reward": {"known": known.reward, "approximate": known.approximate_reward},
    }
    rules: dict[str, Rule] = {}
    from_env: dict[str, str] = {}
    for name, choice in (("termination", termination), ("reward", reward)):
        names = (*offered[name], "learned")
        if callable(choice):
            rules[name] = choice
        elif choice is not None and not (isinstance(choice, str) and choice in names):
            raise InvalidInputError(
                f"{name} must be a function of (obs, action, next_obs), None or one of "
                f"{', '.join(map(repr, names))}; got {choice!r}"
            )
        elif choice is not None and choice != "learned":
            rules[name], from_env[name] = _known(name, choice, offered[name]), choice
    return Rules(rules.get("termination"), rules.get("reward"), from_env)


def rules_told_by(env: VecEnv) -> KnownRules:
    """What ``env`` says is known of it; nothing where it does not say.

    Nothing is known of environments in other processes, inside a VecEnvWrapper that may change what is met, or
    that stand side by side and are not of one kind.
    """
    while isinstance(env, VecEnvWrapper):
        if type(env) not in _BYSTANDERS:
            return KnownRules()
        env = env.venv
    inside: list[gym.Env] = list(getattr(env, "envs", ()))
    found = [_said(each) for each in inside]
    if not found or (len(found) > 1 and not _of_one_kind(inside)):
        return KnownRules()
    return KnownRules(
        *(
            getattr(found[0], name) if all(getattr(each, name) for each in found) else None
            for name in ("termination", "reward", "approximate_reward")
        )
    )


def _said(env: gym.Env) -> KnownRules:
    if not env.has_wrapper_attr("known_rules"):
        return KnownRules()
    found = env.get_wrapper_attr("known_rules")(env)
    if not isinstance(found, KnownRules):
        raise InvalidInputError(f"the environment's known_rules must be KnownRules; got {found!r}")
    return found


def _of_one_kind(envs: list[gym.Env]) -> bool:
    """Whether all are registered under one name and made with the same arguments."""
    specs = [env.spec for env in envs]
    kinds = {None if spec is None else (spec.id, repr(spec.kwargs)) for spec in specs}
    return len(kinds) == 1 and None not in kinds


def _known(name: str, choice: str, offered: Mapping[str, Rule | None]) -> Rule:
    rule = offered[choice]
    if rule is None:
        near = [f'{name}="{other}" is near to it, ' for other in offered if offered[other]]
        raise InvalidInputError(
            f'{name}="{choice}": the environment does not know its {name}; {"".join(near)}give a function, or '
            "make the environment with envs.make_env and no wrapper that changes actions, observations or rewards"
        )
    return rule
