"""Callbacks as Stable-Baselines3's users give them: none, a function, one, or a list."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback


def as_callback(callback: MaybeCallback) -> BaseCallback:
    """One callback that does what was given."""
    if isinstance(callback, list):
        callback = CallbackList(callback)
    return callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)
