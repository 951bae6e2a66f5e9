"""Memory that is freed and soon taken again should not go back to the system in between."""

from __future__ import annotations

from functools import cache

import torch

#: glibc adapts to blocks up to 32 MiB (DEFAULT_MMAP_THRESHOLD_MAX on 64-bit systems).
_BLOCK = 31 * 2**20


@cache
def keep_freed_memory() -> None:
    """Teach the C library, once, to keep up to 62 MiB of freed memory in the process.

    glibc gives a freed block of 128 KiB and more back to the system, and takes it anew, a page fault
    for each 4 KiB: in loops over large tensors up to a third of the time. But its limit follows the
    largest such block that was freed, and what it keeps is twice that (mallopt(3), M_MMAP_THRESHOLD).
    Other C libraries take no notice.
    """
    torch.empty(_BLOCK, dtype=torch.uint8)
