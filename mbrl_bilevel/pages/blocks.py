"""What a page is built of: sections of plots, tables and matrices. Plain values; how they look is said elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Self

from mbrl_bilevel.pages.means import Mean

#: Which values are good; "level" has a value of its own that is best (a coverage of 0.9).
Better = Literal["lower", "higher", "level"]


@dataclass(frozen=True)
class Line:
    """One method in a plot: ``y[i]`` at ``x[i]``, which is a number or the name of a category.

    ``x_means``: where x is a mean itself, its interval.
    """

    name: str
    x: Sequence[float | str]
    y: Sequence[Mean]
    x_means: Sequence[Mean] | None = None


@dataclass(frozen=True)
class Plot:
    """Lines, or points with bars where ``joined`` is False, over a shared axis.

    ``references``: name -> value of a horizontal line. ``diagonal``: draw y = x, which is best.
    ``y_range``: the axis where several plots are compared; None lets the plot choose. ``note`` is
    said below it.
    """

    title: str
    x_title: str
    y_title: str
    lines: Sequence[Line]
    better: Better | None = None
    references: Mapping[str, float] = field(default_factory=dict)
    diagonal: bool = False
    joined: bool = True
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its ``text``, and the value that it is sorted by, where it is a number.

    ``best``: the best of its group. ``look``: a method, whose colour is shown beside its name. ``interval``
    is said below the text.
    """

    text: str
    value: float | None = None
    best: bool = False
    look: str | None = None
    interval: str = ""

    @classmethod
    def of(cls, mean: Mean, best: bool = False) -> Self:
        """A mean with its interval."""
        return cls(mean.centre, mean.mean, best, interval=mean.ends)


@dataclass(frozen=True)
class Column:
    """The head of a column; ``better`` says which values are good."""

    title: str
    better: Better | None = None


@dataclass(frozen=True)
class Table:
    """Rows that the reader can sort by any column."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


@dataclass(frozen=True)
class Matrix:
    """Numbers [rows, columns] on a scale of colours from ``low`` to ``high``, shared by its neighbours."""

    title: str
    row_title: str
    row_names: Sequence[str]
    column_names: Sequence[str]
    values: Sequence[Sequence[float]]
    low: float
    high: float
    look: str | None = None
    note: str = ""


Block = Plot | Table | Matrix


@dataclass(frozen=True)
class Section:
    """A chapter of the page: its title, what is to be known of it, and its blocks."""

    title: str
    lead: str
    blocks: Sequence[Block]
