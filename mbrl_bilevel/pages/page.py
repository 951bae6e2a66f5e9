"""Write the page: one HTML file with its styles, its script and its plots, which asks no network for anything."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mbrl_bilevel.base.atomic import write_atomically
from mbrl_bilevel.pages.about import about
from mbrl_bilevel.pages.blocks import Block, Line, Matrix, Plot, Section, Table
from mbrl_bilevel.pages.classes import classes
from mbrl_bilevel.pages.comparison import comparison
from mbrl_bilevel.pages.folders import Run, read_runs
from mbrl_bilevel.pages.forgetting import forgetting
from mbrl_bilevel.pages.health import by_policy, model_health
from mbrl_bilevel.pages.looks import PALETTE, Looks
from mbrl_bilevel.pages.means import said
from mbrl_bilevel.pages.others import benched, plain_rows, recovered, tuned
from mbrl_bilevel.pages.returns import learning, offline, planning
from mbrl_bilevel.pages.reward import inferred
from mbrl_bilevel.pages.timings import timings
from mbrl_bilevel.pages.words import BETTER, MOST_LINES, data_rows, frame_of, summary


@dataclass(frozen=True)
class Written:
    """What was written: the file, its size in bytes, the runs that are on it and the number of plots."""

    path: Path
    size: int
    runs: Sequence[str]
    plots: int


def write_page(runs: Sequence[Path | str], path: Path | str) -> Written:
    """Write one page of these run folders, finished or not, to ``path``.

    Runs of the same script and options are repeats and are pooled; a method that was run otherwise is told
    apart by the name of its run. The file is written whole or not at all. Raises InvalidInputError, with the
    file and the remedy, for a folder that is no run or was damaged, and OSError if ``path`` cannot be written.
    """
    read = read_runs([Path(run) for run in runs])
    sections = sections_of(read)
    document = render(read, sections, Path(path)).encode("utf-8", "backslashreplace")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(path), document)
    plots = sum(isinstance(block, Plot) for section in sections for block in section.blocks)
    return Written(Path(path), len(document), [run.name for run in read], plots)


def sections_of(runs: Sequence[Run]) -> list[Section]:
    """What came of the runs, a chapter a kind of result."""
    found = [
        *(learning(runs), planning(runs), offline(runs), by_policy(runs), model_health(runs)),
        *comparison(runs),
        *forgetting(runs),
        *classes(runs),
        *(inferred(runs), recovered(runs), tuned(runs), benched(runs), timings(runs)),
        *plain_rows(runs),
    ]
    return [section for section in found if section is not None]


def render(runs: Sequence[Run], sections: Sequence[Section], path: Path) -> str:
    """The page as text, to be kept at ``path``."""
    looks = Looks(list(_groups(sections)))
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"looks": looks, "said": said}
    scripts = {name: _file(name) for name in ("plotly-basic.min.js", "page.js")}
    plots: list[Mapping[str, Any]] = []
    document = environment.from_string(_file("page.html.jinja")).render(
        title=", ".join(dict.fromkeys(run.name for run in runs)),
        abouts=[about(run, path) for run in runs],
        sections=[
            {
                "id": f"section-{number}",
                "title": section.title,
                "lead": section.lead,
                "blocks": [_shown(block, looks, plots) for block in section.blocks],
            }
            for number, section in enumerate(sections, start=1)
        ],
        plots=Markup(_json_in_html(plots)),  # the list that _shown has filled
        palette=PALETTE,
        better=BETTER,
        styles=Markup(_file("page.css")),
        scripts={name: Markup(source) for name, source in scripts.items()},
        allowed=" ".join(f"'sha256-{_digest(source)}'" for source in scripts.values()),
    )
    return document.lstrip()


def _shown(block: Block, looks: Looks, plots: list[Mapping[str, Any]]) -> Mapping[str, Any]:
    """A block as the template wants it; a plot is added to ``plots``, which the page's script draws."""
    if isinstance(block, Table):
        return {"kind": "table", "table": block}
    if isinstance(block, Matrix):
        return {"kind": "matrix", "matrix": block, "shades": list(_shades(block))}
    head, rows = data_rows(block)
    frame = frame_of(block)
    drawn = {
        "x": block.x_title,
        "y": block.y_title,
        "joined": block.joined,
        "diagonal": block.diagonal,
        "logX": block.log_x,
        "logY": block.log_y,
        "range": frame,
        "references": [[name, value] for name, value in block.references.items()],
        "lines": [_drawn(line, looks) for line in block.lines],
        "shown": MOST_LINES if block.joined else len(block.lines),
    }
    plots.append(drawn)
    note = block.note
    if frame is not None and block.y_range is None:
        note = (
            f"{note} Some values lie outside the frame: double-click the plot to see all.".strip()
        )
    lost = sum(y.lost > 0 for line in block.lines for y in line.y)
    if lost:
        note = f"{note} {lost} points are not finite and cannot be drawn.".strip()
    return {
        "kind": "plot",
        "plot": block,
        "id": f"plot-{len(plots)}",
        "summary": summary(block),
        "head": head,
        "rows": rows,
        "note": note,
        "shown": drawn["shown"],
    }


def _drawn(line: Line, looks: Looks) -> Mapping[str, Any]:
    look = looks[line.name]
    found: dict[str, Any] = {
        "name": line.name,
        "colour": look.colour,
        "dash": look.dash,
        "marker": look.marker,
        "x": list(line.x),
        "y": [_finite(y.mean) for y in line.y],
        "low": [y.low for y in line.y],
        "high": [y.high for y in line.y],
        "n": [y.n for y in line.y],
    }
    if line.x_means is not None:
        found["xLow"] = [x.low for x in line.x_means]
        found["xHigh"] = [x.high for x in line.x_means]
    return found


def _shades(matrix: Matrix) -> Iterator[Sequence[float | None]]:
    """How far along the scale each value is, 0 to 1."""
    span = matrix.high - matrix.low or 1.0
    for row in matrix.values:
        yield [
            min(max((v - matrix.low) / span, 0.0), 1.0) if math.isfinite(v) else None for v in row
        ]


def _groups(sections: Sequence[Section]) -> Iterator[list[str]]:
    """What has a colour: the lines of each plot, which must be told apart; then, one by one, names that stand in
    tables and matrices."""
    blocks = [block for section in sections for block in section.blocks]
    for block in blocks:
        if isinstance(block, Plot):
            yield [line.name for line in block.lines]
    for block in blocks:
        if isinstance(block, Table):
            yield from ([cell.look] for row in block.rows for cell in row if cell.look is not None)
        elif isinstance(block, Matrix) and block.look is not None:
            yield [block.look]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _json_in_html(document: object) -> str:
    """JSON that ends no script element and opens no comment."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _file(name: str) -> str:
    return (resources.files(__package__) / name).read_text(encoding="utf-8")


def _digest(source: str) -> str:
    """Of a script element with this content, for the page's content security policy."""
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()
