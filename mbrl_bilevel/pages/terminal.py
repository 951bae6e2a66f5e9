"""The tables of a page as plain text: what a script says at its end, on the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from mbrl_bilevel.pages.blocks import Cell, Table
from mbrl_bilevel.pages.folders import read_runs
from mbrl_bilevel.pages.page import sections_of

#: Rows of a table, and characters of a cell; the page has all.
_MOST_ROWS, _WIDEST = 40, 40
_ARROWS = {"lower": " ↓", "higher": " ↑", "level": "", None: ""}


def summary(runs: Sequence[Path | str], tables: int = 1, width: int = 200) -> str:
    """The first ``tables`` tables of these run folders, each with its title; the best of each group is starred.

    A table that would be wider than ``width`` characters leaves its intervals out.

    Empty where nothing is finished yet. Raises InvalidInputError as ``write_page`` does.
    """
    sections = sections_of(read_runs([Path(run) for run in runs]))
    found = [block for section in sections for block in section.blocks if isinstance(block, Table)]
    return "\n\n".join("\n".join(_fitting(table, width)) for table in found[:tables])


def _fitting(table: Table, width: int) -> list[str]:
    """With its intervals, where these have room."""
    whole = list(_lines(table, True))
    return whole if max(map(len, whole)) <= width else list(_lines(table, False))


def _lines(table: Table, intervals: bool) -> Iterator[str]:
    head = [
        f"{_titled(column.title, intervals)}{_ARROWS[column.better]}" for column in table.columns
    ]
    rows = [[_text(cell, intervals) for cell in row] for row in table.rows[:_MOST_ROWS]]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    yield _titled(table.title, intervals)
    yield _padded(head, widths)
    yield _padded(["-" * width for width in widths], widths)
    yield from (_padded(row, widths) for row in rows)
    if len(table.rows) > _MOST_ROWS:
        yield f"… {len(table.rows) - _MOST_ROWS} more rows are on the page"


def _titled(title: str, intervals: bool) -> str:
    return title if intervals else title.replace(" [95 % interval]", "")


def _text(cell: Cell, interval: bool) -> str:
    """On one line, and without what would move the cursor: a name may hold anything."""
    ends = f" {cell.interval}" if interval else ""
    text = " ".join(f"{cell.text}{ends}{' *' if cell.best else ''}".split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= _WIDEST else f"{text[: _WIDEST - 1]}…"


def _padded(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "  ".join(cell.ljust(w) for cell, w in zip(cells, widths, strict=True)).rstrip()
