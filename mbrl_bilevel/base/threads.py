"""How many threads the work is worth: PyTorch's default takes all cores for products too small to share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

#: Layers up to this wide are done by one thread: handing a product of a few hundred rows to several costs
#: more than it saves, and on a busy machine the threads wait for each other at every layer.
_WIDEST_FOR_ONE = 600


@contextmanager
def few_threads(widest: int) -> Iterator[None]:
    """Within it PyTorch uses one thread where no layer has more than a few hundred units, else as before."""
    before = torch.get_num_threads()
    if widest > _WIDEST_FOR_ONE or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
