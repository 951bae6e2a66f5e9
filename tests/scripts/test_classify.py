"""classify end to end on small tables: rows, resuming, determinism, figures, and bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))

import classify  # noqa: E402

from mbrl_bilevel.pages.page import write_page  # noqa: E402
from mbrl_bilevel.studies.launching import launch  # noqa: E402

#: No bar, no table and no page.
QUIET = ["--quiet", "--no-report"]

SMALL = [*QUIET, "--members", "2", "--hidden", "8", "--train-steps", "40", "--seeds", "2"]


def run(out: Path, *options: str) -> Any:
    launch(classify.Args, classify.main, [*SMALL, *options, "--out", str(out)])
    found = json.loads((out / "metrics.json").read_text())
    for part in ("rows", "summary"):
        for row in found[part]:
            row.pop("train_seconds")  # times differ from run to run; nothing else may
    return found


def refused(capsys: pytest.CaptureFixture[str], out: Path, *options: str) -> str:
    with pytest.raises(SystemExit) as stop:
        run(out, *options)
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


def table(path: Path, rows: int = 90) -> str:
    random = np.random.default_rng(0)
    frame = pd.DataFrame(random.normal(size=(rows, 3)), columns=["a", "b", "c"])
    frame["kind"] = np.where(frame["a"] + frame["b"] > 0.0, "up", "down")
    frame.to_csv(path, index=False)
    return str(path)


def test_text_and_missing_values_by_an_option(tmp_path: Path) -> None:
    table(tmp_path / "t.csv")
    data = pd.read_csv(tmp_path / "t.csv")
    data["colour"], data.loc[::10, "a"] = ["red", "green", "blue"] * 30, np.nan
    data.to_csv(tmp_path / "t.csv", index=False)
    options = ["--csv", str(tmp_path / "t.csv"), "--target", "kind", "--methods", "nll"]
    found = run(tmp_path / "a", *options, "--text", "one-hot", "--missing", "fill")
    assert [(row["seed"], sum(row["count"])) for row in found["rows"]] == [(0, 18), (1, 18)]
    dropped = run(tmp_path / "b", *options, "--text", "one-hot", "--missing", "drop")
    assert [sum(row["count"]) for row in dropped["rows"]] == [17, 17]  # a fifth of 81


def test_rows_of_every_method_and_the_same_again(tmp_path: Path) -> None:
    options = ["--data", "iris", "--n-train", "0", "50", "--methods"]
    options += ["bilevel", "nll", "bilevel-matrix", "logistic-regression"]
    found = run(tmp_path / "a", *options)
    assert found == run(tmp_path / "b", *options)
    assert len(found["rows"]) == 2 * 2 * 4
    for row in found["rows"]:
        assert {"accuracy", "balanced_accuracy", "nll", "ece", "brier"} <= row.keys()
        assert 0.0 <= row["accuracy"] <= 1.0 < 10.0 > row["nll"] > 0.0
        assert sum(row["count"]) in (30, 100)
    assert write_page([tmp_path / "a"], tmp_path / "page.html").plots >= 2
    figures = {path.name for path in (tmp_path / "a" / "figures").iterdir()}
    assert figures == {"differences.png", "reliability.png", "reward_matrices.png"}


def test_the_paired_table_is_the_rows_difference(tmp_path: Path) -> None:
    found = run(tmp_path, "--data", "wine", "iris", "--methods", "bilevel", "nll")
    value = {(r["method"], r["dataset"], r["seed"]): r["nll"] for r in found["rows"]}
    truth = np.mean(
        [
            value["bilevel", dataset, seed] - value["nll", dataset, seed]
            for dataset in ("wine", "iris")
            for seed in (0, 1)
        ]
    )
    (line,) = (line for line in found["paired"] if line["dataset"] == "all")
    assert line["nll"]["mean"] == pytest.approx(truth)
    assert line["nll"]["n"] == 2


def test_it_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    options = [
        "--csv",
        table(tmp_path / "t.csv"),
        "--target",
        "kind",
        "--methods",
        "bilevel",
        "nll",
    ]
    whole = run(tmp_path / "a", *options)
    run(tmp_path / "b", *options)
    rows = (tmp_path / "b" / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "b" / "rows.jsonl").write_text("".join(rows[:1]))
    (tmp_path / "b" / "metrics.json").unlink()
    assert run(tmp_path / "b", *options, "--resume") == whole
    assert {row["dataset"] for row in whole["rows"]} == {"t"}


def test_several_learning_rates_make_a_figure(tmp_path: Path) -> None:
    options = ["--data", "iris", "--methods", "bilevel", "nll", "--learning-rate", "1e-3", "1e-1"]
    found = run(tmp_path, *options)
    assert {row["learning_rate"] for row in found["rows"]} == {1e-3, 1e-1}
    assert (tmp_path / "figures" / "learning_rates.png").stat().st_size > 1000


def test_costs_reach_the_outer_level(tmp_path: Path) -> None:
    """Answering 'up' where 'down' is true costs fifty: nobody does it any more."""
    options = [
        "--csv",
        table(tmp_path / "t.csv"),
        "--target",
        "kind",
        "--methods",
        "bilevel-bounded",
    ]
    options += ["--train-steps", "200", "--learning-rate", "1e-2"]
    balanced, costly = (
        np.array(run(tmp_path / name, *options, "--objective", costs)["rows"][0]["reward_matrix"])
        for name, costs in (("a", "0,1;1,0"), ("b", "0,50;1,0"))
    )
    assert abs(balanced[0, 0] - balanced[1, 1]) < 0.5
    # In each column the answer's worth over the other's: 'down' has gained.
    assert costly[0, 0] - costly[1, 0] > costly[1, 1] - costly[0, 1] + 1.0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data", "whine"], "--data: no set 'whine'"),
        (["--methods", "bilevl"], "did you mean 'bilevel'"),
        (["--n-train", "149", "--data", "iris"], "--n-train: 149 of 150 rows"),
        (["--objective", "f1"], "--objective must be"),
        (["--csv", "none.csv"], "does not exist"),
        (["--learning-rate", "0"], "--learning-rate must be positive"),
        (["--learning-rate", "0.1", "0.1"], "--learning-rate: give at least one"),
        (["--data", "iris", "iris"], "two tables have the same name"),
        (["--members", "0"], "--members must be at least 1"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refused(capsys, tmp_path / "out", *options)


def test_a_class_of_one_row_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t.csv"
    pd.DataFrame({"a": np.arange(30.0), "kind": [0] * 29 + [1]}).to_csv(path, index=False)
    message = refused(capsys, tmp_path / "out", "--csv", str(path), "--target", "kind")
    assert "a class has one row only" in message
