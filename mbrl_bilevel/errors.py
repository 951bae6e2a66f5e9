"""The one exception family of the project: a bad input is told in one line, with its remedy."""


class BilevelError(Exception):
    """Base of every error raised on purpose. Scripts print it as one line and exit with code 2."""


class InvalidInputError(BilevelError, ValueError):
    """An argument has a wrong value, shape or type. The message names it, what came and what would do."""


class CheckpointError(BilevelError):
    """A checkpoint is missing, damaged, hostile, or of a version this code cannot read."""


class UnsupportedCombinationError(BilevelError, ValueError):
    """A combination of slots that is mathematically wrong, with the reason and the remedy."""


class DivergedError(BilevelError):
    """Training produced NaN or infinity. The policy holds its last good state."""


class EnvironmentFailedError(BilevelError):
    """An environment raised, hung, or returned what its own spaces rule out."""
