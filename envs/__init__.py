"""Tasks, rules, data sets and the true simulator behind a model's face.

What a user needs is exported here and loads on first use: ``from envs import make_env``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from envs.mujoco_log import quiet_mujoco
from mbrl_bilevel.base.lazy import exports

# Here, so that it holds whatever of this package is imported, and for a plain gymnasium.make() too.
quiet_mujoco()

if TYPE_CHECKING:
    from envs.datasets.noise import add_noise as add_noise
    from envs.datasets.offline import load_minari as load_minari
    from envs.datasets.offline import save_minari as save_minari
    from envs.datasets.tables import Table as Table
    from envs.datasets.tables import load_table as load_table
    from envs.known.endings import load_rule as load_rule
    from envs.known.endings import termination_rule as termination_rule
    from envs.known.oracle import Oracle as Oracle
    from envs.known.rewards import approximate_reward_rule as approximate_reward_rule
    from envs.known.rewards import reward_rule as reward_rule
    from envs.known.rules import known_rules as known_rules
    from envs.known.true_model import TrueModel as TrueModel
    from envs.tasks.appended import Appended as Appended
    from envs.tasks.appended import task_dims as task_dims
    from envs.tasks.class_sequences import CLASS_SEQUENCES as CLASS_SEQUENCES
    from envs.tasks.class_sequences import ClassSequence as ClassSequence
    from envs.tasks.guard import Guard as Guard
    from envs.tasks.make import make_env as make_env
    from envs.tasks.sequences import SEQUENCES as SEQUENCES
    from envs.tasks.sequences import TaskSequence as TaskSequence
    from envs.tasks.sequences import changing as changing
    from envs.tasks.variations import ROBOTS as ROBOTS
    from envs.tasks.variations import VARIATIONS as VARIATIONS
else:
    __getattr__, __dir__, __all__ = exports(
        __name__,
        {
            "envs.datasets.noise": ("add_noise",),
            "envs.datasets.offline": ("load_minari", "save_minari"),
            "envs.datasets.tables": ("Table", "load_table"),
            "envs.known.endings": ("load_rule", "termination_rule"),
            "envs.known.oracle": ("Oracle",),
            "envs.known.rewards": ("approximate_reward_rule", "reward_rule"),
            "envs.known.rules": ("known_rules",),
            "envs.known.true_model": ("TrueModel",),
            "envs.tasks.appended": ("Appended", "task_dims"),
            "envs.tasks.class_sequences": ("CLASS_SEQUENCES", "ClassSequence"),
            "envs.tasks.guard": ("Guard",),
            "envs.tasks.make": ("make_env",),
            "envs.tasks.sequences": ("SEQUENCES", "TaskSequence", "changing"),
            "envs.tasks.variations": ("ROBOTS", "VARIATIONS"),
        },
    )
