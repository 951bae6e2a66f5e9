"""The page as a file: small, self-contained, and whatever a folder says stays text."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.pages.page import write_page

Make = Callable[..., Path]
HOSTILE = "</script><img src=x onerror=alert(1)>{{7*7}}\ud800'\""


class Tags(HTMLParser):
    """Every tag with its attributes; VOID need no end."""

    VOID = frozenset(("meta", "link", "br", "img", "input"))

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def tags(page: Path) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(page.read_text())
    assert parser.open == []  # what was opened was closed, in order
    return parser.found


def test_everything_on_one_page(
    tmp_path: Path, trained: Make, compared: Make, forgot: Make, classified: Make
) -> None:
    runs = [trained("t", [0, 1]), compared("c", [0, 1]), forgot("f"), classified("k")]
    written = write_page(runs, tmp_path / "new" / "page.html")
    page = tmp_path / "new" / "page.html"
    assert written.size == page.stat().st_size < 3_000_000
    assert list(written.runs) == ["t", "c", "f", "k"]
    found = tags(page)
    assert sum(attrs.get("class") == "canvas" for _, attrs in found) == written.plots
    for tag, attrs in found:
        for name in ("src", "href", "action", "srcset"):
            link = attrs.get(name) or "#"
            # What a reader may follow by hand leads to the runs' own files.
            own = tag == "a" and (page.parent / unquote(link)).is_file()
            assert own or link.startswith(("#", "data:"))
    ids = [attrs["id"] for _, attrs in found if "id" in attrs]
    assert len(ids) == len(set(ids))
    for _, attrs in found:  # each plot has its words and its name
        if attrs.get("class") == "canvas":
            assert {attrs["aria-labelledby"], attrs["aria-describedby"]} <= set(ids)
    assert [tag for tag, _ in found].count("details") >= written.plots
    headings = [int(tag[1]) for tag, _ in found if re.fullmatch("h[1-6]", tag)]
    assert all(later - earlier <= 1 for earlier, later in pairwise(headings))


def test_videos_and_figures_of_a_run_are_linked_from_its_page(
    tmp_path: Path, trained: Make
) -> None:
    run = trained("my run #1", [0])
    for name in ("videos/agent.mp4", "figures/returns.png"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(b"x")
    for page in (run / "report.html", tmp_path / "elsewhere" / "page.html"):
        write_page([run], page)
        links = [attrs["href"] for tag, attrs in tags(page) if tag == "a"]
        found = [(page.parent / unquote(link)).resolve() for link in links if link[0] != "#"]
        assert (run / "videos/agent.mp4").resolve() == found[0]
        assert (run / "figures/returns.png").resolve() == found[1]
        assert all(path.is_file() for path in found)


def test_what_a_folder_says_stays_text(tmp_path: Path, make: Make, compared: Make) -> None:
    compare = compared("c", [0, 1], methods=(HOSTILE, "nll"), note=HOSTILE)
    rows = [
        {
            **{"name": HOSTILE, "unit": HOSTILE, "peer_name": HOSTILE},
            **{"ours": 1, "peer": 1, "ratio": 1},
        }
    ]
    own = make("own", HOSTILE, {HOSTILE: HOSTILE}, [{HOSTILE: HOSTILE}, {"failed": HOSTILE}])
    write_page([compare, make("bench", "bench", {}, rows), own], tmp_path / "page.html")
    found = tags(tmp_path / "page.html")
    assert "img" not in {tag for tag, _ in found}
    assert not any(name.startswith("on") for _, attrs in found for name in attrs)
    assert [tag for tag, _ in found].count("script") == 3
    assert "{{7*7}}" in (tmp_path / "page.html").read_text()


def test_only_the_pages_own_scripts_may_run(tmp_path: Path, compared: Make) -> None:
    write_page([compared("c", [0])], tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    allowed = unescape(policy[1])
    for source in re.findall(r"<script>(.*?)</script>", text, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in allowed


def test_at_most_six_lines_are_shown_at_first(tmp_path: Path, compared: Make) -> None:
    methods = tuple(f"method-{i}" for i in range(9))
    write_page([compared("c", [0, 1], methods=methods)], tmp_path / "page.html")
    found = tags(tmp_path / "page.html")
    pressed = [a["aria-pressed"] for _, a in found if a.get("data-of") == "plot-1"]
    assert pressed == ["true"] * 6 + ["false"] * 3


def test_a_long_run_stays_small(tmp_path: Path, trained: Make) -> None:
    folder = trained("t", [0, 1, 2], steps=3000)
    assert write_page([folder], tmp_path / "page.html").size < 1_500_000
    drawn = re.search(r'id="plots">(.*?)</script>', (tmp_path / "page.html").read_text(), re.DOTALL)
    assert drawn is not None
    x = json.loads(drawn[1])[0]["lines"][0]["x"]
    assert (len(x), x[0], x[-1]) == (60, 100, 300_000)


def test_a_run_without_rows_has_a_page(tmp_path: Path, make: Make) -> None:
    written = write_page([make("new", "compare", {}, [])], tmp_path / "page.html")
    assert written.plots == 0
    assert "No results yet" in (tmp_path / "page.html").read_text()


def test_a_damaged_run_leaves_the_old_page(tmp_path: Path, make: Make) -> None:
    page = tmp_path / "page.html"
    page.write_text("old")
    with pytest.raises(InvalidInputError, match="line 1 was edited"):
        write_page([make("run", "compare", {}, [{"method": 1}])], page)
    assert page.read_text() == "old"
