"""A cell's folder on another machine: what changes arrives, and what arrives can be gone on with."""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mbrl_bilevel.base.atomic import write_atomically
from mbrl_bilevel.base.rows import Row, Rows
from mbrl_bilevel.studies import cell_folder, ray_cells
from mbrl_bilevel.studies.arguments import RunArgs
from mbrl_bilevel.studies.cell_folder import Change, moved, posting, whole
from mbrl_bilevel.studies.cells import Done
from mbrl_bilevel.studies.ray_cells import _Errand, _run


def test_what_changes_is_posted_and_the_end_is_posted_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cell_folder, "PERIOD", 0.01)
    there, here = tmp_path / "there", tmp_path / "here"
    posted: list[Change] = []
    arrived = threading.Event()

    def post(change: Change) -> None:
        posted.append(change)
        change.apply(here)
        arrived.set()

    Change({"config.json": b"{}", "checkpoints/agent-1": b"one"}).apply(there)
    with posting(there, post):
        write_atomically(there / "checkpoints" / "agent-2", b"two")
        (there / "checkpoints" / "agent-1").unlink()
        Rows(there / "rows.jsonl").append({"step": 2})
        assert arrived.wait(10)
        write_atomically(there / "metrics.json", b"{}")
        threading.Event().wait(0.1)
        assert not (here / "metrics.json").exists()
    assert [name for change in posted for name in change.files].count("metrics.json") == 1
    assert "metrics.json" in posted[-1].files
    assert "config.json" not in [name for change in posted for name in change.files]  # not new
    assert [name for change in posted for name in change.gone] == ["checkpoints/agent-1"]
    assert whole(here).files == {n: c for n, c in whole(there).files.items() if n != "config.json"}


def test_rows_are_read_before_checkpoints_and_written_behind_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["metrics.json", "checkpoints/a", "rows.jsonl", "config.json", "summary.json"]
    Change(dict.fromkeys(names, b"")).apply(tmp_path)
    change = whole(tmp_path)
    assert next(iter(change.files)) == "rows.jsonl"
    written: list[str] = []
    monkeypatch.setattr(cell_folder, "write_atomically", lambda path, _: written.append(path.name))
    change.apply(tmp_path)
    assert written == ["config.json", "a", "rows.jsonl", "summary.json", "metrics.json"]


def test_only_json_files_are_told_where_the_folder_is_now() -> None:
    there, here = Path("/tmp/cell-x"), Path("runs/ä")
    change = Change({"s.json": json.dumps({"a": "/tmp/cell-x/b"}).encode(), "a": b"/tmp/cell-x"})
    found = moved(change, there, here)
    assert json.loads(found.files["s.json"]) == {"a": "runs/ä/b"}
    assert found.files["a"] == b"/tmp/cell-x"


@dataclass(frozen=True, kw_only=True)
class Args(RunArgs):
    """Options of ``count``."""


def count(args: Args, key: Row) -> Done:
    """Goes on counting from the number that its folder holds."""
    assert args.out is not None
    path = args.out / key["name"] / "count.json"
    path.parent.mkdir(exist_ok=True)
    begun = json.loads(path.read_text())["count"] if path.exists() else 0
    write_atomically(path, json.dumps({"count": begun + 1, "at": str(path)}).encode())
    return Done({"begun": begun, "where": str(args.out)})


class Post:
    """The queue, without a cluster."""

    def __init__(self) -> None:
        self.held: list[Any] = []

    def put(self, item: Any) -> None:
        self.held.append(item)

    def qsize(self) -> int:
        return len(self.held)

    def get_nowait_batch(self, number: int) -> list[Any]:
        found, self.held = self.held[:number], self.held[number:]
        return found


def test_a_cell_on_a_worker_finds_and_leaves_its_files_here(tmp_path: Path) -> None:
    post = Post()
    for number in range(2):
        errand = _Errand(0, number, Path.cwd(), tmp_path, ["cell"])
        so_far = ray_cells._so_far(errand)
        outcome, told = _run((count, Args(out=tmp_path)), {"name": "cell"}, errand, so_far, post)
        assert isinstance(outcome, Done)
        assert outcome.row["begun"] == number
        assert not Path(str(outcome.row["where"])).exists()  # the worker's own place
        assert told == ""
        ray_cells._collect(post, [errand])
        found = json.loads((tmp_path / "cell" / "count.json").read_text())
        assert found == {"count": number + 1, "at": str(tmp_path / "cell" / "count.json")}
    late = _Errand(0, 0, Path.cwd(), tmp_path, ["cell"])
    _run((count, Args(out=tmp_path)), {"name": "cell"}, late, [Change({})], post)
    ray_cells._collect(post, [_Errand(0, 1, Path.cwd(), tmp_path, ["cell"])])
    # What a worker sends that passed for lost is not taken for the later try's.
    assert json.loads((tmp_path / "cell" / "count.json").read_text())["count"] == 2


def noted(args: Args, key: Row) -> Done:
    """A line more in the file of each name, in the folder of that name."""
    assert args.out is not None
    for name in key["names"]:
        place = args.out / name / "lines.txt"
        place.parent.mkdir(exist_ok=True)
        before = place.read_text() if place.exists() else ""
        place.write_text(before + f"{name}\n")
    return Done({})


def test_cells_that_are_done_at_once_each_have_a_folder(tmp_path: Path) -> None:
    post, names = Post(), ["one", "other"]
    for number in range(2):
        errand = _Errand(0, number, Path.cwd(), tmp_path, names)
        so_far = ray_cells._so_far(errand)
        outcome, _ = _run((noted, Args(out=tmp_path)), {"names": names}, errand, so_far, post)
        assert isinstance(outcome, Done)
        ray_cells._collect(post, [errand])
    found = {path.name: (path / "lines.txt").read_text() for path in tmp_path.iterdir()}
    assert found == {"one": "one\none\n", "other": "other\nother\n"}
