"""scaling end to end at tiny sizes: a row for each, going on after a stop, and bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

import scaling
import work.scaling

from mbrl_bilevel.studies.launching import launch

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    *["--quiet", "--no-report", "--obs-dim", "8", "3", "--members", "2", "--n-train", "300", "100"],
    *["--horizon", "2", "--population", "8", "--hidden", "8", "--train-steps", "3"],
    *["--plans", "1", "--repeats", "1", "--study", str(ROOT / "docs/results/agents/grid.toml")],
]


class Here:
    """In the place of a process of its own, which takes seconds to start."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *_: object) -> None: ...

    def submit(self, work: Any, *args: Any) -> Here:
        self.found = work(*args)
        return self

    def result(self) -> Any:
        return self.found


def test_it_measures_each_size_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work.scaling, "ProcessPoolExecutor", Here)
    launch(scaling.Args, scaling.main, [*TINY, "--out", str(tmp_path / "a")])
    found = json.loads((tmp_path / "a" / "metrics.json").read_text())
    keys = [(row["work"], row["vary"], row["value"]) for row in found["rows"]]
    assert keys == [
        *(("fit", "obs_dim", 3), ("fit", "obs_dim", 8), ("fit", "members", 2)),
        *(("fit", "n_train", 100), ("fit", "n_train", 300)),
        *(("plan", "obs_dim", 3), ("plan", "obs_dim", 8), ("plan", "members", 2)),
        *(("plan", "horizon", 2), ("plan", "population", 8)),
    ]
    for row in found["rows"]:
        assert min(row[name] for name in ("seconds", "fixed_seconds", "data_mb")) > 0.0
        assert row["peak_memory_mb"] > 100.0
    # obs, next_obs, action, reward, two flags, episode and time.
    assert found["rows"][0]["data_mb"] == pytest.approx(300 * (4 * 13 + 2 + 16) / 2**20)
    assert found["machines"][0]["nodes"] == 1
    for name in ("scaling", "machines"):
        assert (tmp_path / "a" / "figures" / f"{name}.png").stat().st_size > 5_000

    monkeypatch.setattr(work.scaling, "_measured", lambda *_: pytest.fail("measured again"))
    (tmp_path / "a" / "metrics.json").unlink()
    launch(scaling.Args, scaling.main, [*TINY, "--out", str(tmp_path / "a"), "--resume"])
    assert json.loads((tmp_path / "a" / "metrics.json").read_text()) == found


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--n-train", "10"], "--n-train"),
        (["--population", "0"], "--population"),
        (["--obs-dim", "3", "3"], "--obs-dim"),
        (["--members", "2", "600"], "--members, --n-train"),
        (["--study", "none.toml"], "none.toml"),
    ],
)
def test_bad_input_is_one_line(
    options: list[str],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(work.scaling, "_measured", lambda *_: pytest.fail("measured"))
    with pytest.raises(SystemExit) as stop:
        launch(scaling.Args, scaling.main, [*options, "--out", str(tmp_path / "a")])
    assert stop.value.code == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
