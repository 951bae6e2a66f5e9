"""compare and train end to end on a tiny task: rows, resuming, determinism, and bad input."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agents.common.experience import RandomBehaviour, collect
from envs.datasets.offline import load_minari, save_minari
from envs.tasks.make import make_env

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.append(str(SCRIPTS))
sys.path.append(str(Path(__file__).resolve().parent))  # where my_task.py is

import collect as collect_script  # noqa: E402
import compare  # noqa: E402
import train  # noqa: E402
import work.train  # noqa: E402
from work.steps_data import slow_and_fast  # noqa: E402

from mbrl_bilevel.base.errors import DivergedError  # noqa: E402
from mbrl_bilevel.base.records import Transitions  # noqa: E402
from mbrl_bilevel.models.dynamics import fit_dynamics  # noqa: E402
from mbrl_bilevel.pages.page import write_page  # noqa: E402
from mbrl_bilevel.studies.cells import Done  # noqa: E402
from mbrl_bilevel.studies.launching import launch  # noqa: E402
from mbrl_bilevel.training.methods import METHODS  # noqa: E402

#: No bar, no table and no page.
QUIET = ["--quiet", "--no-report"]

OWN = ["--import-module", "my_task", "--env-id", "Line-v0", *QUIET]
NET = ["--members", "2", "--hidden", "16"]
COMPARE = [*OWN, *NET, "--n-train", "200", "--seeds", "2", "--train-steps", "60", "--n-test", "200"]
TRAIN = [
    *["--agent", "mpc", *OWN, *NET, "--particles", "2", "--steps", "160", "--eval-every", "80"],
    *["--eval-episodes", "2", "--learning-starts", "60", "--refit-every", "50"],
    *["--train-steps", "60", "--horizon", "4", "--population", "12", "--iterations", "2"],
]
#: Times and memory differ from run to run; nothing else may.
TIMES = ("train_seconds", "wall_seconds", "cpu_seconds", "peak_memory_mb")


def metrics(out: Path) -> Any:
    def drop(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: drop(v) for k, v in value.items() if k not in TIMES}
        return [drop(v) for v in value] if isinstance(value, list) else value

    return drop(json.loads((out / "metrics.json").read_text()))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """compare, undisturbed; no test may write here."""
    out = tmp_path_factory.mktemp("compared") / "a"
    launch(compare.Args, compare.main, [*COMPARE, "--out", str(out)])
    return out


def test_compare_fills_a_row_for_each(compared: Path) -> None:
    found = metrics(compared)
    keys = {(r["method"], r["seed"], r["n_train"], r["dataset"]) for r in found["rows"]}
    assert keys == {
        (method, seed, 200, "Line-v0") for method in ("bilevel", "nll", "mse") for seed in (0, 1)
    }
    for row in found["rows"]:
        assert {"rmse", "nll", "crps", "calibration_error"} <= row.keys()
        assert row["rmse"] > 0.0
    # A repeat is a new split and a new initialisation.
    by_seed = [r["rmse"] for r in found["rows"] if r["method"] == "mse"]
    assert by_seed[0] != by_seed[1]
    for line in found["summary"]:
        assert line["nll"]["low"] <= line["nll"]["mean"] <= line["nll"]["high"]
    for figure in ("errors", "open_loop", "calibration"):
        assert (compared / "figures" / f"{figure}.png").stat().st_size > 5_000


def test_the_page_shows_what_compare_found(compared: Path, tmp_path: Path) -> None:
    assert write_page([compared], tmp_path / "page.html").plots >= 4


@pytest.mark.usefixtures("unsaved")
def test_compare_plans_with_each_model_from_the_same_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*COMPARE, "--methods", "mse", "nll", "--plan-episodes", "2"]
    launch(compare.Args, compare.main, [*options, "--out", str(tmp_path / "a")])
    found = metrics(tmp_path / "a")
    for row in found["rows"]:
        assert len(row["returns"]) == 2
        assert row["return"] == pytest.approx(np.mean(row["returns"]))
    assert len({tuple(row["returns"]) for row in found["rows"]}) == 4
    for told in found["summary"]:
        mine = [row["return"] for row in found["rows"] if row["method"] == told["method"]]
        assert told["return"]["mean"] == pytest.approx(np.mean(mine))
    returns = {(row["method"], row["seed"]): row["return"] for row in found["rows"]}
    apart = [returns["mse", seed] - returns["nll", seed] for seed in (0, 1)]
    assert found["paired"][0]["return"]["mean"] == pytest.approx(np.mean(apart))
    printed = json.loads(capsys.readouterr().out)["summary"]
    assert printed["mse@Line-v0@200"]["return"] == round(found["summary"][0]["return"]["mean"], 4)


@pytest.mark.usefixtures("unsaved")
@pytest.mark.parametrize("left", [0, 2])
def test_compare_repeats_itself_from_wherever_it_stopped(
    left: int, compared: Path, tmp_path: Path
) -> None:
    """As a stop would leave it: some rows, the next one torn, and no metrics."""
    out = tmp_path / "a"
    shutil.copytree(compared, out)
    lines = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    (out / "rows.jsonl").write_text("".join(lines[:left]) + lines[left][:40])
    for name in ("metrics.json", "summary.json"):
        (out / name).unlink()
    launch(compare.Args, compare.main, [*COMPARE, "--out", str(out), "--resume"])
    assert metrics(out) == metrics(compared)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """400 rows of y = a − 2b + noise."""
    random = np.random.default_rng(0)
    x = random.normal(size=(400, 2))
    y = x @ [1.0, -2.0] + 0.1 * random.normal(size=400)
    rows = "".join(f"{a:.6f},{b:.6f},{c:.6f}\n" for (a, b), c in zip(x, y, strict=True))
    (tmp_path / "line.csv").write_text("a,b,y\n" + rows)
    return tmp_path / "line.csv"


@pytest.mark.usefixtures("unsaved")
def test_compare_fits_a_table(tmp_path: Path, table: Path) -> None:
    options = [
        *[*QUIET, "--csv", str(table), "--target", "y", "--methods", "beta-nll", "mse-network"],
        *[
            *NET,
            "--n-train",
            "200",
            "--seeds",
            "2",
            "--train-steps",
            "200",
            "--learning-rate",
            ".02",
        ],
    ]
    launch(compare.Args, compare.main, [*options, "--out", str(tmp_path / "a")])
    found = metrics(tmp_path / "a")
    assert [row["dataset"] for row in found["rows"]] == ["line"] * 4
    for row in found["rows"]:
        assert 0.08 < row["rmse"] < 0.2  # the noise is .1, the targets' spread 2.2
        assert row["coverage_90"] == pytest.approx(0.9, abs=0.12)


@pytest.mark.usefixtures("unsaved")
def test_compare_takes_a_minari_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = make_env("Line-v0", import_module="my_task")
    behaviour = RandomBehaviour(env.action_space, np.random.default_rng(0))  # type: ignore[arg-type]
    save_minari(collect(env, behaviour, 800, seed=0), "lab/line-v0", env)
    options = [*NET, "--n-train", "200", "--seeds", "1", "--train-steps", "60", "--n-test", "200"]
    source = [
        *QUIET,
        "--minari",
        "lab/line-v0",
        "--methods",
        "nll",
        "--out",
        str(tmp_path / "a"),
    ]
    planned = ["--plan-episodes", "1", "--plan-env", "Line-v0", "--import-module", "my_task"]
    launch(compare.Args, compare.main, [*source, *options, *planned, "--plan-steps", "1"])
    (row,) = metrics(tmp_path / "a")["rows"]
    assert row["dataset"] == "lab/line-v0"
    assert row["k_nrmse"][0] > 0.0
    assert row["returns"] == [row["return"]]
    # One step from where the seed starts: it returns -x² after a move of at most 0.1.
    start = abs(env.reset(seed=0)[0][0])
    assert start - 0.1 - 1e-6 <= (-row["return"]) ** 0.5 <= start + 0.1 + 1e-6


@pytest.mark.usefixtures("unsaved")
def test_compare_takes_logged_steps(tmp_path: Path) -> None:
    """An npz of steps is read as steps, with its own name, and no column of it is an input that should not."""
    env = make_env("InvertedPendulum-v5")
    space: Any = env.action_space
    behaviour = RandomBehaviour(space, np.random.default_rng(0))
    steps = collect(env, behaviour, 900, seed=0, max_episode_steps=30)
    columns = {k: v for k, v in vars(steps).items() if k not in ("episode", "t")}
    np.savez(tmp_path / "log.npz", **columns)
    launch(
        compare.Args,
        compare.main,
        [
            *(
                *QUIET,
                "--npz",
                str(tmp_path / "log.npz"),
                "--methods",
                "nll",
                "--n-train",
                "300",
            ),
            *("--seeds", "1", "--n-test", "200", *NET, "--out", str(tmp_path / "a")),
        ],
    )
    (row,) = metrics(tmp_path / "a")["rows"]
    assert (row["dataset"], row["n_train"]) == ("log", 300)
    assert row["nrmse"] < 1.0


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two Minari data sets of the tiny task: random actions, and a policy's own."""
    folder = tmp_path_factory.mktemp("minari")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(folder))
        for name, share in (("mixed", ("0", "0.5")), ("policy", ("1",))):
            launch(
                collect_script.Args,
                collect_script.main,
                [
                    *[*OWN, "--dataset", f"lab/{name}-v0", "--rows", "900", "--sac-steps", "60"],
                    *["--max-episode-steps", "30", "--out", str(folder / name), "--policy-share"],
                    *share,
                ],
            )
    return folder


