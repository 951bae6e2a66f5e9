"""Planners and agents that use a learned dynamics model."""
