"""Random states of one's own, where a library draws from the global ones.

Stable-Baselines3 draws from PyTorch's and NumPy's global generators. Inside the context these are an
agent's own; outside, the caller's are as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: A state of PyTorch's generator, and one of NumPy's ``RandomState``.
States = tuple[Tensor, dict[str, Any]]


class OwnRandomness:
    """The global random states of PyTorch (CPU) and NumPy, as one agent left them; on a CUDA ``device`` its generator's
    too, seeded by the first. That one is in no file: what goes on from a file there draws anew.

    Entered again inside itself, it changes nothing.
    """

    def __init__(self, seed: int, device: torch.device | None = None) -> None:
        own = np.random.RandomState(seed % 2**32)
        self._cuda = device if device is not None and device.type == "cuda" else None
        self._kept_there: Tensor | None = None
        self._kept: States = (
            torch.Generator().manual_seed(seed).get_state(),
            own.get_state(legacy=False),
        )
        self._outside: States | None = None
        self._depth = 0

    @property
    def entered(self) -> bool:
        """Whether the context is one's own now."""
        return self._depth > 0

    @property
    def states(self) -> States:
        """As they are now, inside the context or not; NumPy's as plain numbers, which JSON can hold."""
        own, numpys = self._kept if self._outside is None else _read()
        key = [int(word) for word in numpys["state"]["key"]]
        return own, numpys | {"state": {"key": key, "pos": int(numpys["state"]["pos"])}}

    @states.setter
    def states(self, states: States) -> None:
        # Tried out first: a file's may be no states at all. NumPy would read at any place.
        if not 0 <= states[1]["state"]["pos"] <= 624:
            raise ValueError("NumPy's state has its position outside")
        torch.Generator().set_state(states[0])
        np.random.RandomState().set_state(states[1])
        self._kept = states

    def __enter__(self) -> None:
        if self._depth == 0:
            self._outside = _read()
            _write(self._kept)
            self._swap_cuda()
        self._depth += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        assert self._outside is not None
        self._kept = _read()
        _write(self._outside)
        self._swap_cuda()
        self._outside = None

    @contextmanager
    def lent(self) -> Iterator[torch.Generator]:
        """PyTorch's stream of this device as a generator of its own: what is drawn from it inside the block is drawn.
        Outside of the context of ``with self`` alone."""
        assert not self.entered
        if self._cuda is not None and self._kept_there is None:
            with self:  # it seeds that one
                pass
        device = "cpu" if self._cuda is None else self._cuda
        own = torch.Generator(device)
        own.set_state(self._kept[0] if self._kept_there is None else self._kept_there)
        try:
            yield own
        finally:
            if self._kept_there is None:
                self._kept = own.get_state(), self._kept[1]
            else:
                self._kept_there = own.get_state()

    def _swap_cuda(self) -> None:
        """Its state and the one kept change places."""
        if self._cuda is None:
            return
        now = torch.cuda.get_rng_state(self._cuda)
        if self._kept_there is None:
            with torch.cuda.device(self._cuda):
                torch.cuda.manual_seed(int(torch.randint(2**62, ())))
        else:
            torch.cuda.set_rng_state(self._kept_there, self._cuda)
        self._kept_there = now


def _read() -> States:
    return torch.get_rng_state(), np.random.get_state(legacy=False)  # noqa: NPY002


def _write(states: States) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
