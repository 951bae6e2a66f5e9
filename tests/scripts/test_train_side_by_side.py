"""train --side-by-side: the seeds' runs are those of separate ones, but for rounding, after any stop."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
sys.path.append(str(Path(__file__).resolve().parent))  # where my_task.py is

import train
from work import train as work_of_train

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.launching import launch
from tests.scripts.test_compare_side_by_side import close
from tests.scripts.test_studies import OWN, metrics

pytestmark = pytest.mark.usefixtures("unsaved")

AGENT = [
    *[*OWN, "--method", "nll", "--members", "2", "--hidden", "12", "--train-steps", "40"],
    *["--steps", "120", "--eval-every", "60", "--eval-episodes", "1", "--learning-starts", "60"],
    *[
        "--policy-hidden",
        "8",
        "--batch-size",
        "16",
        "--updates-per-step",
        "1",
        "--refit-every",
        "40",
    ],
    *["--look-ahead", "2", "--plan-share", "0", "--horizon", "3", "--population", "8"],
]
THREE = [*AGENT, "--seeds", "3"]


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The metrics of the three seeds, one after another, by the name of their folder."""
    out = tmp_path_factory.mktemp("alone") / "a"
    launch(train.Args, train.main, [*THREE, "--out", str(out)])
    return {name: metrics(out / name) for name in ("", "seed-0", "seed-1", "seed-2")}


def test_each_seeds_run_is_that_of_a_run_by_itself(
    one_by_one: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(train.Args, train.main, [*THREE, "--side-by-side", "2", "--out", str(tmp_path / "a")])
    for name, alone in one_by_one.items():
        close(metrics(tmp_path / "a" / name), alone)
    # In two bundles, of two seeds and of one, none of which gave up.
    assert "side-by-side" not in capsys.readouterr().err


def test_a_run_that_was_stopped_goes_on(
    one_by_one: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one seed had got further: the others catch up with it first."""
    folder, levels = tmp_path / "a", list[list[int]]()
    made = work_of_train.learn

    def stops(stretches: Any) -> Any:
        found = made(stretches)
        levels.append([each.agent.num_timesteps for each in stretches])
        if len(levels) == 2:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(work_of_train, "learn", stops)
    options = [*THREE, "--side-by-side", "3", "--out", str(folder)]
    with pytest.raises(SystemExit, match="130"):
        launch(train.Args, train.main, options)
    for place in (folder / "seed-2" / "checkpoints").iterdir():
        place.unlink()
    (folder / "seed-2" / "rows.jsonl").unlink()
    launch(train.Args, train.main, [*options, "--resume"])
    assert levels == [[60] * 3, [120] * 3, [60], [120] * 3]
    for name, alone in one_by_one.items():
        close(metrics(folder / name), alone)


def test_seeds_that_do_not_go_together_run_one_after_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuses(agents: Any, *_: Any, **__: Any) -> Any:
        raise InvalidInputError("no two alike")

    monkeypatch.setattr("work.train_one.learn_side_by_side", refuses)
    short = [*AGENT, "--steps", "60", "--learning-starts", "50", "--seeds", "2", "--out"]
    launch(train.Args, train.main, [*short, str(tmp_path / "a"), "--side-by-side", "2"])
    told = [line for line in capsys.readouterr().err.splitlines() if "side-by-side" in line]
    assert told == ["--side-by-side: no two alike"]
    assert len(metrics(tmp_path / "a")["rows"]) == 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "give --seeds"),
        (["--seeds", "2", "--learner", "sac"], "only fast-sac learns so"),
        (["--seeds", "2", "--agent", "mpc"], "mpc has no learner to share"),
        pytest.param(
            ["--seeds", "2", "--wandb"],
            "leave out --wandb",
            marks=pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed"),
        ),
    ],
)
def test_what_has_no_side_by_side_is_refused(
    options: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit, match="2"):
        launch(
            train.Args,
            train.main,
            [*OWN, *options, "--side-by-side", "2", "--out", str(tmp_path / "a")],
        )
    err = capsys.readouterr().err
    assert err.startswith("error: --side-by-side: ")
    assert says in err
    assert not (tmp_path / "a").exists()
