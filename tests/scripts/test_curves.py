"""curves: repeats are pooled, unfinished ones as far as they are, other settings are told apart."""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import curves

from mbrl_bilevel.figures import curves as pictures
from mbrl_bilevel.studies.launching import launch

#: No bar, no table and no page.
QUIET = ["--quiet", "--no-report"]

_save = pictures.save


def trained(folder: Path, means: list[float], every: int = 100, **options: Any) -> Path:
    """What train leaves behind: its options, and an evaluation a line."""
    asked = {"env_id": "Line-v0", "agent": "mpc", "model": "nll", "seed": 0, "seeds": 1, **options}
    write(
        folder, "train", asked, [{"step": every * (i + 1), "mean": m} for i, m in enumerate(means)]
    )
    return folder


def planned(
    folder: Path, returns: dict[str, list[float]], env_id: str = "Line-v0", **options: Any
) -> Path:
    """What plan leaves behind: an episode a line."""
    rows = [
        {"env_id": env_id, "planner": planner, "seed": seed, "return": value}
        for planner, values in returns.items()
        for seed, value in enumerate(values, start=options.get("seed", 0))
    ]
    write(folder, "plan", {"model": "oracle", **options}, rows)
    return folder


def write(folder: Path, script: str, options: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"script": script, "args": options}))
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def metrics(tmp_path: Path, *runs: object) -> Any:
    out = tmp_path / "out"
    options = ["--runs", *map(str, runs), "--out", str(out), *QUIET]
    launch(curves.Args, curves.main, options)
    assert (out / "figures" / "returns.png").stat().st_size > 1000
    return json.loads((out / "metrics.json").read_text())


def test_repeats_are_pooled_and_rivals_are_timed(tmp_path: Path) -> None:
    a = trained(tmp_path / "a", [1.0, 4.0, 9.0])
    # The second repeat has not come to its end.
    b = trained(tmp_path / "b", [3.0, 6.0], seed=1)
    sac = trained(tmp_path / "sac", [0.0, 2.0, 4.5], every=1000, agent="sac")
    found = metrics(tmp_path, a, b, sac)
    nll = {p["step"]: p for p in found["points"] if p["label"] == "mpc, nll"}
    assert {step: (p["mean"], p["n"]) for step, p in nll.items()} == {
        100: (2.0, 2),
        200: (5.0, 2),
        300: (9.0, 1),
    }
    assert (nll[100]["low"], nll[100]["high"]) == (1.0, 3.0)
    mine, theirs = found["reached"]
    assert (mine["rival"], mine["rival_steps"], mine["rival_return"]) == ("sac", 3000, 4.5)
    assert mine["steps"] == 200
    # Where one repeat alone has come does not count: the rival's last return is 5, never reached.
    assert (theirs["rival_steps"], theirs["rival_return"], theirs["steps"]) == (200, 5.0, None)


def test_runs_of_every_agent_are_taken_with_the_presets_model_too(tmp_path: Path) -> None:
    """What train's defaults leave behind: no model is named, since the preset has one."""
    agents = ("planning", "mpc", "mbpo", "sac")
    runs = [trained(tmp_path / name, [1.0, 2.0], agent=name, model=None) for name in agents]
    found = metrics(tmp_path, *runs)
    labels = {point["label"] for point in found["points"]}
    assert labels == {"planning, bilevel", "mpc, bilevel", "mbpo, bilevel", "sac"}


def test_seeds_in_one_folder_and_the_lines_of_plan(tmp_path: Path) -> None:
    folder = tmp_path / "several"
    write(
        folder, "train", {"env_id": "L", "agent": "mbpo", "model": "mse", "seed": 4, "seeds": 2}, []
    )
    trained(folder / "seed-4", [1.0], env_id="L", agent="mbpo", model="mse", seed=4)
    trained(folder / "seed-5", [2.0], env_id="L", agent="mbpo", model="mse", seed=5)
    plan = planned(tmp_path / "plan", {"nothing": [0.0], "icem": [8.0, 6.0]}, env_id="L")
    found = metrics(tmp_path, folder, plan)
    assert [(p["label"], p["mean"], p["n"]) for p in found["points"]] == [("mbpo, mse", 1.5, 2)]
    lines = {line["label"]: line["mean"] for line in found["references"]}
    assert lines == {"doing nothing": 0.0, "icem, true simulator": 7.0}


def test_other_settings_are_no_repeats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [trained(tmp_path / str(tau), [tau], tau=tau) for tau in (0.1, 0.2)]
    told = refused(capsys, tmp_path, *runs)
    assert "two runs of 'mpc, nll' on Line-v0 differ in --tau (0.1 and 0.2)" in told
    assert told.endswith("tell them apart: LABEL=FOLDER")
    labelled = [f"{name}={run}" for name, run in zip(("low", "high"), runs, strict=True)]
    found = metrics(tmp_path, *labelled)
    assert [(p["label"], p["mean"]) for p in found["points"]] == [("low", 0.1), ("high", 0.2)]