def test_collected_data_can_be_read_and_is_what_was_asked_for(
    lab: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(lab))
    mixed, policy = (load_minari(f"lab/{name}-v0") for name in ("mixed", "policy"))
    assert len(mixed) == len(policy) == 900
    assert np.bincount(mixed.episode).max() <= 30
    told = json.loads((lab / "policy" / "metrics.json").read_text())
    returns = np.bincount(policy.episode, policy.reward)[:-1]
    assert told["mean_return"] == pytest.approx(returns.mean(), rel=1e-5)
    assert told["episodes"] == len(returns) + 1
    with pytest.raises(SystemExit) as stop:
        launch(
            collect_script.Args,
            collect_script.main,
            [*OWN, "--dataset", "lab/mixed-v0", "--out", str(lab / "again")],
        )
    assert stop.value.code == 2
    assert "exists already" in capsys.readouterr().err


def test_compare_takes_several_data_sets_with_noise(
    tmp_path: Path, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(lab))
    options = [*NET, "--n-train", "200", "--seeds", "2", "--train-steps", "60", "--n-test", "200"]
    source = [*QUIET, "--minari", "lab/mixed-v0", "lab/policy-v0", "--noise", "none", "two-mode"]
    out = ["--methods", "mse", "nll", "--horizons", "1", "5", "--out", str(tmp_path / "a")]
    launch(compare.Args, compare.main, [*source, *options, *out])
    found = metrics(tmp_path / "a")
    names = ["lab/mixed-v0", "lab/mixed-v0+two-mode", "lab/policy-v0", "lab/policy-v0+two-mode"]
    assert [(r["seed"], r["dataset"], r["method"]) for r in found["rows"]] == [
        (seed, name, method) for seed in (0, 1) for name in names for method in ("mse", "nll")
    ]
    for row in found["rows"]:
        assert ("noise_nll" in row) == ("two-mode" in row["dataset"])
        if "noise_nll" in row:
            assert row["nll"] > row["noise_nll"]  # nobody beats the truth
            assert row["truth_nrmse"] < row["nrmse"]
        assert len(row["k_nll"]) == 2
    (line,) = found["pooled"]
    assert (line["method"], line["against"], line["strata"]) == ("mse", "nll", 4)
    assert line["nrmse"]["low"] <= line["nrmse"]["estimate"] <= line["nrmse"]["high"]
    figures = {path.name for path in (tmp_path / "a" / "figures").iterdir()}
    assert {"pooled.png", "rollout-lab-mixed-v0.png"} <= figures


