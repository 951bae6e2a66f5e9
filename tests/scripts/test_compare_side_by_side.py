"""compare --side-by-side: the rows are those of separate fits, but for rounding."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
sys.path.append(str(Path(__file__).resolve().parent))  # where my_task.py is

import compare

from mbrl_bilevel.studies.launching import launch
from mbrl_bilevel.training import method as training_method
from tests.scripts.test_studies import COMPARE, NET, QUIET, metrics

STEPS = [*COMPARE, "--methods", "nll", "k-step", "--seeds", "2"]


def ran(out: Path, *options: str) -> Any:
    launch(compare.Args, compare.main, [*options, "--out", str(out)])
    return metrics(out)["rows"]


def close(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            close(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            close(*pair)
    elif isinstance(one, float):
        assert math.isclose(one, other, rel_tol=5e-3, abs_tol=5e-3), (one, other)
    else:
        assert one == other


@pytest.mark.parametrize("source", ["steps", "table"])
def test_rows_are_those_of_separate_fits(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: None)
    options = STEPS
    if source == "table":
        x = np.random.default_rng(0).normal(size=(150, 2))
        lines = [f"{a:.5f},{b:.5f},{a - b:.5f}" for a, b in x]
        (tmp_path / "t.csv").write_text("\n".join(["a,b,y", *lines]))
        options = [
            *QUIET,
            *NET,
            "--csv",
            str(tmp_path / "t.csv"),
            "--target",
            "y",
            "--n-train",
            "100",
        ]
        options += ["--methods", "bilevel", "nll", "--seeds", "3", "--train-steps", "40"]
    expected = ran(tmp_path / "a", *options)
    sizes: list[int] = []
    plain = training_method.fit_side_by_side

    def counted(jobs: Any, **more: Any) -> Any:
        sizes.append(len(jobs))
        return plain(jobs, **more)

    monkeypatch.setattr(training_method, "fit_side_by_side", counted)
    found = ran(tmp_path / "b", *options, "--side-by-side", "2")
    assert sizes[0] == 2
    close(found, expected)
    sizes.clear()
    ran(
        tmp_path / "b", *options, "--side-by-side", "3", "--resume"
    )  # another number is no other study
    assert not sizes
