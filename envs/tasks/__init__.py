"""Environments by name, variations of the MuJoCo tasks, and sequences of them."""
