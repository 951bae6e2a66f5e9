"""A method of the user's own goes by its name through every script, and into the processes of --jobs."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mbrl_bilevel.studies.launching import launch
from mbrl_bilevel.training.class_methods import CLASS_METHODS
from mbrl_bilevel.training.methods import METHODS

#: No bar, no table and no page.
QUIET = ["--quiet", "--no-report"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
SCRIPTS = ROOT / "scripts"
sys.path.append(str(SCRIPTS))

import compare  # noqa: E402

LINE = ["--env-id", "Pendulum-v1", "--members", "2", "--hidden", "8", "--n-train", "200"]
COMPARE = [
    *LINE,
    "--train-steps",
    "40",
    "--seeds",
    "1",
    "--n-test",
    "200",
    "--jobs",
    "2",
    *QUIET,
]


@pytest.fixture(autouse=True)
def where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the folder where my_method.py is, and with nothing registered yet."""
    monkeypatch.chdir(HERE)
    monkeypatch.setattr("sys.path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_method", raising=False)
    for table in (METHODS, CLASS_METHODS):
        monkeypatch.delitem(table, "mine", raising=False)


def test_compare_fits_it_side_by_side_with_another(tmp_path: Path) -> None:
    own = ["--import-module", "my_method", "--methods", "mine", "mse"]
    launch(compare.Args, compare.main, [*COMPARE, *own, "--out", str(tmp_path / "run")])
    rows = json.loads((tmp_path / "run" / "metrics.json").read_text())["rows"]
    found = {row["method"]: row["nll"] for row in rows}
    assert found["mine"] == found["mse"]  # the same by another name


def test_without_the_module_it_is_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*COMPARE, "--methods", "mine", "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        launch(compare.Args, compare.main, options)
    assert stop.value.code == 2
    told = capsys.readouterr().err
    assert "--methods" in told
    assert "'mine'" in told


@pytest.mark.parametrize(
    ("script", "values"),
    [
        ("train", {"method": "mine"}),
        ("offline", {"method": "mine", "minari": "d/e-v0", "env_id": "Pendulum-v1"}),
        ("tune", {"methods": ("mine",)}),
        ("continual", {"methods": ("mine", "mine+kl")}),
        ("continual", {"methods": ("mine", "mine+kl"), "sequences": ("digits-split",)}),
        ("classify", {"methods": ("mine",)}),
    ],
)
def test_every_script_takes_it(
    script: str, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(HERE)
    options: Any = importlib.import_module(f"options.{script}").Args
    assert options(import_module="my_method", **values).import_module == "my_method"
