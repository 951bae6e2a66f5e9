"""What a script says at its end: the first table as text, within the width of the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from mbrl_bilevel.pages.terminal import summary

Make = Callable[..., Path]


def test_the_table_has_intervals_where_there_is_room(compared: Make) -> None:
    folder = compared("c", [0, 1])
    title, head, rule, *rows = summary([folder], width=1000).splitlines()
    assert title == "Means over repeats [95 % interval]"
    assert head.split()[:1] == ["data"]
    assert set(rule) == {"-", " "}
    assert len(rows) == 12  # 2 data sets, 2 sizes, 3 methods
    assert all("[" in row for row in rows)
    assert any(" *" in row for row in rows)
    narrow = summary([folder], width=100).splitlines()
    assert not any("[" in row for row in narrow)
    assert max(map(len, narrow)) < max(map(len, [head, *rows]))


def test_nothing_is_said_of_a_run_without_rows(make: Make) -> None:
    assert summary([make("new", "compare", {}, [])]) == ""
