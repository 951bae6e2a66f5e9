"""continual end to end on two small tasks: rows, resuming, what the summary says of known matrices, bad input."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from envs.tasks.class_sequences import CLASS_SEQUENCES, ClassSequence, ClassTask
from envs.tasks.sequences import SEQUENCES, changing
from mbrl_bilevel.continual.sequence import transfer

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))

import continual  # noqa: E402

from mbrl_bilevel.pages.page import write_page  # noqa: E402
from mbrl_bilevel.studies.continual_summaries import against, removed, summarise, transfers  # noqa: E402
from mbrl_bilevel.studies.launching import launch  # noqa: E402

#: No bar, no table and no page.
QUIET = ["--quiet", "--no-report"]

METHODS = ["bilevel+kl", "nll", "nll+alone"]
TINY = [
    *[*QUIET, "--sequences", "two", "--methods", *METHODS, "--seeds", "2", "--members", "2"],
    *["--n-train", "200", "--n-test", "100", "--hidden", "8", "--horizon", "3"],
    *["--train-steps", "60", "--learning-rate", "1e-2"],
]
#: Times differ from run to run; nothing else may.
TIMES = ("train_seconds", "wall_seconds")


@pytest.fixture(autouse=True)
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SEQUENCES, "two", changing("Hopper", [{"mass": 1.0}, {"mass": 2.0}]))


def ran(out: Path, *options: str, tiny: Sequence[str] = TINY) -> Any:
    """metrics.json without its times."""
    launch(continual.Args, continual.main, [*tiny, "--out", str(out), *options])

    def drop(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: drop(v) for k, v in value.items() if k not in TIMES}
        return [drop(v) for v in value] if isinstance(value, list) else value

    return drop(json.loads((out / "metrics.json").read_text()))


def test_a_run_has_a_row_for_each_method_and_ends_the_same_after_a_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ran(tmp_path / "a", "--plan-episodes", "1", "--plan-steps", "3")
    assert [(r["seed"], r["method"]) for r in found["rows"]] == [
        (seed, method) for seed in (0, 1) for method in METHODS
    ]
    assert write_page([tmp_path / "a"], tmp_path / "page.html").plots >= 2
    for row, matrices in zip(found["rows"], found["matrices"], strict=True):
        assert all(row[name] == matrices[name] for name in ("method", "sequence", "seed"))
        for metric in ("rmse", "nll", "k_rmse", "return"):
            assert np.array(matrices[metric], dtype=float).shape == (2, 2)
            assert np.array(matrices[f"{metric}_before"], dtype=float).shape == (2,)
            says = transfer(
                matrices[metric],
                "higher" if metric == "return" else "lower",
                before=matrices[f"{metric}_before"],
            )
            for short, part in (("bwt", "backward"), ("fwt", "forward")):
                assert row[f"{short}_{metric}"] == getattr(says, part)
            for part in ("forgetting", "forgetting_max", "final", "learning"):
                assert row[f"{part}_{metric}"] == getattr(says, part)
        # A model that has learned a task is nearer to it than one that has learned nothing.
        assert matrices["rmse"][0][0] < matrices["rmse_before"][0]
        assert row["tasks"] == ["0:mass=1", "1:mass=2"]
        # Learned alone was nll only.
        assert (row["plasticity_nll"] is None) is row["method"].startswith("bilevel")
    # What was learned first is the same whatever is kept of it.
    assert found["matrices"][1]["nll"][0] == found["matrices"][2]["nll"][0]
    # A metric has one name, whatever is said of it.
    for line in (*found["summary"], *found["against"]):
        assert {"rmse", "nll", "k_rmse", "return"} <= line.keys()
    for line in found["summary"]:
        mine = [r for r in found["rows"] if r["method"] == line["method"]]
        for metric, short in itertools.product(("rmse", "k_rmse"), ("final", "learning")):
            mean = np.mean([r[f"{short}_{metric}"] for r in mine])
            assert line[metric][short]["mean"] == pytest.approx(mean)
    assert "nrmse" not in json.dumps(found)
    for name in ("matrix-rmse", "matrix-nll", "matrix-k_rmse", "matrix-return", "seen", "pareto"):
        assert (tmp_path / "a" / "figures" / f"{name}.png").stat().st_size > 5_000

    # Its figures are drawn once above; their files take long.
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: None)
    rows = (tmp_path / "a" / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "rows.jsonl").write_text("".join(rows[:4]))
    for name in ("metrics.json", "summary.json"):
        (tmp_path / "a" / name).unlink()
    again = ran(tmp_path / "a", "--plan-episodes", "1", "--plan-steps", "3", "--resume")
    assert again == found


def row(method: str, seed: int, nll: Any, **more: Any) -> dict[str, Any]:
    base = {"method": method, "seed": seed, "sequence": "two", "nll_before": [3.0, 3.0]}
    timed = {"moved": [0.0, 0.1], "kl_strength": [None, None], "train_seconds": [1.0, 2.0]}
    return base | timed | {"nll": nll} | more


def known() -> list[dict[str, Any]]:
    """Fine-tuning forgets 1.0 and 0.6 nats of the first task, the other method a fifth of it."""
    return [
        row("nll", 0, [[0.0, 2.0], [1.0, 0.5]]),
        row("nll", 1, [[0.2, 2.0], [0.8, 0.5]]),
        row("bilevel+kl", 0, [[0.0, 2.0], [0.2, 0.4]]),
        row("bilevel+kl", 1, [[0.2, 2.0], [0.32, 0.4]]),
        row("nll+alone", 0, [[0.0, 2.0], [5.0, 0.3]]),
        row("nll+alone", 1, [[0.2, 2.0], [5.0, 0.3]]),
    ]


def test_the_summary_of_known_matrices() -> None:
    lines = {line["method"]: line for line in summarise(known(), METHODS, ["nll"])}
    nll = lines["nll"]["nll"]
    assert nll["backward"]["mean"] == pytest.approx(-0.8)
    assert nll["forgetting"]["mean"] == pytest.approx(0.8)
    assert nll["final"]["mean"] == pytest.approx((0.75 + 0.65) / 2)
    assert nll["learning"]["mean"] == pytest.approx(0.3)
    assert nll["forward"]["mean"] == pytest.approx(1.0)
    # Against each task learned alone: worse by .2 on the second task, the same on the first.
    assert nll["plasticity"]["mean"] == pytest.approx(-0.1)
    assert lines["bilevel+kl"]["nll"]["plasticity"] is None
    assert lines["nll"]["train_seconds"] == [1.0, 2.0]

    (share,) = (s for s in removed(known(), METHODS) if s["method"] == "bilevel+kl")
    assert share["forgetting"] == pytest.approx(0.8)
    assert share["removed"] == pytest.approx(1.0 - 0.16 / 0.8)
    assert share["low"] == pytest.approx(share["high"]) == pytest.approx(0.8)

    apart = {
        (line["minus"], line["sequence"]): line["nll"]
        for line in against(known(), METHODS[:2], ["nll"])
    }
    assert apart["nll", "two"]["final"]["mean"] == pytest.approx(0.33 - 0.7)
    assert apart["nll", "all"]["final"]["mean"] == pytest.approx(0.33 - 0.7)
    assert apart["nll", "two"]["backward"]["mean"] == pytest.approx(0.64)


def test_nothing_forgotten_means_no_share_and_a_broken_model_stays_nan() -> None:
    little = [
        row("nll", 0, [[0.0, 2.0], [0.01, 0.5]]),
        row("bilevel+kl", 0, [[0.0, 2.0], [0.0, 0.4]]),
    ]
    assert list(removed(little, METHODS)) == []
    broken = [row("nll", 0, [[0.0, 2.0], [None, 0.5]])]
    assert math.isnan(transfers(broken, "nll", "two", "nll")[0].final)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sequences", "two", "nowhere"), "--sequences: unknown sequence"),
        (("--sequences", "halfcheetah-sped"), "halfcheetah-speed"),
        (("--sequences", "two", "two"), "--sequences: give none twice"),
        (("--methods", "nll", "nll"), "--methods: give none twice"),
        (("--methods", "nll+ekl"), "kl"),
        (("--methods", "nll+kl:much"), "number"),
        (("--methods", "nll+kl:-1"), "positive"),
        (("--methods", "nll+replay:3"), "no strength"),
        (("--methods", "mse+kl-inferred"), "inferred"),
        (("--methods", "k-step+kl"), "one step"),
        (("--memory", "0"), "--memory"),
        (("--horizon", "21"), "--horizon"),
        (("--sequences",), "--sequences: give at least one"),
        (("--n-train", "10"), "--n-train"),
        (("--context", "--sequences", "halfcheetah-speed"), "--context"),
    ],
)
def test_bad_options_are_one_line(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        launch(continual.Args, continual.main, [*TINY, "--out", str(tmp_path / "x"), *options])
    assert stop.value.code == 2
    told = capsys.readouterr().err.strip()
    assert len(told.splitlines()) == 1
    assert message in told
    assert not (tmp_path / "x").exists()


CLASSES = [
    *[*QUIET, "--sequences", "pairs", "--methods", "bilevel+kl", "nll+replay", "nll"],
    *["--seeds", "1", "--members", "2", "--hidden", "8", "--train-steps", "30", "--memory", "20"],
    *["--learning-rate", "3e-2"],
]


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four classes at four corners, two at a time."""

    def make(random: np.random.Generator) -> list[ClassTask]:
        y = np.repeat(np.arange(4), 40)
        x = np.stack([y % 2, y // 2], 1) + 0.2 * random.standard_normal((160, 2))
        return [ClassTask(str(k), x[y // 2 == k], y[y // 2 == k]) for k in (0, 1)]

    monkeypatch.setitem(CLASS_SEQUENCES, "pairs", ClassSequence("shared", 4, make, ""))


@pytest.mark.usefixtures("pairs")
def test_classification_goes_the_same_way(tmp_path: Path) -> None:
    launch(continual.Args, continual.main, [*CLASSES, "--out", str(tmp_path / "a")])
    found = json.loads((tmp_path / "a" / "metrics.json").read_text())
    assert found["sequences"] == {"pairs": "shared"}
    for row, matrices in zip(found["rows"], found["matrices"], strict=True):
        says = transfer(matrices["accuracy"], "higher", before=matrices["accuracy_before"])
        assert (row["bwt_accuracy"], row["final_accuracy"]) == (says.backward, says.final)
        assert {"forgetting_nll", "fwt_nll", "learning_ece"} <= row.keys()
        assert matrices["nll"][0][0] < matrices["nll_before"][0]
    for name in ("matrix-accuracy", "matrix-nll", "matrix-ece", "seen", "pareto"):
        assert (tmp_path / "a" / "figures" / f"{name}.png").stat().st_size > 5_000


@pytest.mark.usefixtures("pairs")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--sequences", "pairs", "two"), "either dynamics or classification"),
        (("--plan-episodes", "1"), "nothing to plan"),
        (("--context",), "--context"),
        (("--methods", "mse"), "--methods: unknown method"),
        (("--methods", "temperature-scaling+kl-inferred"), "inferred"),
        (("--import-module", "no_such_module"), "cannot import module"),
    ],
)
def test_bad_options_of_classification_are_one_line(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        launch(continual.Args, continual.main, [*CLASSES, "--out", str(tmp_path / "x"), *options])
    assert stop.value.code == 2
    told = capsys.readouterr().err.strip()
    assert len(told.splitlines()) == 1
    assert message in told


def test_a_module_adds_a_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines of the README."""
    (tmp_path / "my_winds.py").write_text(
        "from envs.tasks.sequences import SEQUENCES, changing\n\n"
        'winds = [{"wind": w} for w in (0, 10, -10)]\n'
        'SEQUENCES["hopper-wind"] = changing("Hopper", winds)\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    args = continual.Args(sequences=("hopper-wind",), import_module="my_winds")
    assert len(args.sequence("hopper-wind").tasks) == 3  # type: ignore[union-attr]
    SEQUENCES.pop("hopper-wind")
