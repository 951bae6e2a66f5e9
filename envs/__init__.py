"""Tasks, rules, data sets and the true simulator behind a model's face."""

from envs.mujoco_log import quiet_mujoco

# Here, so that it holds whatever of this package is imported, and for a plain gymnasium.make() too.
quiet_mujoco()
