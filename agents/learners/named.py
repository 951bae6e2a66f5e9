"""The learners by name: what a command line and a file call them.

Those of sb3-contrib are looked up only when asked for: it need not be installed.
"""

from __future__ import annotations

from importlib import import_module

from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from agents.learners.fast_sac import FastSAC
from agents.learners.no_learner import NoLearner
from mbrl_bilevel.base.errors import InvalidInputError, look_up

#: On a command line; None stands for a class of sb3-contrib.
LEARNERS: dict[str, type[OffPolicyAlgorithm] | None] = {
    "fast-sac": FastSAC,
    "sac": SAC,
    "td3": TD3,
    "ddpg": DDPG,
    "dqn": DQN,
    "tqc": None,
    "crossq": None,
}
_CONTRIB = {"tqc": "TQC", "crossq": "CrossQ"}

#: What a file may name without being told the class.
ALGORITHMS: dict[str, type[OffPolicyAlgorithm]] = {
    kind.__name__: kind for kind in (SAC, TD3, DDPG, DQN, FastSAC, NoLearner)
}


def learner_class(name: str) -> type[OffPolicyAlgorithm]:
    """The class that ``name`` stands for.

    Raises InvalidInputError for no such name, or where sb3-contrib is asked for and not installed, or is
    too old to have it.
    """
    found = look_up(LEARNERS, name, "unknown learner")
    return _of_contrib(_CONTRIB[name]) if found is None else found


def class_in_file(name: str) -> type[OffPolicyAlgorithm] | None:
    """The class of that name: SB3's, ours, or sb3-contrib's; None for any other."""
    if name in _CONTRIB.values():
        return _of_contrib(name)
    return ALGORITHMS.get(name)


def _of_contrib(name: str) -> type[OffPolicyAlgorithm]:
    try:
        contrib = import_module("sb3_contrib")
    except ImportError:
        raise InvalidInputError(
            f"{name} is of the package sb3-contrib, which is not installed: pip install sb3-contrib"
        ) from None
    kind: type[OffPolicyAlgorithm] | None = getattr(contrib, name, None)
    if kind is None:
        raise InvalidInputError(
            f"{name} is not in the sb3-contrib that is installed: pip install --upgrade sb3-contrib"
        )
    return kind
