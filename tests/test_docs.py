"""The code on the site's pages runs, at reduced sizes; every script has its how-to; the README's links lead somewhere."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from agents import ICEM
from mbrl_bilevel import Imagination, Schedule
from mbrl_bilevel.studies.grid import read_grid
from mbrl_bilevel.training.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]
TUTORIAL = sorted((ROOT / "docs" / "tutorial").glob("*.md"))
SMALL: dict[str, Any] = {
    "members": 2,
    "hidden": (8,),
    "schedule": Schedule(steps=20),
    "planner": ICEM(horizon=2, population=8, iterations=1),
    "imagination": Imagination(particles=2),
    "learning_starts": 60,
    "value": None,
}
#: Page -> what its sizes become in the test.
REDUCED = {
    "your-environment": {
        "agent.learn(500)": "agent.learn(80)",
        'method="bilevel", seed=0)': 'method="bilevel", seed=0, **SMALL)',
    },
    "logged-data": {
        "default_rng(0)), 3000": "default_rng(0)), 600",
        "steps=2000)": "steps=20), members=2, hidden=(16,)",
    },
    "your-parts": {"Schedule(steps=500)": "Schedule(steps=20), members=2"},
    "continual": {
        "Schedule(steps=500)": "Schedule(steps=20)",
        "learning_starts=200, hidden=(32,)": "learning_starts=200, hidden=(8,), schedule=Schedule(steps=20)",
    },
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore:after .* steps", "ignore:Evaluation environment is not wrapped")
@pytest.mark.parametrize("page", TUTORIAL, ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = dict(METHODS)
    code = "\n".join(blocks(page, "python"))
    for given, small in REDUCED.get(page.stem, {}).items():
        assert code.count(given) == 1, given
        code = code.replace(given, small)
    try:
        exec(compile(code, str(page), "exec"), {"SMALL": SMALL, "__name__": page.stem})
    finally:
        METHODS.clear()
        METHODS.update(before)


def test_the_declared_study_is_one(tmp_path: Path) -> None:
    (block,) = blocks(ROOT / "docs" / "tutorial" / "sweep.md", "toml")
    assert tomllib.loads(block)
    (tmp_path / "grid.toml").write_text(block)
    assert len(list(read_grid(tmp_path / "grid.toml").cells())) == 6


def test_every_script_has_its_how_to() -> None:
    titles = re.findall(r"^## (.*)", (ROOT / "docs" / "scripts.md").read_text(), re.MULTILINE)
    told = {name for title in titles for name in title.split(" and ")}
    assert told == {path.stem for path in (ROOT / "scripts").glob("*.py")}


def test_links_of_the_readme_lead_somewhere() -> None:
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [link.partition("#")[0] for link in links if "://" not in link]
    assert len(local) > 10
    assert [link for link in local if link and not (ROOT / link).exists()] == []


def test_every_page_is_on_the_site() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {p.relative_to(ROOT / "docs").with_suffix("") for p in (ROOT / "docs").rglob("*.md")}
    listed = {Path(line) for line in index.splitlines()}
    assert {str(page) for page in pages - listed} == {"index", "results/agents/table"}
