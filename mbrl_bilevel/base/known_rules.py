"""What an environment says is known of it, and how an agent hears of it: neither imports the other.

An environment that knows its rules has a method ``known_rules(env) -> KnownRules``, found through wrappers
(``gymnasium.Env.get_wrapper_attr``) and called with the outermost of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from mbrl_bilevel.base.records import Rule


@dataclass(frozen=True)
class KnownRules:
    """Rules in raw units, each None where it is not known.

    ``termination``: when an episode ends. ``reward``: exactly what a step pays; ``approximate_reward``: nearly
    what it pays, or exactly where that is known.
    """

    termination: Rule | None = None
    reward: Rule | None = None
    approximate_reward: Rule | None = None
