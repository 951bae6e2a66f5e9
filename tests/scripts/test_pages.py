"""The commands that the pages and the studies' files hold can still be typed."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))  # where a script finds its neighbours

from options.train import Args  # noqa: E402

from mbrl_bilevel.studies.arguments import option_name, parse  # noqa: E402
from mbrl_bilevel.studies.grid import read_grid  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
GRIDS = sorted((ROOT / "docs" / "results" / "agents").glob("grid*.toml"))


def known_options(command: str) -> set[str]:
    options: Any = importlib.import_module(f"options.{command}").Args
    names = {field.name for field in fields(options)} | {*getattr(options, "renamed", {}), "help"}
    return {option_name(name) for name in names}


def test_every_option_in_a_command_of_the_pages_is_one() -> None:
    found = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for name, words in re.findall(r"python scripts/([a-z_]+)\.py ([^\n`|;&#]*)", text):
            asked = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", words))
            assert asked <= known_options(name), f"{page.name}: scripts/{name}.py {words}"
            found += len(asked)
    assert found > 200


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_every_cell_of_a_study_is_a_command_of_train(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))  # as the grid of the unseen task says
    cells = {(cell.task, cell.column): cell for cell in read_grid(path).cells()}
    assert cells
    for (task, _), cell in cells.items():
        args = parse(Args, cell.options, None)
        assert (args.env_id, args.steps, args.seed) == (task, cell.steps, cell.seed)
