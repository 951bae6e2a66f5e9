"""The rules that --termination and --reward name."""

from __future__ import annotations

from envs.known.endings import load_rule, termination_rule
from envs.known.rewards import approximate_reward_rule, reward_rule
from envs.tasks.make import Env
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.records import Rule
from mbrl_bilevel.studies.arguments import naming


def named_termination(option: str | None, env: Env) -> Rule | None:
    """The user's own, module:function; without one that of a standard task, None of others."""
    if option is None:
        return termination_rule(env)
    with naming("--termination"):
        return load_rule(option)


def named_reward(option: str, env: Env) -> Rule | None:
    """The user's own, or that of a standard task: known, or nearly (approximate); None if it is learned.

    Raises InvalidInputError where the environment does not show it.
    """
    if option == "learned":
        return None
    if option not in ("known", "approximate"):
        with naming("--reward"):
            return load_rule(option, probability=False)
    nearly = approximate_reward_rule(env)
    rule = nearly if option == "approximate" else reward_rule(env)
    if rule is None:
        name = env.spec.id if env.spec is not None else str(env)
        hint = "" if nearly is None else ", but --reward approximate is near to it"
        raise InvalidInputError(
            f"--reward {option}: the observation of {name!r} does not show its reward{hint}; leave "
            "--reward out, or give module:function of your own"
        )
    return rule
