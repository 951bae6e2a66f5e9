"""The bench compares like with like, and its rows say what they must; no test here looks at a time."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))  # where a script finds its neighbours

from bench import Args, main  # noqa: E402
from bench_rows import ROWS, load_row, peers  # noqa: E402
from bench_rows.eager import eager_log_std  # noqa: E402
from bench_rows.pair import Pair  # noqa: E402
from bench_rows.planning import EagerDynamics  # noqa: E402
from bench_rows.training import train_eagerly  # noqa: E402
from work.bench import QUICK, measure  # noqa: E402

from mbrl_bilevel.policies.policies import GaussianPolicy  # noqa: E402
from mbrl_bilevel.studies.launching import launch  # noqa: E402
from mbrl_bilevel.training.settings import Schedule  # noqa: E402

#: No bar, no table and no page.
QUIET = ["--quiet", "--no-report"]

SMALL = QUICK


@pytest.fixture(autouse=True)
def no_peers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As on a machine without them, wherever the tests run."""
    monkeypatch.setattr(peers, "PEERS", tmp_path / "bin" / "python")


#: The rows that need no other library.
ALONE = [name for name in ROWS if "mbrl-lib" not in name and "torchrl" not in name]


def run(out: Path, *options: str) -> None:
    launch(Args, main, ["--out", str(out), "--quick", "--repeats", "2", *options])


def metrics(out: Path) -> Any:
    return json.loads((out / "metrics.json").read_text())


def toy_pair(calls: list[str], slow: bool = False) -> Pair:
    def call(name: str) -> Callable[[], None]:
        return lambda: calls.append(name)

    return Pair(call("ours"), call("peer"), call("check"), "a peer", 10.0, "things/s", slow)


def test_every_row_is_there_and_sane(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path / "a")
    out, err = capsys.readouterr()
    rows = metrics(tmp_path / "a")["rows"]
    assert [row["name"] for row in rows] == ALONE
    for row in rows:
        assert row["ratio"] == pytest.approx(row["ours"] / row["peer"])
        assert min(row["ours"], row["peer"], row["ratio"]) > 0
        assert row["unit"].endswith("/s")
        assert row["peer_name"]
        assert (row["repeats"], row["threads"]) == (2, torch.get_num_threads())
        for side in ("ours_seconds", "peer_seconds"):
            assert 0 < row[side]["min"] <= row[side]["median"] <= row[side]["max"]
        # Throughput times time is the amount of work, the same for both sides.
        ours = row["ours"] * row["ours_seconds"]["median"]
        assert ours == pytest.approx(row["peer"] * row["peer_seconds"]["median"])
        assert row["name"] in err  # the table
    assert out.count("\n") == 1
    assert list(json.loads(out)["ratio"]) == ALONE
    for name in set(ROWS) - set(ALONE):  # a line each
        assert err.count(f"left out: {name.replace('float32-', '').replace('bfloat16-', '')}") >= 1


def test_only_the_rows_asked_for_and_not_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "a", "--only", "train-nll", *QUIET)
    assert capsys.readouterr().err == ""
    first = metrics(tmp_path / "a")["rows"]
    assert [row["name"] for row in first] == ["train-nll"]
    (tmp_path / "a" / "metrics.json").unlink()  # as if stopped after the row
    run(tmp_path / "a", "--only", "train-nll", *QUIET, "--resume")
    assert metrics(tmp_path / "a")["rows"] == first


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--only", "plann"), "did you mean 'plan'"),
        (("--only",), "give at least one value"),
        (("--repeats", "0"), "--repeats must be at least 1"),
    ],
)
def test_a_bad_option_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], words: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "a", *options)
    assert caught.value.code == 2
    assert words in capsys.readouterr().err


def test_rows_asked_for_that_no_peer_is_there_for_are_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(tmp_path / "a", "--only", *sorted(set(ROWS) - set(ALONE)), *QUIET)
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("error: --only: no row could be measured: ")
    assert err.endswith("install the peers by: make peers\n")
    assert err.count("\n") == 1
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("slow", "warmup", "repeats"), [(False, 2, 7), (True, 1, 5)])
def test_the_sides_take_turns_after_check_and_warm_up(
    slow: bool, warmup: int, repeats: int
) -> None:
    calls: list[str] = []
    row = measure(toy_pair(calls, slow), 7)
    assert calls == ["check", *["ours", "peer"] * (warmup + repeats)]
    assert row["repeats"] == repeats


