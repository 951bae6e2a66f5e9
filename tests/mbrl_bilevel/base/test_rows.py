"""Finished rows survive a kill, and what is written is strict JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.rows import Rows, strict


@pytest.mark.parametrize("tail", [b'{"a": 3', b'{"a": 3}', b"\0\0\0", b'{"a": \xff}\n', b"3\n"])
def test_a_torn_last_row_is_dropped(tmp_path: Path, tail: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n' + tail)
    rows = Rows(path)
    rows.append({"a": 4})
    assert [row["a"] for row in rows] == [1, 2, 4]
    assert [row["a"] for row in Rows(path)] == [1, 2, 4]


def test_damage_before_the_last_row_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b'{"a": 1}\n{"a"\n{"a": 2}\n')
    with pytest.raises(InvalidInputError, match="line 2 is damaged"):
        Rows(tmp_path / "rows.jsonl")


def test_rows_are_found_by_all_values_of_the_key(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl")
    rows.append({"method": "nll", "seed": 0, "sizes": (1, 2)})
    rows.append({"method": "nll", "seed": 1})
    assert rows.find(method="nll", seed=1) == {"method": "nll", "seed": 1}
    assert rows.find(method="nll", sizes=(1, 2), seed=np.int64(0)) is not None
    assert rows.find(method="mse") is None
    assert rows.find(absent=None) is None


@dataclass
class Record:
    x: dict[str, int]


def test_strict_json_never_hides_what_is_not_finite() -> None:
    document = {
        "a": np.float32("nan"),
        "b": [1.0, float("-inf")],
        "c": {"d": np.array([2.0, np.inf])},
    }
    assert strict(document) == {
        "a": None,
        "b": [1.0, None],
        "c": {"d": [2.0, None]},
        "non_finite": {"a": "nan", "b[1]": "-inf", "c.d[1]": "inf"},
    }
    assert strict({"p": Path("a"), "t": (True, None, np.bool_(False)), "r": Record({"x": 1})}) == {
        "p": "a",
        "t": [True, None, False],
        "r": {"x": {"x": 1}},
    }
    with pytest.raises(TypeError, match="a: object"):
        strict({"a": object()})
    with pytest.raises(TypeError, match="a: key 1"):
        strict({"a": {1: 2}})


def test_a_row_that_was_edited_is_told(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl")
    row = rows.append({"a": 1.5, "b": [1, None], "c": {"d": True}, "e": float("nan")})
    assert rows.require(row, "a", "b", "c", "e") is row
    for edited in ({"b": 1}, {"a": "1.5"}, {"a": [1, "x"]}, {"a": {"d": "x"}}):
        with pytest.raises(InvalidInputError, match=r"rows\.jsonl: a row was edited, its 'a'"):
            rows.require(edited, "a")


def test_a_row_that_failed_is_still_to_be_done(tmp_path: Path) -> None:
    rows = Rows(tmp_path / "rows.jsonl")
    rows.append({"n": 1, "failed": "diverged"})
    assert rows.find(n=1) is None
    rows.append({"n": 1, "value": 2})
    assert rows.find(n=1) == {"n": 1, "value": 2}
