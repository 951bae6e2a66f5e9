"""study: cells in order, stopped, failing and resumed; its rows summed up against numbers made by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import study
import study_table

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.studies.grid import read_grid
from mbrl_bilevel.studies.launching import launch_tool

ROOT = Path(__file__).resolve().parents[2]
HERE = str(Path(__file__).resolve().parent)  # where my_task.py is

#: In train's place, with the files that train leaves: an evaluation is its seed.
TOY = """
import json, pathlib, sys, time

options = dict(each[2:].split("=") for each in sys.argv[1:] if "=" in each)
folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
folder.mkdir(parents=True, exist_ok=True)
(folder / "config.json").write_text(json.dumps({"args": {}}))
rows = folder / "rows.jsonl"
done = rows.read_text().count("\\n") if rows.exists() else 0
every = int(options["eval-every"])
for step in range(every * (done + 1), int(options["steps"]) + 1, every):
    with rows.open("a") as file:
        file.write(json.dumps({"step": step, "mean": float(options["seed"])}) + "\\n")
    if "--fail" in sys.argv:
        sys.exit("some warning\\nerror: it ran away")
    if "--hang" in sys.argv:
        time.sleep(60)
(folder / "metrics.json").write_text(json.dumps({"resumed_after": done}))
"""

GRID = """
seeds = [0, 1]
compare = [["a", "b"]]

[columns]
a = "{a}"
b = ""

[[tasks]]
env_id = "First-v0"
columns = ["a", "b"]
steps = 10
steps_of = {{b = 20}}
eval_every = 5
eval_episodes = 1
targets = {{5 = 1, 10 = 3, 20 = 9}}
lines = {{"random actions" = -1}}
published = [{{name = "other", step = 15, value = 2}}]