def test_nothing_is_timed_when_the_sides_disagree() -> None:
    calls: list[str] = []

    def refuse() -> None:
        raise AssertionError("not the same")

    with pytest.raises(AssertionError, match="not the same"):
        measure(replace(toy_pair(calls), check=refuse), 3)
    assert calls == []


@pytest.mark.parametrize("name", ["plan", "train-nll"])
def test_both_sides_agree_for_any_seed(name: str) -> None:
    for seed in range(3):
        load_row(name)(SMALL, seed).check()


def test_the_check_of_plan_sees_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    right = EagerDynamics.returns

    def in_other_units(self: EagerDynamics, *given: Any) -> torch.Tensor:
        self.targets = replace(self.targets, scale=1.05 * self.targets.scale)
        return right(self, *given)

    monkeypatch.setattr(EagerDynamics, "returns", in_other_units)
    with pytest.raises(AssertionError, match="not close"):
        load_row("plan")(SMALL, 0).check()


def test_the_check_of_train_nll_sees_another_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def faster(networks: Any, data: Any, schedule: Schedule, generator: Any) -> torch.Tensor:
        schedule = replace(schedule, learning_rate=2.0 * schedule.learning_rate)
        return train_eagerly(networks, data, schedule, generator)

    monkeypatch.setattr("bench_rows.training.train_eagerly", faster)
    with pytest.raises(AssertionError, match="not close"):
        load_row("train-nll")(SMALL, 0).check()


def test_a_plan_takes_the_same_action_by_either_side() -> None:
    pair = load_row("plan")(SMALL, 0)
    (ours, *_), (peer, *_) = pair.ours(), pair.peer()  # type: ignore[misc]
    torch.testing.assert_close(ours, peer)


def test_bilevel_and_likelihood_run_as_many_steps() -> None:
    pair = load_row("train-bilevel")(replace(SMALL, steps=60), 0)
    for train in (pair.ours, pair.peer):
        result: Any = train()
        assert result.steps == 60
        assert torch.tensor(result.criterion).isfinite().all()


def test_the_eager_bounds_are_those_of_the_policy() -> None:
    generator = torch.Generator().manual_seed(0)
    policy = GaussianPolicy(2, 3, generator=generator, members=1, hidden=(), scale="network")
    x = 20.0 * torch.randn(1, 50, 2, generator=generator)
    with torch.no_grad():
        policy.network.last.weight.normal_(generator=generator)
        raw = policy.network(x)[..., 3:]
        torch.testing.assert_close(eager_log_std(raw), policy.dist(x).log_std, rtol=1e-4, atol=1e-5)


#: A peer of three lines, in our own python: what the real worker says, and when.
_TALKER = """
import sys
print("ready", flush=True)
for _ in sys.stdin:
    print("done", 0.25, flush=True)
"""


def test_a_peer_works_when_it_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "peer_worker.py").write_text(_TALKER)
    monkeypatch.setattr(peers, "PEERS", Path(sys.executable))
    monkeypatch.setattr(peers, "__file__", str(tmp_path / "peers.py"))
    pair = load_row("plan-bfloat16-mbrl-lib")(SMALL, 0)
    row = measure(pair, 2)
    pair.close()
    assert row["processor_ratio"] == pytest.approx(
        0.25 * row["ours_per_processor_second"] / pair.amount  # type: ignore[operator]
    )
    assert row["ratio"] > 0  # type: ignore[operator]


def test_a_peer_that_does_not_start_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "peer_worker.py").write_text("import a_library_that_is_not_there")
    monkeypatch.setattr(peers, "PEERS", Path(sys.executable))
    monkeypatch.setattr(peers, "__file__", str(tmp_path / "peers.py"))
    with pytest.raises(peers.PeerMissingError, match=r"train-mbrl-lib.*No module named"):
        load_row("train-mbrl-lib")(SMALL, 0)