@pytest.mark.usefixtures("unsaved")
@pytest.mark.parametrize(
    "options",
    [
        ["--shift", "speed", "--n-test", "50"],
        ["--test-minari", "lab/policy-v0", "--n-test", "200"],
        ["--outer-minari", "lab/policy-v0", "--n-test", "200"],
    ],
)
def test_compare_under_shift(
    options: list[str], tmp_path: Path, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(lab))
    base = [*QUIET, "--minari", "lab/mixed-v0", "--methods", "bilevel-constant", *NET]
    base += ["--n-train", "200", "--seeds", "1", "--train-steps", "60", "--segment", "10"]

    def nrmse(folder: Path, *more: str) -> Any:
        if not (folder / "metrics.json").exists():
            launch(compare.Args, compare.main, [*base, *more, "--out", str(folder)])
        (row,) = metrics(folder)["rows"]
        return row["nrmse"]

    rows = options[-1]
    plain = nrmse(lab / f"plain-{rows}", "--n-test", rows)  # once for each number of rows
    assert plain != nrmse(tmp_path / "shifted", *options)


def test_slow_stretches_train_and_fast_ones_test() -> None:
    random = np.random.default_rng(0)
    speed = np.repeat(random.uniform(0.1, 2.0, 200), 10)
    obs = random.normal(size=(2000, 2)).astype(np.float32)
    change = speed[:, None] * np.sign(random.normal(size=(2000, 2)))
    never, row = np.zeros(2000, dtype=np.bool_), np.arange(2000)
    steps = Transitions(
        *(obs, obs[:, :1], obs[:, 0], (obs + change).astype(np.float32), never, never),
        *(row // 100, row % 100),
    )
    slow, fast = slow_and_fast(steps[:1000], steps[1000:], 10)
    size = [np.abs(part.next_obs - part.obs).mean(1) for part in (slow, fast)]
    assert size[0].max() < size[1].min()
    assert len(slow) == 500


def test_what_no_cell_could_do_is_refused_before_the_first(
    tmp_path: Path, table: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    env = make_env("Line-v0", import_module="my_task")
    behaviour = RandomBehaviour(env.action_space, np.random.default_rng(0))  # type: ignore[arg-type]
    save_minari(collect(env, behaviour, 300, seed=0), "lab/short-v0", env)
    csv, data = (
        ["--csv", str(table), "--target", "y"],
        ["--minari", "lab/short-v0", "--n-test", "50"],
    )
    planned = [*data, "--import-module", "my_task", "--plan-episodes", "1", "--plan-env"]
    for options, told in (
        (
            [*csv, "--n-train", "200", "100000"],
            "--n-train: 100000 rows were asked for, but 320 are",
        ),
        ([*data, "--n-train", "100", "290"], "--n-train: 290 rows were asked for, but 2"),
        (
            [*planned, "Reacher-v5", "--n-train", "100"],
            "--plan-env 'Reacher-v5' has 10 observation",
        ),
        ([*planned, "EndlessLine-v0", "--n-train", "100"], "never end; give --plan-steps"),
    ):
        with pytest.raises(SystemExit) as stop:
            launch(compare.Args, compare.main, [*QUIET, *options, "--out", str(tmp_path / "a")])
        assert stop.value.code == 2
        assert told in capsys.readouterr().err
        assert not (tmp_path / "a").exists()


#: Episodes too short to end: a learned ending would take the processes of --jobs, which conftest does not reach, long.
SHORT = [*TRAIN, "--model", "nll", "--steps", "80", "--max-episode-steps", "9"]


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train over two seeds, undisturbed; no test may write here."""
    out = tmp_path_factory.mktemp("two_seeds") / "a"
    launch(train.Args, train.main, [*SHORT, "--seeds", "2", "--out", str(out)])
    return out


@pytest.mark.usefixtures("unsaved")
def test_train_repeats_itself_over_seeds_whatever_the_jobs(two_seeds: Path, tmp_path: Path) -> None:
    options = [*SHORT, "--seeds", "2", "--jobs", "2", "--out", str(tmp_path / "a")]
    launch(train.Args, train.main, options)
    found = metrics(two_seeds)
    assert metrics(tmp_path / "a") == found
    assert [row["seed"] for row in found["rows"]] == [0, 1]
    assert found["final_return"] == np.mean([row["final_return"] for row in found["rows"]])
    assert (two_seeds / "seed-1" / "checkpoints" / "best.safetensors").exists()
    assert write_page([two_seeds], tmp_path / "page.html").plots == 1


@pytest.mark.usefixtures("unsaved")
def test_several_seeds_go_on_to_more_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each from its own folder, though it has a row of a finished run."""
    told: list[tuple[int, int, bool]] = []

    def seed_trained(args: Any, key: Any) -> Done:
        told.append((key["seed"], args.steps, args.resume))
        means = [float(key["seed"] + step) for step in range(80, args.steps + 1, 80)]
        steps = list(range(80, args.steps + 1, 80))
        return Done(
            {"final_return": means[-1], "steps": steps, "means": means, "wall_seconds": 0.0}
        )

    monkeypatch.setattr(work.train, "train_seed", seed_trained)
    for steps in ("80", "240", "240"):
        options = [*SHORT, "--steps", steps, "--seeds", "2", "--out", str(tmp_path / "a")]
        launch(train.Args, train.main, [*options, "--resume"])
    assert told == [(0, 80, True), (1, 80, True), (0, 240, True), (1, 240, True)]
    found = metrics(tmp_path / "a")
    assert [point["step"] for point in found["returns"]] == [80, 160, 240]
    assert (found["final_return"], found["env_steps"]) == (240.5, 480)


@pytest.mark.usefixtures("unsaved")
def test_several_seeds_are_single_runs_side_by_side(two_seeds: Path, tmp_path: Path) -> None:
    found = metrics(two_seeds)
    launch(train.Args, train.main, [*SHORT, "--out", str(tmp_path / "b"), "--seed", "1"])
    alone = metrics(tmp_path / "b")
    assert metrics(two_seeds / "seed-1") == alone
    assert [row["seed"] for row in found["rows"]] == [0, 1]
    assert found["rows"][1]["means"] == [point["mean"] for point in alone["returns"]]
    finals = [row["final_return"] for row in found["rows"]]
    assert found["final_return"] == pytest.approx(sum(finals) / 2)
    assert found["final"]["low"] < found["final_return"] < found["final"]["high"]
    assert [point["step"] for point in found["returns"]] == [80]


BRIEF = [*TRAIN, "--train-steps", "20"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train, undisturbed; no test may write here."""
    out = tmp_path_factory.mktemp("trained") / "a"
    launch(train.Args, train.main, [*BRIEF, "--out", str(out)])
    return out


@pytest.mark.usefixtures("unsaved")
def test_train_passes_over_a_damaged_agent(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, cut = trained, tmp_path / "cut"
    shutil.copytree(whole, cut)
    for name in ("metrics.json", "summary.json"):
        (cut / name).unlink()
    newest = cut / "checkpoints" / "agent-160.safetensors"
    newest.write_bytes(newest.read_bytes()[:1000])
    capsys.readouterr()
    launch(train.Args, train.main, [*BRIEF, "--out", str(cut), "--resume"])
    assert "passed over" in capsys.readouterr().err
    assert metrics(cut) == metrics(whole)
    assert newest.read_bytes() == (whole / "checkpoints" / newest.name).read_bytes()


@pytest.mark.usefixtures("unsaved")
def test_train_learns_saves_and_goes_on_as_if_never_stopped(trained: Path, tmp_path: Path) -> None:
    cut, options = tmp_path / "cut", BRIEF
    found = metrics(trained)
    assert [point["step"] for point in found["returns"]] == [80, 160]
    assert found["final_return"] == found["returns"][-1]["mean"]
    assert found["env_steps"] == 160
    # Finished at 80 steps, then asked for 160.
    launch(train.Args, train.main, [*options, "--steps", "80", "--out", str(cut)])
    assert metrics(cut)["env_steps"] == 80
    launch(train.Args, train.main, [*options, "--out", str(cut), "--resume"])
    assert metrics(cut) == found


@pytest.mark.usefixtures("unsaved")
def test_a_method_whose_cells_all_fail_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fit = fit_dynamics

    def failing(data: Any, method: Any, **settings: Any) -> Any:
        if method is METHODS["mse"]:
            raise DivergedError("training diverged at step 3")
        return fit(data, method, **settings)

    monkeypatch.setattr("work.compare.fit_dynamics", failing)
    options = [*COMPARE, "--methods", "nll", "mse", "--out", str(tmp_path / "a")]
    with pytest.raises(SystemExit) as stop:
        launch(compare.Args, compare.main, options)
    out, err = capsys.readouterr()
    assert stop.value.code == 2
    assert len(err.splitlines()) == 3
    assert json.loads(out.splitlines()[-1])["failed"] == 2
    found = metrics(tmp_path / "a")
    assert [line["method"] for line in found["summary"]] == ["nll"]
    assert found["paired"] == []
    monkeypatch.setattr("work.compare.fit_dynamics", fit)
    launch(compare.Args, compare.main, [*options, "--resume"])
    found = metrics(tmp_path / "a")
    assert [row["method"] for row in found["rows"]] == ["nll", "mse"] * 2
    assert len(found["paired"]) == 1


@pytest.mark.usefixtures("unsaved")
def test_train_takes_a_rule_of_the_users_own(tmp_path: Path) -> None:
    rule = ["--termination", "my_task:off", "--model", "nll", "--planner", "cem"]
    launch(train.Args, train.main, [*TRAIN, *rule, "--steps", "80", "--out", str(tmp_path / "a")])
    assert metrics(tmp_path / "a")["env_steps"] == 80


@pytest.mark.usefixtures("unsaved")
def test_train_takes_discrete_actions(tmp_path: Path) -> None:
    own = ["--env-id", "ChoiceLine-v0", "--model", "mse", "--steps", "80"]
    launch(train.Args, train.main, [*TRAIN, *own, "--out", str(tmp_path / "a")])
    assert metrics(tmp_path / "a")["env_steps"] == 80


@pytest.mark.parametrize(
    ("script", "options", "told"),
    [
        (train, ["--env-id", "HalfCheeta-v5"], "HalfCheetah-v5"),
        (compare, ["--env-id", "Reecher-v5"], "Reacher-v5"),
        (train, ["--import-module", "my_task", "--env-id", "BitsLine-v0"], "MultiBinary"),
        (train, ["--import-module", "no_such_module"], "no_such_module"),
        (train, [*OWN[:2], "--env-id", "EndlessLine-v0"], "never end; give --max-episode-steps"),
        (train, [*OWN[:2], "--env-id", "ChoiceLine-v0", "--save-minari", "a/b-v0"], "got Discrete"),
        (train, [*OWN[:2], "--env-id", "ChoiceLine-v0", "--agent", "mbpo"], "actions from 0; got"),
        (train, ["--steps", "-5"], "--steps"),
        (train, ["--model", "bilvel"], "--method: unknown method 'bilvel': did you mean 'bilevel'"),
        (train, ["--members", "3", "--particles", "5"], "--particles"),
        (train, ["--elites", "7"], "--elites must be"),
        (train, ["--elites", "0"], "--elites must be"),
        (train, ["--replan-every", "99"], "--replan-every must be at most the planner's horizon"),
        (train, ["--noise-beta", "-1"], "error: --noise-beta must be"),
        (train, ["--exploration", "2000"], "--exploration must be"),
        (train, ["--pessimism", "1", "--propagation", "ts1"], "--pessimism needs"),
        (train, ["--population", "1000000", "--horizon", "9999"], "--population"),
        (train, ["--learning-starts", "39"], "--learning-starts must be at least 40"),
        (train, ["--reward", "my_task"], "--reward: rule 'my_task'"),
        (train, ["--env-id", "Hopper-v5", "--reward", "known"], "but --reward approximate is near"),
        (
            train,
            ["--env-id", "Ant-v5", "--reward", "approximate"],
            "does not show its reward; leave",
        ),
        (compare, ["--methods", "nl"], "--methods: unknown method 'nl': did you mean 'nll'"),
        (compare, ["--n-train", "7"], "--n-train"),
        (compare, ["--minari", "a/b-v0", "--plan-episodes", "1"], "--plan-env names"),
        (compare, ["--env-id", "Line-v0", "--plan-env", "Line-v0"], "--plan-env names"),
        (compare, ["--plan-steps", "9"], "--plan-episodes"),
        (compare, ["--seeds", "0"], "--seeds"),
        (compare, ["--csv", "none.csv", "--target", "y"], "does not exist"),
        (compare, ["--csv", "none.csv"], "--target"),
        (compare, ["--csv", "none.csv", "--target", "y", "--minari", "a-v0"], "one kind"),
        (compare, ["--minari", "none-v0"], "minari download"),
        (compare, ["--npz", "none.npz"], "no such file"),
        (compare, ["--npz", "none.npz", "--minari", "a-v0"], "one kind"),
        (compare, ["--text", "one-hot"], "for tables"),
        (compare, ["--learning-rate", "inf"], "--learning-rate"),
        (train, ["--horizon", "100000000000"], "--horizon"),
        (train, ["--train-steps", "0"], "--train-steps"),
        (train, ["--refit-every", "0"], "--refit-every"),
        (train, ["--exploration", "1e300"], "--exploration"),
        (train, ["--hidden", "99999", "99999"], "parameters"),
        (train, ["--env-timeout", "-1"], "--env-timeout"),
        (train, ["--termination", "my_task"], "--termination: rule 'my_task': must have the form"),
        (train, ["--import-module", "my_task", "--env-id", "SickLine-v0", *NET], "NaN"),
        (compare, ["--import-module", "my_task", "--env-id", "SickLine-v0"], "NaN"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    script: Any, options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    if script is train and "--members" in options and "--hidden" in options:
        options = [*options, "--particles", "2"]
    with pytest.raises(SystemExit) as stop:
        launch(script.Args, script.main, [*options, *QUIET, "--out", str(out)])
    err = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert "\n" not in err
    assert told in err
    assert not (out / "metrics.json").exists()


def test_an_unwritable_out_is_one_line_and_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(SystemExit) as stop:
        launch(train.Args, train.main, [*QUIET, "--out", str(tmp_path / "file" / "run")])
    assert stop.value.code == 2
    assert "\n" not in capsys.readouterr().err.strip()
    assert (tmp_path / "file").read_text() == "kept"
