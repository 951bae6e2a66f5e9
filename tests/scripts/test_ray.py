"""Cells on a Ray cluster of two nodes, one of which is killed: every row arrives, and is the local one."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")

from ray.cluster_utils import Cluster  # noqa: E402

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1] / "scripts"))
sys.path.append(str(HERE))  # where my_task.py is

import compare  # noqa: E402
import train  # noqa: E402

from mbrl_bilevel.studies import ray_cells  # noqa: E402
from mbrl_bilevel.studies.cells import Cells, Outcome  # noqa: E402
from mbrl_bilevel.studies.launchers import LauncherArgs  # noqa: E402
from mbrl_bilevel.studies.launching import launch  # noqa: E402
from mbrl_bilevel.studies.ray_cells import RayCluster, on_ray  # noqa: E402

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/cmdline").exists(), reason="which worker is at work is read in /proc"
)

T = TypeVar("T")

QUIET = ["--quiet", "--no-report"]
NET = ["--members", "2", "--hidden", "16"]
#: Its steps take their time, so that there is a middle of a run to be killed in.
OWN = ["--import-module", "my_task", "--env-id", "SlowReacher-v0", *NET]
COMPARE = [
    *["--env-id", "Reacher-v5", *NET, *QUIET, "--methods", "bilevel-constant", "nll", "mse"],
    *["--seeds", "4", "--n-train", "200", "--n-test", "200", "--train-steps", "150"],
]
TRAIN = [
    *["--agent", "mpc", *OWN, *QUIET, "--particles", "2", "--steps", "600", "--eval-every", "200"],
    *["--eval-episodes", "1", "--learning-starts", "60", "--refit-every", "400", "--seeds", "2"],
    *["--train-steps", "20", "--horizon", "2", "--population", "8", "--iterations", "1"],
]
#: Times, memory and dates differ from run to run, and folders by their name; nothing else may.
FREE = (
    *("train_seconds", "wall_seconds", "cpu_seconds", "peak_memory_mb"),
    *("started", "out", "command", "launcher", "ray_address"),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One node, which this process is on; no test may kill it."""
    about = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    found = started(lambda: Cluster(True, head_node_args=about))
    yield found
    ray.shutdown()
    found.shutdown()


