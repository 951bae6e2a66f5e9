"""Whole-or-nothing file writes: a reader sees the old file or the new one, never half of one.

Write a temporary neighbour, fsync it, rename it over the target, fsync the folder.
"""

from __future__ import annotations

import os
from pathlib import Path


def write_atomically(path: Path, *chunks: bytes | memoryview) -> None:
    """Write the chunks, one after another, as the new content of ``path``.

    Raises OSError (disk full, no permission, no such folder); ``path`` is then as it was before.
    """
    # The process id keeps two processes from writing into the same temporary file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for chunk in chunks:
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system lets a folder be opened."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
