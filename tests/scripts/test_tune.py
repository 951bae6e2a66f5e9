"""tune: the same budget for all, the same result however it is run, and what its file is good for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))
sys.path.append(str(Path(__file__).resolve().parent))  # where my_task.py is

import compare  # noqa: E402
import tune  # noqa: E402
from work.tuned_settings import read_settings  # noqa: E402
from work.tuning_studies import SPACE, MethodStudy, best  # noqa: E402

from mbrl_bilevel.base.errors import DivergedError, InvalidInputError  # noqa: E402
from mbrl_bilevel.models.dynamics import fit_dynamics  # noqa: E402
from mbrl_bilevel.pages.page import write_page  # noqa: E402
from mbrl_bilevel.studies.launching import launch  # noqa: E402
from mbrl_bilevel.training.methods import get_method  # noqa: E402

#: No bar, no table and no page.
QUIET = ["--quiet", "--no-report"]

TINY = [
    *["--import-module", "my_task", "--env-id", "Line-v0", *QUIET, "--members", "2"],
    *["--hidden", "8", "--n-train", "200", "--n-test", "200", "--train-steps", "30"],
]
TUNE = [*TINY, "--methods", "nll", "mse", "--trials", "6"]


def tuned(out: Path, *options: str) -> dict[str, Any]:
    launch(tune.Args, tune.main, [*TUNE, "--out", str(out), *options])
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text())
    return found


def test_every_method_gets_the_same_trials_and_the_best_is_the_lowest(tmp_path: Path) -> None:
    found = tuned(tmp_path / "a")
    assert len(found["trials"]) == 12
    assert write_page([tmp_path / "a"], tmp_path / "page.html").plots >= 1
    by_method = {
        method: [row for row in found["trials"] if row["method"] == method]
        for method in ("nll", "mse")
    }
    for rate in ("learning_rate", "weight_decay"):
        low, high = SPACE[rate]
        assert all(low <= row[rate] <= high for row in found["trials"])
        shared = [[row[rate] for row in rows][:3] for rows in by_method.values()]
        assert shared[0] == shared[1]
        assert len(set(shared[0])) == 3
    for method, rows in by_method.items():
        best = min(rows, key=lambda row: row["value"])
        assert found["best"][method]["value"] == best["value"]
        assert found["best"][method]["settings"]["learning_rate"] == best["learning_rate"]
    assert (tmp_path / "a" / "figures" / "trials.png").stat().st_size > 5_000

    # Stopped in the second round: the proposals that follow are those of the whole run.
    rows = (tmp_path / "a" / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "rows.jsonl").write_text("".join(rows[:9]))
    for name in ("metrics.json", "summary.json"):
        (tmp_path / "a" / name).unlink()
    assert tuned(tmp_path / "a", "--resume") == found

    # compare trains with what was found.
    options = [*TINY[:-1], "40", "--methods", "nll", "--seeds", "1", "--out", str(tmp_path / "c")]
    file = tmp_path / "a" / "metrics.json"
    launch(compare.Args, compare.main, [*options, "--settings", str(file)])
    args = compare.Args(settings=file, methods=("nll",))
    rate = found["best"]["nll"]["settings"]["learning_rate"]
    assert args.schedule("nll").learning_rate == rate
    assert args.schedule("bilevel").learning_rate == 1e-3  # not tuned: its own


def test_a_method_that_diverges_has_no_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = fit_dynamics

    def fails(data: Any, method: Any, **rest: Any) -> Any:
        if method is get_method("nll"):
            raise DivergedError("it ran away")
        return fit(data, method, **rest)

    monkeypatch.setattr("work.tune.fit_dynamics", fails)
    found = tuned(tmp_path / "a", "--trials", "2")
    assert list(found["best"]) == ["mse"]
    assert [row["value"] for row in found["trials"] if row["method"] == "nll"] == [None, None]


def bowl(key: dict[str, Any]) -> float:
    """In place of a fit: lowest at a learning rate of 10^-2.9 and a weight decay of 10^-3.3."""
    rate, decay = np.log10(key["learning_rate"]), np.log10(key["weight_decay"])
    return float((rate + 2.9) ** 2 + (decay + 3.3) ** 2)


def answered(keys: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [key | {"value": bowl(key)} for key in keys]


@pytest.mark.parametrize("storage", ["trials.journal", "sqlite:///trials.db"])
def test_two_runs_share_the_trials_of_a_storage(
    storage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    args = tune.Args(trials=10, storage=storage)
    first, second = (MethodStudy(args, "nll", tmp_path / name) for name in ("a", "b"))
    mine, theirs = first.ask(4), second.ask(4)
    assert [key["trial"] for key in mine + theirs] == list(range(8))
    alone = MethodStudy(tune.Args(trials=10), "nll", tmp_path)
    assert (mine + theirs)[:5] == alone.ask(5)  # the Halton half, whoever proposes it
    first.tell(answered(mine))
    # The other was killed before it could tell: it is what it goes on with.
    second = MethodStudy(args, "nll", tmp_path / "b")
    assert second.own() == theirs
    second.tell(answered(theirs))
    last = first.ask(4)
    assert [key["trial"] for key in last] == [8, 9]
    assert second.ask(4) == []
    first.tell(answered(last))
    assert first.rows() == second.rows() == answered(mine + theirs + last)
    found = best(first.rows())
    assert found is not None
    assert found["value"] == min(bowl(key) for key in mine + theirs + last)
    with pytest.raises(InvalidInputError, match="n_train 1000, now it is 500"):
        MethodStudy(tune.Args(trials=10, storage=storage, n_train=500), "nll", tmp_path / "c")


def test_a_run_that_comes_when_all_trials_are_made_has_their_best(tmp_path: Path) -> None:
    place = ["--storage", str(tmp_path / "trials.journal"), "--trials", "2", "--seeds", "2"]
    found = tuned(tmp_path / "a", *place)
    assert [row["trial"] for row in found["trials"]] == [0, 1, 0, 1]
    assert tuned(tmp_path / "b", *place) == found
    assert (tmp_path / "b" / "rows.jsonl").exists() is False


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "metrics.json of tune"),
        ("[]", "metrics.json of tune"),
        ('{"best": {"nll": {}}}', "metrics.json of tune"),
        ('{"best": {"nul": {"settings": {}}}}', "nul"),
        ('{"best": {"nll": {"settings": {"rate": 1}}}}', "unknown setting rate"),
        ('{"best": {"nll": {"settings": {"learning_rate": -1}}}}', "learning_rate"),
        ('{"best": {"nll": {"settings": {"learning_rate": "x"}}}}', "learning_rate|nll"),
    ],
)
def test_a_file_that_is_not_tunes_is_told(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(InvalidInputError, match=told):
        read_settings(tmp_path / "m.json")


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="--settings"):
        read_settings(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--trials", "0"], "--trials"),
        (["--methods", "nl"], "nll"),
        (["--env-id", "Nowhere-v0"], "Nowhere"),
        (["--n-train", "3"], "--n-train"),
        (["--storage", "/nowhere/at/all.journal"], "--storage"),
        (["--cell-gpus", "1"], "--launcher ray"),
        (["--launcher", "ray", "--ray-address", "a:1", "--jobs", "2"], "--jobs"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        launch(tune.Args, tune.main, [*options, *QUIET, "--out", str(tmp_path / "r")])
    err = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert "\n" not in err
    assert told in err
