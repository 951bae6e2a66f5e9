"""All that is known of an environment, in one record: its ending, and its reward, exactly or nearly."""

from __future__ import annotations

from envs.known.endings import termination_rule
from envs.known.rewards import approximate_reward_rule, reward_rule
from envs.tasks.layers import Env
from mbrl_bilevel.base.known_rules import KnownRules


def known_rules(env: Env) -> KnownRules:
    """What ``termination_rule``, ``reward_rule`` and ``approximate_reward_rule`` say of ``env``.

    ``env``: the environment inside all of its wrappers, since one that changes actions, observations or rewards
    makes a rule untrue.
    """
    return KnownRules(termination_rule(env), reward_rule(env), approximate_reward_rule(env))
