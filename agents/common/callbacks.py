"""What Stable-Baselines3's users give an agent: callbacks (none, a function, one, or a list), and where to log."""

from __future__ import annotations

from pathlib import Path

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.type_aliases import MaybeCallback


def as_callback(callback: MaybeCallback) -> BaseCallback:
    """One callback that does what was given."""
    if isinstance(callback, list):
        callback = CallbackList(callback)
    return callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)


def open_logger(tensorboard_log: str | Path | None, verbose: int) -> Logger:
    """SB3's logger: to the terminal if ``verbose``, and to TensorBoard's folder if there is one."""
    formats = (["stdout"] if verbose else []) + (["tensorboard"] if tensorboard_log else [])
    return configure(str(tensorboard_log) if tensorboard_log else None, formats)
