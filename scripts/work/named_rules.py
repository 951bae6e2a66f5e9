"""The rules that --termination and --reward name."""

from __future__ import annotations

from agents.common.rules import RewardChoice, TerminationChoice
from envs.known.endings import load_rule, termination_rule
from envs.known.rewards import approximate_reward_rule, reward_rule
from envs.tasks.layers import Env
from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.arguments import naming


def named_termination(option: str | None, env: Env) -> TerminationChoice:
    """The user's own, module:function; without one the environment's, None where it knows none."""
    if option is None:
        return None if termination_rule(env) is None else "known"
    with naming("--termination"):
        return load_rule(option)


def named_reward(option: str, env: Env) -> RewardChoice:
    """The user's own, or that of the environment: known, or nearly (approximate); None if it is learned.

    Raises InvalidInputError where the environment does not show it.
    """
    if option == "learned":
        return None
    nearly = approximate_reward_rule(env)
    if option == "known":
        shown = reward_rule(env) is not None
    elif option == "approximate":
        shown = nearly is not None
    else:
        with naming("--reward"):
            return load_rule(option, probability=False)
    if not shown:
        name = env.spec.id if env.spec is not None else str(env)
        hint = "" if nearly is None else ", but --reward approximate is near to it"
        raise InvalidInputError(
            f"--reward {option}: the observation of {name!r} does not show its reward{hint}; leave "
            "--reward out, or give module:function of your own"
        )
    return "known" if option == "known" else "approximate"
