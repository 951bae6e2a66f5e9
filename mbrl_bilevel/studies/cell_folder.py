"""The folder that a cell fills, carried between machines that share no disk: what changed, as bytes.

Files of a run are written whole or appended to (``base.atomic``, ``base.rows``), so that a copy taken at any time is
one that the run goes on from.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mbrl_bilevel.base.atomic import write_atomically

#: Seconds between two looks at the folder.
PERIOD = 1.0

#: The file that says "finished", and the one that makes a folder a run's (``RunFolder``).
_LAST, _FIRST = "metrics.json", "config.json"
#: Rows are read before the checkpoints that they were made with, and written after them.
_ROWS = "rows.jsonl"

_Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Change:
    """Files of a folder by their path in it, with their new content, and those that are gone."""

    files: Mapping[str, bytes]
    gone: Sequence[str] = ()

    def apply(self, folder: Path) -> None:
        """Write it into ``folder``, in an order that leaves a run that can go on wherever it is cut."""
        for name in sorted(self.files, key=_written):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, self.files[name])
        for name in self.gone:
            (folder / name).unlink(missing_ok=True)


def _written(name: str) -> tuple[int, str]:
    return ({_FIRST: 0, _ROWS: 2, "summary.json": 3, _LAST: 4}.get(name, 1), name)


def whole(folder: Path) -> Change:
    """All that ``folder`` holds; nothing if there is none."""
    return Change(_read(folder, _stamps(folder)))


@contextmanager
def posting(folder: Path, post: Callable[[Change], object]) -> Iterator[None]:
    """Within it, hand what changes in ``folder`` to ``post``, every ``PERIOD`` seconds and at the end.

    The file that says "finished" goes with the last one only: nothing may be missing beside it.
    """
    seen, stop = _stamps(folder), threading.Event()

    def look(last: bool) -> None:
        nonlocal seen
        now = _stamps(folder)
        if not last:
            now.pop(_LAST, None)
        files = _read(folder, {n: stamp for n, stamp in now.items() if seen.get(n) != stamp})
        gone = [name for name in seen if name not in now and name != _LAST]
        if files or gone:
            post(Change(files, gone))
        seen = now

    def keep_looking() -> None:
        while not stop.wait(PERIOD):
            look(last=False)

    thread = threading.Thread(target=keep_looking, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look(last=True)


def moved(change: Change, there: Path, here: Path) -> Change:
    """The same with the folder ``here`` in the place of ``there`` wherever a JSON file names it."""
    old, new = (json.dumps(str(path))[1:-1].encode() for path in (there, here))
    files = {
        name: content.replace(old, new) if name.endswith(".json") else content
        for name, content in change.files.items()
    }
    return Change(files, change.gone)


def _stamps(folder: Path) -> dict[str, _Stamp]:
    """What tells that a file has changed, of each but those that are being written."""
    found = {}
    for path in sorted(folder.rglob("*")):
        try:
            about = path.stat()
        except FileNotFoundError:
            continue
        if path.is_file() and not path.name.endswith(".tmp"):
            name = path.relative_to(folder).as_posix()
            found[name] = (about.st_ino, about.st_size, about.st_mtime_ns)
    return found


def _read(folder: Path, names: Mapping[str, object]) -> dict[str, bytes]:
    """In an order in which the rows are never newer than the checkpoints."""
    found = {}
    for name in sorted(names, key=lambda name: (name != _ROWS, name)):
        try:
            found[name] = (folder / name).read_bytes()
        except FileNotFoundError:  # an old checkpoint, removed in between
            continue
    return found
