"""Tables from CSV and npz: what was written comes back, and everything else is told in one line."""

from __future__ import annotations

import gzip
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from envs.datasets.tables import load_table
from mbrl_bilevel.base.errors import InvalidInputError


def frame(rows: int = 30, seed: int = 0) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "a": random.normal(size=rows),
            "b c": random.integers(0, 5, rows),
            "y": random.normal(size=rows),
            "label": random.choice(["no", "yes", "perhaps"], rows),
        }
    )


@pytest.mark.parametrize("suffix", ["csv", "csv.gz"])
def test_numbers_come_back_as_pandas_wrote_them(tmp_path: Path, suffix: str) -> None:
    data = frame().drop(columns="label")
    path = tmp_path / f"t.{suffix}"
    data.to_csv(path, index=False)
    table = load_table(path, "y")
    assert table.features == ("a", "b c")
    np.testing.assert_array_equal(table.x, data[["a", "b c"]].to_numpy(np.float32))
    np.testing.assert_array_equal(table.y, data[["y"]].to_numpy(np.float32))
    both = load_table(path, ["y", "a"])
    assert (both.y.shape, both.x.shape) == ((30, 2), (30, 1))


def test_labels_become_codes_of_sorted_classes(tmp_path: Path) -> None:
    data = frame()
    data.to_csv(tmp_path / "t.csv", index=False)
    table = load_table(tmp_path / "t.csv", "label", kind="classification")
    assert table.classes == ("no", "perhaps", "yes")
    assert [table.classes[code] for code in table.y] == data["label"].tolist()
    assert table.y.dtype == np.int64


@settings(max_examples=25)
@given(
    x=arrays.arrays(np.float32, (25, 3), elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    y=arrays.arrays(
        np.float32, (25,), elements=st.floats(-(2.0**99), 2.0**99, width=32), unique=True
    ),
)
def test_npz_comes_back_bit_for_bit(tmp_path_factory: Any, x: Any, y: Any) -> None:
    path = tmp_path_factory.mktemp("npz") / "t.npz"
    np.savez(path, x=x, y=y)
    table = load_table(path, "y")
    assert table.features == ("x_0", "x_1", "x_2")
    np.testing.assert_array_equal(table.x, x)
    np.testing.assert_array_equal(table.y[:, 0], y)


def _csv(text: str) -> Any:
    return lambda path: path.write_text(text)


ROWS = "".join(f"{i},{i % 7},{i * i}\n" for i in range(30))


@pytest.mark.parametrize(
    ("write", "target", "told"),
    [
        (_csv("a,b,y\n" + ROWS), "z", "no column 'z'"),
        (_csv("a,b,yield\n" + ROWS), "yeild", "did you mean 'yield'"),
        (
            _csv("a,b,y\n" + ROWS.replace("12,5,", "12,five,")),
            "y",
            "column 'b', row 13 holds 'five'",
        ),
        (_csv("a,b,y\n" + ROWS.replace("12,5,", "12,,")), "y", "column 'b', row 13 holds nothing"),
        (_csv("a,b,y\n" + ROWS.replace("12,5,", "12,inf,")), "y", "column 'b', row 13"),
        (_csv("a,b,y\n" + ROWS.replace("12,5,", "12,1e99,")), "y", "column 'b', row 13"),
        (_csv("a,b,y\n" + ROWS.replace("12,5,", "12,nan,")), "y", "column 'b', row 13"),
        (_csv("a,b,y\n" + ROWS.replace("12,5,", "12,5,5,")), "y", "cannot be read as CSV"),
        (_csv("a,b,y\n" + ROWS.replace("12,5,144", "12,5")), "y", "row 13 holds nothing"),
        (_csv("a,b\n" + ROWS), "b", "cannot be read as CSV"),
        (_csv("a,a,y\n" + ROWS), "y", "several columns are named 'a'"),
        (_csv("a,b,y\n" + "1,2,3\n" * 2), "y", "has 2 rows"),
        (_csv("a,b,y\n" + "1,2,3\n" * 40), "y", "always 3"),
        (_csv("y\n" + "1\n2\n" * 20), "y", "leave some feature"),
        (_csv(""), "y", "is empty"),
        (_csv("\n\n\n"), "y", ""),
        (lambda path: path.write_bytes(b"\xff\xfe\x00a" * 50), "y", "UTF-8"),
        (lambda path: path.mkdir(), "y", "is a folder"),
        (lambda path: None, "y", "does not exist"),
    ],
)
def test_a_bad_csv_is_one_line_and_left_as_it_is(
    tmp_path: Path, write: Any, target: str, told: str
) -> None:
    path = tmp_path / "t.csv"
    write(path)
    before = path.read_bytes() if path.is_file() else None
    with pytest.raises(InvalidInputError) as caught:
        load_table(path, target)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert before is None or path.read_bytes() == before


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self._marker,)


def test_an_npz_with_a_pickle_is_refused_without_running_it(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    np.savez(
        tmp_path / "t.npz", y=np.arange(30.0), x=np.array([Payload(marker)] * 30, dtype=object)
    )
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Payload(marker)))
    for name in ("t.npz", "raw.npz"):
        with pytest.raises(InvalidInputError, match="npz"):
            load_table(tmp_path / name, "y")
    assert not marker.exists()
    pickle.loads(pickle.dumps(Payload(marker)))
    assert marker.exists()  # the payload would have worked


