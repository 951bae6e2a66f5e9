"""The rules that --termination and --reward name."""

from __future__ import annotations

from _args import naming

from envs.make import Env
from envs.rewards import approximate_reward_rule, reward_rule
from envs.rules import load_rule, termination_rule
from mbrl_bilevel.types import Rule


def named_termination(option: str | None, env: Env) -> Rule | None:
    """The user's own, module:function; without one that of a standard task, None of others."""
    if option is None:
        return termination_rule(env)
    with naming("--termination"):
        return load_rule(option)


def named_reward(option: str, env: Env) -> Rule | None:
    """The user's own, or that of a standard task: known, or nearly (approximate). None where it is not."""
    if option == "known":
        return reward_rule(env)
    if option == "approximate":
        return approximate_reward_rule(env)
    with naming("--reward"):
        return load_rule(option, probability=False)
