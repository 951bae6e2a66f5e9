"""What Stable-Baselines3's users give an agent: callbacks (none, a function, one, or a list), and where to log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.logger import Logger, configure
from stable_baselines3.common.type_aliases import MaybeCallback


def as_callback(callback: MaybeCallback) -> BaseCallback:
    """One callback that does what was given."""
    if isinstance(callback, list):
        callback = CallbackList(callback)
    return callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)


class Presented(BaseCallback):
    """Calls ``inner`` with the locals of SB3's loop, and with ``agent`` as its model.

    SB3's loop knows the learner alone; a callback that evaluates or saves means the whole agent.
    """

    def __init__(self, inner: BaseCallback, agent: Any) -> None:
        super().__init__()
        self._inner, self._agent = inner, agent

    def _init_callback(self) -> None:
        self._inner.init_callback(self._agent)

    def _on_training_start(self) -> None:
        self._inner.on_training_start(self.locals, self.globals)

    def _on_rollout_start(self) -> None:
        self._inner.on_rollout_start()

    def _on_step(self) -> bool:
        return self._inner.on_step()

    def _on_rollout_end(self) -> None:
        self._inner.on_rollout_end()

    def _on_training_end(self) -> None:
        self._inner.on_training_end()

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        """The loop's locals, for ``inner`` too."""
        self._inner.update_locals(locals_)


def open_logger(tensorboard_log: str | Path | None, verbose: int) -> Logger:
    """SB3's logger: to the terminal if ``verbose``, and to TensorBoard's folder if there is one."""
    formats = (["stdout"] if verbose else []) + (["tensorboard"] if tensorboard_log else [])
    return configure(str(tensorboard_log) if tensorboard_log else None, formats)
