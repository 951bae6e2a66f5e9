"""Settings per task, a TOML file each; and a default for tasks that have none."""

from __future__ import annotations

from agents.presets.preset import NAMES, Preset, named_preset, preset_for

__all__ = ["NAMES", "Preset", "named_preset", "preset_for"]
