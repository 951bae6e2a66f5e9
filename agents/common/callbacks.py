"""The callbacks of Stable-Baselines3's users: none, a function, one, or a list."""

from __future__ import annotations

from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback


def as_callback(callback: MaybeCallback) -> BaseCallback:
    """One callback that does what was given."""
    if isinstance(callback, list):
        callback = CallbackList(callback)
    return callback if isinstance(callback, BaseCallback) else ConvertCallback(callback)


class Presented(BaseCallback):
    """Calls ``inner`` with the locals of SB3's loop, and with ``agent`` as its model and their ``self``.

    SB3's loop knows the learner alone; a callback that evaluates or saves means the whole agent.
    """

    def __init__(self, inner: BaseCallback, agent: Any) -> None:
        super().__init__()
        self._inner, self._agent = inner, agent

    def _init_callback(self) -> None:
        self._inner.init_callback(self._agent)

    def _on_training_start(self) -> None:
        self._inner.on_training_start(self.locals | {"self": self._agent}, self.globals)

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
        self._inner.update_locals(locals_ | {"self": self._agent})
