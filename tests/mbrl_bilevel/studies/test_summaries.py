"""What rows say, on rows whose means, differences and ratios are known by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mbrl_bilevel.studies.summaries import paired, pooled, summarise


def row(method: str, dataset: str, seed: int, nrmse: float, nll: float | None) -> dict[str, Any]:
    return {
        **{"method": method, "dataset": dataset, "n_train": 100, "seed": seed},
        **{"nrmse": nrmse, "nll": nll},
    }


ROWS = [
    # On "a" ours has four fifths of the error; on "b" five fourths: even, as ratios go.
    *[row("ours", "a", s, 0.8 * (1 + s), -1.0 - s) for s in range(4)],
    *[row("other", "a", s, 1.0 * (1 + s), 0.0 - s) for s in range(4)],
    *[row("ours", "b", s, 1.25, 2.0) for s in range(4)],
    *[row("other", "b", s, 1.0, [2.5, 2.5, 2.5, 100.0][s]) for s in range(4)],
]


def test_each_method_on_each_data_set() -> None:
    lines = list(summarise(ROWS, ["ours", "other"], ["nrmse"]))
    assert [(line["method"], line["dataset"]) for line in lines] == [
        *[("ours", "a"), ("other", "a"), ("ours", "b"), ("other", "b")]
    ]
    assert lines[0]["nrmse"]["mean"] == pytest.approx(2.0)


def test_differences_are_paired() -> None:
    first, second = paired(ROWS, ["ours", "other"], ["nrmse", "nll"])
    assert first["nll"]["mean"] == first["nll"]["low"] == first["nll"]["high"] == -1.0
    assert first["nrmse"]["mean"] == pytest.approx(-0.5)
    assert second["dataset"] == "b"


def test_pooled_over_data_sets() -> None:
    (line,) = pooled(ROWS, ["ours", "other"])
    assert line["strata"] == 2
    ratio = line["nrmse"]
    assert ratio["estimate"] == pytest.approx(1.0)  # √(0.8 · 1.25)
    assert ratio["low"] == pytest.approx(ratio["high"])  # the ratio is the same in every repeat
    assert ratio["won"] == 0.5
    nll = line["nll"]
    assert nll["estimate"] == pytest.approx((4 * -1.0 + 3 * -0.5 + -98.0) / 8)
    assert -1.0 <= nll["iqm"]["estimate"] <= -0.5  # the catastrophe does not move it
    assert nll["won"] == 1.0
    # "a": ours −1 to −4 against 0 to −3: i wins over j where −1−i < −j, 10 ties and wins of 16.
    wins = sum((-1 - i < -j) + 0.5 * (-1 - i == -j) for i in range(4) for j in range(4)) / 16
    assert nll["probability"]["estimate"] == pytest.approx((wins + 1.0) / 2)


def test_repeats_that_only_one_of_them_has_are_left_out() -> None:
    rows = [r for r in ROWS if not (r["method"] == "other" and r["seed"] == 0)]
    rows[1] = {**rows[1], "nll": None}  # not finite
    (line,) = pooled(rows, ["ours", "other"])
    assert line["nrmse"]["estimate"] == pytest.approx(1.0)
    assert math.isfinite(line["nll"]["estimate"])
    assert line["nll"]["estimate"] == pytest.approx((2 * -1.0 + 2 * -0.5 + -98.0) / 5)
    gone = [r for r in rows if r["method"] == "ours"]
    assert list(paired(gone, ["ours", "other"], ["nll"])) == []
    (line,) = pooled(gone, ["ours", "other"])
    assert line["strata"] == 0
    assert "nll" not in line
