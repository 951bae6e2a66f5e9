"""Steps in a learned model: particles of a plan, branches of a replay, environments."""