def test_what_holds_no_evaluation_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no run of train or plan" in refused(capsys, tmp_path, tmp_path / "empty")
    assert "nowhere' names no folder" in refused(capsys, tmp_path, tmp_path / "nowhere")
    begun = trained(tmp_path / "begun", [])
    assert "no evaluation" in refused(capsys, tmp_path, begun)
    assert "named twice" in refused(capsys, tmp_path, begun, f"again={begun}")


def test_a_label_stands_for_what_was_planned_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs that planned with unlike options; doing nothing is the same episode in both."""
    run = trained(tmp_path / "run", [1.0])
    a = planned(tmp_path / "a", {"nothing": [0.5], "icem": [8.0], "cem": [5.0]}, horizon=15)
    b = planned(tmp_path / "b", {"nothing": [0.5], "icem": [4.0, 6.0]}, horizon=30)
    told = refused(capsys, tmp_path, run, a, b)
    assert "two runs of 'true simulator' on Line-v0 differ in --horizon (15 and 30)" in told
    found = metrics(tmp_path, run, f"near={a}", f"far={b}")
    assert {(r["label"], r["mean"], r["n"]) for r in found["references"]} == {
        ("doing nothing", 0.5, 1),
        ("icem, near", 8.0, 1),
        ("cem, near", 5.0, 1),
        ("icem, far", 5.0, 2),
    }


def test_runs_of_plan_that_differ_in_their_seeds_are_repeats(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", [1.0])
    a = planned(tmp_path / "a", {"icem": [8.0]}, seed=0, jobs=1)
    b = planned(tmp_path / "b", {"icem": [2.0]}, seed=1, jobs=2)
    (line,) = metrics(tmp_path, run, a, b)["references"]
    assert (line["label"], line["mean"], line["n"]) == ("icem, true simulator", 5.0, 2)


def test_a_seed_counts_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = [trained(tmp_path / name, [1.0], agent="sac") for name in "ab"]
    twice = "--runs: seed 0 of 'sac' on Line-v0 is in two folders; leave one out"
    assert twice in refused(capsys, tmp_path, *both)
    parent = trained(tmp_path / "parent", [], agent="sac", seeds=2)
    for seed in (0, 1):
        trained(parent / f"seed-{seed}", [1.0], agent="sac", seed=seed)
    assert twice in refused(capsys, tmp_path, parent, parent / "seed-0")
    plans = [planned(tmp_path / name, {"icem": [8.0]}) for name in "cd"]
    told = "seed 0 of 'icem, true simulator' on Line-v0 is in two folders"
    assert told in refused(capsys, tmp_path, *plans)
    # Of one start and one length, doing nothing has one return.
    idle = [planned(tmp_path / f"idle-{i}", {"nothing": [i]}) for i in (0.0, 1.0)]
    assert "seed 0 of 'doing nothing'" in refused(capsys, tmp_path, *idle)
    cut = planned(tmp_path / "cut", {"nothing": [0.0]}, max_episode_steps=9, seed=1)
    assert "differ in --max-episode-steps" in refused(capsys, tmp_path, idle[0], cut)


GOOD = b'{"step": 1, "mean": 0.5}\n'


@pytest.mark.parametrize(
    "line",
    [
        *(b"\n", b'{"step": 1, "me\n', b"\xff\xfe\x00\n", b"[1]\n", b"7\n", b"[" * 99_999 + b"\n"),
        *(b'{"mean": 1}\n', b'{"step": 1}\n', b'{"step": "1", "mean": 1}\n'),
        *(b'{"step": true, "mean": 1}\n', b'{"step": 1.5, "mean": 1}\n'),
        *(b'{"step": 0, "mean": 1}\n', b'{"step": 1' + b"0" * 30 + b', "mean": 1}\n'),
        *(b'{"step": 1, "mean": NaN}\n', b'{"step": 1, "mean": -Infinity}\n'),
        *(b'{"step": 1, "mean": 1e308}\n', b'{"step": 1, "mean": "1"}\n'),
    ],
)
def test_an_odd_row_of_train_is_told_by_its_place(
    line: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", [])
    (run / "rows.jsonl").write_bytes(GOOD + line + GOOD)
    told = refused(capsys, tmp_path, run)
    assert told.startswith(f"error: --runs: {run / 'rows.jsonl'}: line 2 ")
    assert "\n" not in told


@pytest.mark.parametrize(
    "odd",
    [
        *({"env_id": 3}, {"planner": None}, {"planner": ["icem"]}, {"seed": -1}, {"seed": "0"}),
        *({"return": None}, {"return": 1e308}),
    ],
)
def test_an_odd_row_of_plan_is_told_by_its_place(
    odd: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"env_id": "Line-v0", "planner": "icem", "seed": 0, "return": 1.0}
    write(tmp_path / "plan", "plan", {"model": "oracle"}, [row, {**row, "seed": 1, **odd}])
    told = refused(capsys, tmp_path, tmp_path / "plan")
    assert told.startswith(f"error: --runs: {tmp_path / 'plan' / 'rows.jsonl'}: line 2 ")
    assert repr(next(iter(odd))) in told


def test_what_is_being_written_and_what_failed_is_passed_over(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", [])
    lines = GOOD + b'{"step": 2, "mean": null}\n{"seed": 0, "failed": "x"}\n{"step": 3, "mean'
    (run / "rows.jsonl").write_bytes(lines)
    assert [p["step"] for p in metrics(tmp_path, run)["points"]] == [1]
    assert (run / "rows.jsonl").read_bytes() == lines


@pytest.mark.parametrize(
    "odd",
    [
        *({"seeds": "2"}, {"seeds": 0}, {"seeds": 10**15}, {"seed": None}, {"seed": 0.5}),
        *({"agent": "ppo"}, {"agent": []}, {"model": 1}, {"env_id": {}}),
    ],
)
def test_a_forged_config_is_no_run(
    odd: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", [1.0], **odd)
    assert "holds no run of train or plan" in refused(capsys, tmp_path, run)


@pytest.mark.parametrize("text", ["[" * 99_999, "[]", '{"script": [], "args": {}}', "\x00"])
def test_a_damaged_config_is_no_run(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(tmp_path / "run", [1.0])
    (run / "config.json").write_text(text)
    assert "holds no run of train or plan" in refused(capsys, tmp_path, run)


def test_names_of_folders_may_hold_equals_signs(tmp_path: Path) -> None:
    a = trained(tmp_path / "dir=with=eq", [1.0])
    b = trained(tmp_path / "tau=1", [2.0], tau=1)
    found = metrics(tmp_path, f"L={a}", b)
    assert [(p["label"], p["mean"]) for p in found["points"]] == [("L", 1.0), ("mpc, nll", 2.0)]


def test_what_is_no_folder_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    for run in ("", "label=", tmp_path / "loop", "x" * 5000, f"a={'x' * 300}"):
        assert "names no folder; give FOLDER or LABEL=FOLDER" in refused(capsys, tmp_path, run)


def test_every_line_is_in_the_legend_as_it_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More references than styles, and names that matplotlib would read its own way."""
    drawn: dict[str, str] = {}

    def look(figure: Any, path: Path) -> Path:
        figure.canvas.draw()
        (axis,) = figure.axes
        (legend,) = figure.legends  # one for all panels
        for line, text in zip(axis.get_lines(), legend.get_texts(), strict=True):
            shown, is_mathematics = text._preprocess_math(text.get_text())
            assert not is_mathematics
            drawn[shown.strip()] = line.get_linestyle()
        return _save(figure, path)

    monkeypatch.setattr(pictures, "save", look)
    names = ["$x^2$", "_hidden", "\u6f22", r"a\$b$"]
    runs = [f"{name}={trained(tmp_path / str(i), [i])}" for i, name in enumerate(names)]
    planners = {f"p{i}": [float(i)] for i in range(6)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics(tmp_path, *runs, planned(tmp_path / "plan", planners))
    assert list(drawn) == [*names, *(f"{planner}, true simulator" for planner in planners)]


def test_the_agents_of_a_demo_are_drawn(tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    for name, agent in (("train-bilevel", "planning"), ("train-alone", "sac")):
        trained(demo / name, [1.0, 2.0], agent=agent)
    (demo / "config.json").write_text(json.dumps({"script": "demo", "args": {}}))
    found = metrics(tmp_path, demo)
    assert {p["label"] for p in found["points"]} == {"planning, nll", "sac"}


def test_a_reference_that_would_flatten_the_curves_is_told_at_the_frame(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def look(figure: Any, path: Path) -> Path:
        seen.append(figure)
        return _save(figure, path)

    monkeypatch.setattr(pictures, "save", look)
    run = trained(tmp_path / "run", [1.0, 2.0])
    metrics(tmp_path, run, planned(tmp_path / "plan", {"icem": [2.0], "random-actions": [-900.0]}))
    (axis,) = seen[0].axes
    assert [text.get_text() for text in axis.texts] == ["random actions: -900 ↓"]
    assert axis.get_ylim()[0] > -10.0


def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path, *runs: object) -> str:
    with pytest.raises(SystemExit) as stop:
        metrics(tmp_path, *runs)
    assert stop.value.code == 2
    assert not (tmp_path / "out").exists()
    return capsys.readouterr().err.strip()