def started(start: Callable[[], T]) -> T:
    """Ray gives a node half a minute to start: on a machine that is busy with other tests, not enough at times."""
    for _ in range(2):
        try:
            return start()
        except Exception as error:
            if "timed out during startup" not in str(error):
                raise
    return start()


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE)


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every try at a cell as it starts: its number, and the files that it starts with."""
    found: list[Any] = []
    read = ray_cells._so_far

    def noted(errand: Any) -> Any:
        so_far = read(errand)
        found.append((errand.number, sorted(name for change in so_far for name in change.files)))
        return so_far

    monkeypatch.setattr(ray_cells, "_so_far", noted)
    return found


@contextmanager
def killing(cluster: Cluster, when: Callable[[], bool]) -> Iterator[None]:
    """A second node within it, killed once ``when()`` holds and it is at work on a cell."""
    node = started(lambda: cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20))
    killed, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            if when() and at_work(node):
                cluster.remove_node(node, allow_graceful=False)
                killed.set()
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
        assert killed.is_set()
    finally:
        over.set()
        thread.join()
        if not killed.is_set():
            cluster.remove_node(node)


def at_work(node: Any) -> bool:
    """Whether a worker of the node runs a cell, by the titles that Ray gives to its processes."""
    raylet = node.all_processes["raylet"][0].process.pid
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet and (path / "cmdline").read_bytes().startswith(b"ray::_run"):
                return True
        except OSError:
            continue
    return False


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items() if name not in FREE}
    return [plain(item) for item in value] if isinstance(value, list) else value


def written(out: Path, name: str = "metrics.json") -> Any:
    return plain(json.loads((out / name).read_text()))


def rows_in(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_a_killed_node_costs_no_row_and_changes_none(
    cluster: Cluster, tmp_path: Path, tries: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    launch(compare.Args, compare.main, [*COMPARE, "--out", str(tmp_path / "local")])
    out = tmp_path / "ray"
    on = ["--launcher", "ray", "--ray-address", cluster.address, "--out", str(out)]
    with killing(cluster, lambda: len(rows_in(out / "rows.jsonl")) >= 2):
        launch(compare.Args, compare.main, [*COMPARE, *on])
    assert max(number for number, _ in tries) >= 1  # a cell was lost, and tried again
    assert "lost: " in capsys.readouterr().err
    assert len(rows_in(out / "rows.jsonl")) == 12
    assert written(out) == written(tmp_path / "local")


def test_an_agent_goes_on_elsewhere_from_its_checkpoint(
    cluster: Cluster, tmp_path: Path, tries: list[Any]
) -> None:
    launch(train.Args, train.main, [*TRAIN, "--out", str(tmp_path / "local")])
    out = tmp_path / "ray"
    on = ["--launcher", "ray", "--ray-address", cluster.address, "--out", str(out)]

    def both_evaluated() -> bool:
        return all(len(rows_in(out / f"seed-{seed}" / "rows.jsonl")) >= 1 for seed in (0, 1))

    with killing(cluster, both_evaluated):
        launch(train.Args, train.main, [*TRAIN, *on])
    assert tries[:2] == [(0, []), (0, [])]
    number, files = tries[2]
    assert number == 1
    assert "rows.jsonl" in files
    assert [name for name in files if name.startswith("checkpoints/agent-")]
    assert written(out) == written(tmp_path / "local")
    for seed in ("seed-0", "seed-1"):
        for name in ("metrics.json", "config.json"):
            assert written(out / seed, name) == written(tmp_path / "local" / seed, name)
        files = [
            {path.name for path in (folder / seed / "checkpoints").iterdir()}
            for folder in (out, tmp_path / "local")
        ]
        assert files[0] == files[1]
        # Where a worker had its folder is nobody's business afterwards.
        agent = json.loads((out / seed / "summary.json").read_text())["agent"]
        assert Path(agent).is_relative_to(out)
        assert Path(agent).exists()


def test_seeds_that_learn_side_by_side_each_send_their_folder(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside = [
        *["--import-module", "my_task", "--env-id", "Line-v0", *NET, *QUIET, "--method", "nll"],
        *[
            "--steps",
            "100",
            "--eval-every",
            "50",
            "--eval-episodes",
            "1",
            "--learning-starts",
            "60",
        ],
        *["--train-steps", "20", "--policy-hidden", "8", "--batch-size", "16", "--plan-share", "0"],
        *["--updates-per-step", "1", "--seeds", "3", "--side-by-side", "2"],
        # Too short to end: here the fit of a learned ending is shortened, in workers it is not.
        *["--max-episode-steps", "9"],
    ]
    launch(train.Args, train.main, [*beside, "--out", str(tmp_path / "local")])
    out = tmp_path / "ray"
    on = ["--launcher", "ray", "--ray-address", cluster.address, "--out", str(out)]
    launch(train.Args, train.main, [*beside, *on])
    assert "side-by-side" not in capsys.readouterr().err
    assert written(out) == written(tmp_path / "local")
    for seed in ("seed-0", "seed-1", "seed-2"):
        assert written(out / seed) == written(tmp_path / "local" / seed)
        agent = json.loads((out / seed / "summary.json").read_text())["agent"]
        assert Path(agent).is_relative_to(out / seed)
        assert Path(agent).exists()


def test_a_module_of_the_users_own_travels_to_the_workers(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "travelling.py").write_text(
        "import os, torch\n"
        "from mbrl_bilevel.studies import Done\n"
        "def work(args, key):\n"
        "    threads = torch.get_num_threads(), int(os.environ['OMP_NUM_THREADS'])\n"
        "    return Done({'value': key['n'] ** 2, 'threads': threads, 'file': __file__})\n"
    )
    monkeypatch.syspath_prepend(str(home))
    work = importlib.import_module("travelling").work
    launcher = on_ray(RayCluster(cluster.address))
    found: dict[int, Outcome] = {}
    with launcher.session():
        shutil.rmtree(home)  # no worker finds it where it was
        keys = [{"n": n} for n in range(3)]
        for key, outcome in launcher.outcomes(LauncherArgs(), Cells(keys, work), keys):
            found[key["n"]] = outcome
    assert {n: outcome.row["value"] for n, outcome in found.items()} == {0: 0, 1: 1, 2: 4}
    assert {tuple(outcome.row["threads"]) for outcome in found.values()} == {(1, 1)}
    assert all(not Path(outcome.row["file"]).is_relative_to(home) for outcome in found.values())


def test_what_no_machine_has_is_told_at_once(cluster: Cluster, tmp_path: Path, capsys: Any) -> None:
    on = ["--launcher", "ray", "--ray-address", cluster.address, "--cell-gpus", "0.25"]
    started = time.perf_counter()
    with pytest.raises(SystemExit, match="2"):
        launch(compare.Args, compare.main, [*COMPARE, *on, "--out", str(tmp_path / "a")])
    assert time.perf_counter() - started < 30
    assert "--cell-gpus 0.25: no machine of the cluster has that much" in capsys.readouterr().err
    assert not ray.is_initialized()


def test_an_address_where_nothing_answers_is_told_at_once(tmp_path: Path, capsys: Any) -> None:
    on = ["--launcher", "ray", "--ray-address", "127.0.0.1:1", "--out", str(tmp_path / "a")]
    with pytest.raises(SystemExit, match="2"):
        launch(compare.Args, compare.main, [*COMPARE, *on])
    assert "--ray-address 127.0.0.1:1: nothing answers there" in capsys.readouterr().err
    assert not os.path.exists(tmp_path / "a" / "metrics.json")