def test_a_bomb_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "t.csv.gz", "wb") as file:
        file.write(b"a,y\n" + b"0,1\n" * 10**6)
    with zipfile.ZipFile(tmp_path / "t.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("y.npy", b"0" * 10**6)
    for name in ("t.csv.gz", "t.npz"):
        with pytest.raises(InvalidInputError, match="limit"):
            load_table(tmp_path / name, "y", limit=10**5)


def test_constant_features_are_kept(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,y\n" + "".join(f"{i},7,{i}\n" for i in range(30)))
    assert (load_table(tmp_path / "t.csv", "y").x[:, 1] == 7.0).all()


def test_a_time_stamp_keeps_its_seconds(tmp_path: Path) -> None:
    seconds = 1.7e9 + np.arange(50.0)
    (tmp_path / "t.csv").write_text(
        "time,a,y\n" + "".join(f"{s:.1f},{i % 7},{i % 5}\n" for i, s in enumerate(seconds))
    )
    table = load_table(tmp_path / "t.csv", "y")
    assert table.x.dtype == np.float64
    np.testing.assert_array_equal(table.x[:, 0], seconds)


@pytest.mark.parametrize("label", ["None", "NA", "null", "nan", "n/a", "07"])
def test_a_class_may_be_called_what_others_call_missing(tmp_path: Path, label: str) -> None:
    rows = "".join(f"{i * i % 11},{label if i % 3 else 7}\n" for i in range(30))
    (tmp_path / "t.csv").write_text("a,y\n" + rows)
    table = load_table(tmp_path / "t.csv", "y", kind="classification")
    assert table.classes == tuple(sorted(["7", label]))
    assert [table.classes[code] for code in table.y[:3]] == ["7", label, label]


def test_numbers_as_classes_stay_numbers(tmp_path: Path) -> None:
    rows = "".join(f"{i * i % 11},{i % 12}\n" for i in range(30))
    (tmp_path / "t.csv").write_text("a,y\n" + rows)
    table = load_table(tmp_path / "t.csv", "y", kind="classification")
    assert table.classes == tuple(range(12))
    assert table.y.tolist() == [i % 12 for i in range(30)]


@pytest.mark.parametrize("start", [0, 1])
def test_an_index_without_a_name_is_left_out(tmp_path: Path, start: int) -> None:
    """Sorted by class, the row's number would give the answer away."""
    data = frame().sort_values("label")[["a", "label"]].reset_index(drop=True)
    data.index += start
    data.to_csv(tmp_path / "t.csv")
    with pytest.warns(UserWarning, match="without a name counts the rows: it is left out"):
        table = load_table(tmp_path / "t.csv", "label", kind="classification")
    assert table.features == ("a",)
    pd.read_csv(tmp_path / "t.csv").to_csv(tmp_path / "again.csv", index=False)  # "Unnamed: 0"
    with pytest.warns(UserWarning, match="without a name"):
        table = load_table(tmp_path / "again.csv", "label", kind="classification")
    assert table.features == ("a",)
    data.to_csv(tmp_path / "named.csv", index_label="row")
    with pytest.warns(UserWarning, match="'row' counts the rows"):
        table = load_table(tmp_path / "named.csv", "label", kind="classification")
    assert table.features == ("row", "a")


def test_steps_of_an_environment_are_no_table(tmp_path: Path) -> None:
    obs = np.arange(60.0).reshape(30, 2)
    np.savez(tmp_path / "t.npz", obs=obs, action=obs[:, :1], next_obs=obs + 1, reward=obs[:, 0])
    with pytest.raises(InvalidInputError, match=r"holds steps of an environment \(next_obs\).*npz"):
        load_table(tmp_path / "t.npz", "reward")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a;b;y\n" + "1,5;2;3\n" * 30, "has ';' between its columns; save it with ','"),
        ("a\tb\ty\n" + "1\t2\t3\n" * 30, "has tabs between its columns; save it with ','"),
        ("a,y\n" + '"1,5",2\n' * 30, "holds '1,5', where a finite number belongs; write numbers"),
        ("a,y\n" + '"1.234,5",2\n' * 30, "write numbers with a decimal point"),
        (",,y\n" + "1,2,3\n" * 30, "has 2 columns without a name; name them"),
        ("a,,y\n" + "1,2,3\n" * 30, "column 2 has no name; name it"),
    ],
)
def test_the_remedy_is_the_right_one(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InvalidInputError) as caught:
        load_table(tmp_path / "t.csv", "y")
    assert told in str(caught.value)


def test_text_and_missing_values_by_an_option(tmp_path: Path) -> None:
    kinds, numbers = ("red", "None", ""), ("1.5", "NA", "2.5", "4")
    rows = "".join(f"{kinds[i % 3]},{numbers[i % 4]},{i * i}\n" for i in range(48))
    path = tmp_path / "t.csv"
    path.write_text("colour,size,y\n" + rows)
    with pytest.raises(InvalidInputError, match=r"column 'colour', row 1 holds 'red'.*one-hot"):
        load_table(path, "y")
    with pytest.raises(InvalidInputError, match="column 'size', row 2 holds 'NA'"):
        load_table(path, "y", text="one-hot")
    filled = load_table(path, "y", text="one-hot", missing="fill")
    colours = ("colour=None", "colour=nothing", "colour=red")
    assert filled.features == (*colours, "size", "size=nothing")
    assert filled.x[:4].tolist() == [
        [0, 0, 1, 1.5, 0],
        [1, 0, 0, 2.5, 1],  # the median of 1.5, 2.5 and 4
        [0, 1, 0, 2.5, 0],
        [0, 0, 1, 4.0, 0],
    ]
    dropped = load_table(path, "y", text="one-hot", missing="drop")
    kept = [i for i in range(48) if i % 3 != 2 and i % 4 != 1]
    assert dropped.y[:, 0].tolist() == [i * i for i in kept]
    with pytest.raises(InvalidInputError, match="missing must be one of refuse, drop, fill"):
        load_table(path, "y", missing="guess")  # type: ignore[arg-type]
