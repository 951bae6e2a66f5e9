"""report: one page of one run or several; a mistake is one line and exit code 2."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import report

from mbrl_bilevel.studies.launching import launch_tool

ROW = {"method": "nll", "dataset": "a", "seed": 0, "n_train": 100, "nrmse": 1.0, "nll": 2.0}


def run(folder: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"script": "compare", "args": {}}))
    text = "".join(json.dumps(row) + "\n" for row in ([ROW] if rows is None else rows))
    (folder / "rows.jsonl").write_text(text)
    return folder


def summary(capsys: pytest.CaptureFixture[str], *argv: object) -> Any:
    launch_tool(report.Args, report.main, [str(arg) for arg in argv])
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    with pytest.raises(SystemExit) as stop:
        summary(capsys, *argv)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_page_of_a_run_is_beside_its_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = summary(capsys, run(tmp_path / "a"))
    page = tmp_path / "a" / "report.html"
    assert found == {
        **{"page": str(page), "bytes": page.stat().st_size},
        **{"runs": ["a"], "plots": 2},
    }
    assert page.read_text().startswith("<!doctype html>")


def test_several_runs_have_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = run(tmp_path / "a"), run(tmp_path / "b", [{**ROW, "seed": 1}])
    found = summary(capsys, *runs, "--out", tmp_path / "new" / "page.html")
    assert found["runs"] == ["a", "b"]
    assert (tmp_path / "new" / "page.html").is_file()


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "config.json is missing" in refused(capsys, tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
    assert "RUN" in refused(capsys)
    good = run(tmp_path / "a")
    assert "--out" in refused(capsys, good, "--out", tmp_path)
    assert "named twice" in refused(capsys, good, good)
    assert "line 1 was edited" in refused(capsys, run(tmp_path / "b", [{**ROW, "nll": "x"}]))
    assert not (tmp_path / "b" / "report.html").exists()
    assert "did you mean --out" in refused(capsys, good, "--outt", "x")
