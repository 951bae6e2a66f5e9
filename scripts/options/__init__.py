"""What each command can be told, a dataclass each. Nothing heavy is imported before the options are read."""
