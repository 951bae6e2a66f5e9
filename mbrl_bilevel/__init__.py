"""A model-based RL suite that learns dynamics by an inferred reward instead of by likelihood."""