[[tasks]]
env_id = "Second-v0"
columns = ["b", "a"]
seeds = [0]
steps = 5
eval_every = 5
eval_episodes = 1
targets = {{5 = 10}}
lines = {{"random actions" = 0}}
"""


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "toy.py"
    path.write_text(TOY)
    monkeypatch.setattr(study, "TRAIN", path)
    return path


def declared(tmp_path: Path, a: str = "") -> Path:
    path = tmp_path / "grid.toml"
    path.write_text(GRID.format(a=a))
    return path


def options(tmp_path: Path, *more: str) -> list[str]:
    return [str(tmp_path / "grid.toml"), "--out", str(tmp_path / "runs"), *more]


def code_of(argv: list[str]) -> Any:
    with pytest.raises(SystemExit) as stop:
        launch_tool(study.Args, study.main, argv)
    return stop.value.code


def test_the_cells_come_seed_by_seed_and_task_by_task(tmp_path: Path) -> None:
    cells = list(read_grid(declared(tmp_path)).cells())
    assert [cell.name for cell in cells] == [
        *(f"First-v0/{column}-{seed}" for seed in (0, 1) for column in "ab"),
        *("Second-v0/b-0", "Second-v0/a-0"),
    ]
    assert [cell.steps for cell in cells] == [10, 20, 10, 20, 5, 5]


def test_a_stopped_study_goes_on_where_it_was(
    tmp_path: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGTERM while a cell hangs between two evaluations; what it had is kept, then it goes on."""
    declared(tmp_path, "--hang")
    argv = options(tmp_path, "--only", "First-v0")
    code = f"import study; study.TRAIN = {str(toy)!r}; study.launch_tool(study.Args, study.main)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *argv],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'scripts'}:{ROOT}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    rows = tmp_path / "runs" / "First-v0" / "a-0" / "rows.jsonl"
    while not rows.exists():
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=60)[1].splitlines()[-1]
    assert process.returncode == 130
    assert told.startswith("stopped: ")
    assert told.endswith("of 4 cells are left; the same command goes on")
    stored = tmp_path / "rows" / "First-v0"
    assert len((stored / "a-0.jsonl").read_text().splitlines()) == 1
    assert json.loads((stored / "a-0.json").read_text())["finished"] is False

    launch_tool(study.Args, study.main, [*argv, "--list"])
    assert "half-done, 5 of 10       First-v0/a-0" in capsys.readouterr().out
    toy.write_text(TOY.replace("time.sleep(60)", "pass"))
    launch_tool(study.Args, study.main, [*argv, "--quiet"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["cells"], summary["finished"]) == (4, 4)
    metrics = json.loads((rows.parent / "metrics.json").read_text())
    assert metrics == {"resumed_after": 1}
    assert len((stored / "a-0.jsonl").read_text().splitlines()) == 2
    launch_tool(study.Args, study.main, argv)  # nothing is left
    assert "started" not in capsys.readouterr().err


def test_a_failing_cell_is_told_and_the_others_go_on(
    tmp_path: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    declared(tmp_path, "--fail")
    argv = options(tmp_path, "--only", "Second-v0", "--quiet")
    assert code_of(argv) == 2
    first, last = capsys.readouterr().err.splitlines()
    assert first == "failed: Second-v0/a-0: exit code 1: error: it ran away"
    assert last == "error: 1 of 2 cells failed; the same command tries them again"
    about = {p.name: json.loads(p.read_text()) for p in (tmp_path / "rows").rglob("*.json")}
    assert {name: each["finished"] for name, each in about.items()} == {
        "a-0.json": False,
        "b-0.json": True,
    }
    declared(tmp_path, "")  # what was run with other options is not taken for this study's
    assert code_of(argv) == 2
    assert "was run with other options" in capsys.readouterr().err


def write(tmp_path: Path, cell: Any, means: list[float], **more: Any) -> None:
    """What study keeps of a finished cell."""
    path = tmp_path / "rows" / f"{cell.name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"step": 5 * (i + 1), "mean": mean, "cpu_seconds": 2.0, **more}
        for i, mean in enumerate(means)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"updates_per_step": 4, "learning_starts": 5}
    about = {
        "finished": True,
        "options": list(cell.options),
        "resolved": {"learner_class": "SAC", "settings": settings},
        "metrics": {"peak_memory_mb": 100.0 + cell.seed},
    }
    path.with_suffix(".json").write_text(json.dumps(about))


def tabled(tmp_path: Path) -> tuple[Any, str]:
    launch_tool(study_table.Args, study_table.main, [str(tmp_path / "grid.toml")])
    for name in ("returns.png", "cpu.png"):
        assert (tmp_path / name).stat().st_size > 5_000
    return json.loads((tmp_path / "table.json").read_text()), (tmp_path / "table.md").read_text()


def test_the_table_against_numbers_made_by_hand(tmp_path: Path) -> None:
    cells = {cell.name: cell for cell in read_grid(declared(tmp_path)).cells()}
    write(tmp_path, cells["First-v0/a-0"], [0.0, 3.0], policy_mean=1.0)
    write(tmp_path, cells["First-v0/a-1"], [0.0, 7.0], policy_mean=1.0)
    write(tmp_path, cells["First-v0/b-0"], [0.0, 1.0, 2.0, 9.0])
    write(tmp_path, cells["First-v0/b-1"], [0.0, 1.0, 2.0, 9.0])
    write(tmp_path, cells["Second-v0/a-0"], [10.0])
    write(tmp_path, cells["Second-v0/b-0"], [5.0])
    found, text = tabled(tmp_path)
    assert found["missing"] == []
    a = found["tasks"]["First-v0"]["a"]
    assert [(p["step"], p["mean"], p["lowest"], p["highest"], p["n"]) for p in a["points"]] == [
        (5, 0.0, 0.0, 0.0, 2),
        (10, 5.0, 3.0, 7.0, 2),
    ]
    assert [p["cpu_seconds"]["mean"] for p in a["points"]] == [2.0, 4.0]
    # 10 steps and 5 times 4 updates in 4 seconds.
    assert (a["steps_per_cpu_second"], a["updates_per_cpu_second"]) == (2.5, 5.0)
    assert a["peak_memory_mb"] == 101.0
    assert "| a | 0.00 (0.00 to 0.00; 2 seeds) | 5.00 (3.00 to 7.00; 2 seeds) | – |" in text
    assert "| a, policy alone | 1.00 (1.00 to 1.00; 2 seeds) |" in text

    # First-v0 after 10 steps, (x + 1) / 4: a 1 and 2, b 0.5 twice; Second-v0, x / 10: a 1, b 0.5.
    plan, policy = found["comparisons"]
    assert [t["step"] for t in plan["tasks"]] == [10, 5]
    assert plan["first"]["estimate"] == pytest.approx((1.5 + 1.0) / 2)
    assert plan["second"] == {"estimate": 0.5, "low": 0.5, "high": 0.5}
    # Differences 0.5 and 1.5, and 0.5: of two seeds drawn anew, both are the lower, or the higher, in a
    # quarter of the draws each.
    assert plan["difference"]["estimate"] == pytest.approx(0.75)
    assert plan["difference"]["low"] == pytest.approx(0.5)
    assert plan["difference"]["high"] == pytest.approx(1.0)
    # By policy a has 0.5 on First-v0 as b has; on Second-v0 it says no other return than 10.
    assert policy["difference"]["estimate"] == pytest.approx((0.0 + 0.5) / 2)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    cells = {cell.name: cell for cell in read_grid(declared(tmp_path)).cells()}
    write(tmp_path, cells["First-v0/a-0"], [0.0, 3.0])
    write(tmp_path, cells["First-v0/b-1"], [0.0])
    found, text = tabled(tmp_path)
    (plan,) = found["comparisons"]
    assert plan["difference"] is None
    assert plan["missing"] == ["First-v0 seed 0", "First-v0 seed 1", "Second-v0 seed 0"]
    assert "3.00 (3.00 to 3.00; 1 of 2 seeds)" in text
    assert "| b | 0.00 (0.00 to 0.00; 1 of 2 seeds) | missing | missing |" in text
    # b-1 says it is finished, but has no row at its last step.
    assert "5 cells are not finished: First-v0/b-0, First-v0/a-1, First-v0/b-1, Second" in text
    assert found["tasks"]["First-v0"]["b"]["points"][1]["missing_seeds"] == [0, 1]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("seeds = [0, 1]", "seeds = [0, 0]", "seeds: [0, 0] will not do"),
        ('columns = ["a", "b"]', 'columns = ["c"]', "First-v0: columns: 'c' is unknown"),
        ("10 = 3", "7 = 3", "First-v0: targets: no column is evaluated after 7 steps"),
        ('"random actions" = -1', '"nothing" = -1', "give 'random actions'"),
        ("steps = 10\n", "stepz = 10\n", "First-v0: steps is missing"),
        ('compare = [["a", "b"]]', 'compare = [["a", "x"]]', "is no pair of columns"),
        ('env_id = "Second-v0"', 'env_id = "../x"', "env_id: '../x' will not do"),
        ('b = ""', 'b = "\'"', "No closing quotation"),
        ('b = ""', 'b = "--seed=3"', "options: --seed=3 is not a column's to choose; leave it out"),
        ('b = ""', 'b = "--eval_every 3"', "options: --eval_every is not a column's"),
        ("seeds = [0]\n", 'options = "--out x"\n', "Second-v0: options: --out is not a column's"),
        ('[["a", "b"]]', '[[["a"], 1]]', "compare: [['a'], 1] is no pair of columns"),
        ('columns = ["a", "b"]', "columns = [[1]]", "First-v0: columns: [[1]] will not do"),
        ("10 = 3", "010 = 3", "First-v0: targets: 010 = 3 is no return after a step"),
        ("10 = 3", f"{'9' * 5000} = 3", "is no return after a step"),
        ("seeds = [0, 1]", "shown = [5, 5]", "shown: [5, 5] will not do; give a list of different"),
        ("seeds = [0, 1]", f"x = {'[' * 5000}", "it is nested too deeply"),
    ],
)
def test_a_bad_declaration_is_told_in_one_line(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    path = declared(tmp_path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(InvalidInputError, match=r"grid\.toml: ") as error:
        read_grid(path)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_a_study_without_tasks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text("tasks = []\n[columns]\n")
    with pytest.raises(InvalidInputError, match=r"tasks: \[\] will not do; give \[\[tasks\]\] tab"):
        read_grid(tmp_path / "grid.toml")


@pytest.mark.parametrize(
    ("ending", "changed"),
    [
        ("json", {"metrics": 3}),
        ("json", {"metrics": {"peak_memory_mb": "1"}}),
        ("json", {"resolved": []}),
        ("jsonl", {"mean": float("nan")}),
        ("json", {"resolved": {"learner_class": "SAC", "settings": {"updates_per_step": 1}}}),
        ("jsonl", {"policy_mean": "1"}),
        ("jsonl", {"cpu_seconds": [1]}),
    ],
)
def test_what_was_kept_and_edited_is_told_with_its_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str, changed: dict[str, Any]
) -> None:
    cell = next(read_grid(declared(tmp_path)).cells())
    write(tmp_path, cell, [0.0])
    path = tmp_path / "rows" / f"{cell.name}.{ending}"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}) + "\n")
    with pytest.raises(SystemExit) as stop:
        launch_tool(study_table.Args, study_table.main, [str(tmp_path / "grid.toml")])
    err = capsys.readouterr().err
    assert (stop.value.code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {path}: ")


def test_learning_that_took_no_measurable_time(tmp_path: Path) -> None:
    cell = next(read_grid(declared(tmp_path)).cells())
    write(tmp_path, cell, [0.0, 3.0], cpu_seconds=0.0)
    found, _ = tabled(tmp_path)
    a = found["tasks"]["First-v0"]["a"]
    assert (a["steps_per_cpu_second"], a["updates_per_cpu_second"]) == (None, None)


def test_a_killed_cell_is_told_by_its_signal(
    tmp_path: Path, toy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.write_text("import os\nos.kill(os.getpid(), 9)\n")
    declared(tmp_path)
    assert code_of(options(tmp_path, "--only", "Second-v0", "--quiet")) == 2
    told = capsys.readouterr().err
    assert "failed: Second-v0/b-0: was killed (signal 9): no message\n" in told


def test_a_true_cell_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{HERE}:{ROOT}")
    (tmp_path / "grid.toml").write_text(
        """
[columns]
learner = "--agent sac --preset none --policy-hidden 8 --learning-starts 10"
[[tasks]]
env_id = "Line-v0"
columns = ["learner"]
steps = 30
eval_every = 15
eval_episodes = 1
options = "--import-module my_task"
"""
    )
    launch_tool(study.Args, study.main, options(tmp_path, "--quiet"))
    found, text = tabled(tmp_path)
    (learner,) = found["tasks"]["Line-v0"].values()
    assert [p["step"] for p in learner["points"]] == [15, 30]
    assert learner["peak_memory_mb"] > 50.0
    assert "All cells are finished." in text


def test_the_study_of_the_agents_asks_for_what_train_takes() -> None:
    """Every column, and the learner to compare with is SB3's SAC as SB3 makes it."""
    from options.train import Args
    from stable_baselines3 import SAC
    from work.train_agents import build

    from envs.tasks.make import make_env
    from mbrl_bilevel.studies.arguments import parse

    folder = ROOT / "docs" / "results" / "agents"
    grids = [read_grid(folder / name) for name in ("grid.toml", "grid-ablation.toml")]
    found = [cell for grid in grids for cell in grid.cells() if cell.task == "HalfCheetah-v5"]
    cells = {cell.column: cell for cell in found}
    assert cells.keys() == grids[0].columns.keys() | grids[1].columns.keys()
    env = make_env("HalfCheetah-v5")
    built = {c: build(parse(Args, cell.options, None), env) for c, cell in cells.items()}
    assert {c for c, b in built.items() if not b.settings.uses_model} == {"learner", "sb3-sac"}
    assert {c for c, b in built.items() if b.settings.planner is None} == {
        *("learner", "sb3-sac", "no-plan"),
    }
    assert built["learner"].settings.updates_per_step == built["bilevel"].settings.updates_per_step
    mine, theirs = built["sb3-sac"].make(env).algorithm, SAC("MlpPolicy", env)
    assert repr(mine.policy) == repr(theirs.policy)
    for name in (
        *("learning_rate", "learning_starts", "batch_size", "tau", "gamma", "ent_coef"),
        *("train_freq", "gradient_steps", "target_entropy", "target_update_interval"),
    ):
        assert getattr(mine, name) == getattr(theirs, name)


def test_the_example_is_a_study() -> None:
    grid = read_grid(Path(__file__).parents[2] / "examples" / "agents_on_tasks.toml")
    assert len(list(grid.cells())) == 12
    assert all(task.targets and "random actions" in task.lines for task in grid.tasks)
