"""Tables from CSV and npz files: numbers in, one clear line for everything else.

Nothing in a file is executed (npz without pickles), and none is ever written to.
"""

from __future__ import annotations

import difflib
import gzip
import io
import math
import re
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NoReturn, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.rounding import coarse

#: A file of this many bytes, unpacked, is taken for a mistake or an attack: see ``limit``.
LIMIT = 8 * 2**30
_FEWEST_ROWS = 20
#: A text with more values than this is a name or a sentence, and says nothing about other rows.
_MOST_VALUES = 50
#: What programs write where a number is missing.
_MISSING = ("", "na", "n/a", "nan", "none", "null", "?")
#: Names that only the outcome of a step goes by.
_OUTCOMES = ("next_obs", "next_observations", "next_observation", "next_states", "next_state")

Text = Literal["refuse", "one-hot"]
Missing = Literal["refuse", "drop", "fill"]


@dataclass(frozen=True)
class Table:
    """N rows: ``x`` [N, X] float32 with the columns ``features``; ``y`` [N, D] float32 with the
    columns ``targets``, or for classes [N] int64 into ``classes`` (labels, sorted). Either is float64
    where float32 cannot tell the values of a column from each other."""

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    features: tuple[str, ...]
    targets: tuple[str, ...]
    classes: tuple[Any, ...] = ()

    def __len__(self) -> int:
        return len(self.x)


def load_table(
    path: str | Path,
    target: str | Sequence[str],
    *,
    kind: Literal["regression", "classification"] = "regression",
    text: Text = "refuse",
    missing: Missing = "refuse",
    limit: int = LIMIT,
) -> Table:
    """The table in ``path``: .csv or .csv.gz with a header line, or .npz.

    In an npz a 1-D array is a column of its name, a 2-D array ``a`` the columns a_0, a_1, …
    ``kind``: whether the target is a number or a class. All columns but the ``target`` (one, or for regression
    several) are features: finite numbers.
    Constant features are kept, they do no harm. A class label is a number or a text, whatever it says
    ("None" and "NA" too). A column without a name that counts the rows is left out, and it is told.

    ``text``: "one-hot" makes a feature of text one column for each of its values, at most 50. ``missing``:
    "drop" leaves out rows that lack a feature, "fill" takes the median of the column for it and adds a column
    that says where (for a text, one of its values).

    Raises InvalidInputError, naming column and row (counted from 1, without the header): no such
    file or column, text or missing or infinite values where numbers belong, ragged lines, columns
    of the same name, a constant target, fewer than 20 rows, more than ``limit`` bytes unpacked, steps of
    an environment (``steps.load_steps`` reads these).
    """
    path, names = Path(path), (target,) if isinstance(target, str) else tuple(target)
    for option, value, kinds in (("text", text, Text), ("missing", missing, Missing)):
        if value not in get_args(kinds):
            raise InvalidInputError(
                f"{option} must be one of {', '.join(get_args(kinds))}; got {value!r}"
            )
    if not path.is_file():
        _refuse(path, "is a folder" if path.is_dir() else "does not exist", "give a .csv or .npz")
    labels = names if kind == "classification" else ()
    frame = _read_npz(path, limit) if path.suffix == ".npz" else _read_csv(path, labels, limit)
    frame = _without_index(path, frame, names)
    _check_names(path, frame, names, kind)
    frame = _all_numbers(path, frame, names, text, missing)
    features = [name for name in frame.columns if name not in names]
    x = _numbers(path, frame, features)
    if kind == "classification":
        y, classes = _classes(path, frame, names[0])
        return Table(x, y, tuple(features), names, classes)
    values = _numbers(path, frame, list(names))
    for i, name in enumerate(names):
        if (values[:, i] == values[0, i]).all():
            _refuse(
                path, f"target {name!r} is always {values[0, i]:g}", "there is nothing to learn"
            )
    return Table(x, values, tuple(features), names)


def _refuse(path: Path, what: str, remedy: str) -> NoReturn:
    raise InvalidInputError(f"table {path}: {' '.join(what.split())[:300]}; {remedy}")


def _read_csv(path: Path, labels: Sequence[str], limit: int) -> pd.DataFrame:
    """All columns as they are written; ``labels`` as text, for a class is what its name says."""
    try:
        with warnings.catch_warnings(), _text(path, limit) as text:
            warnings.simplefilter("error", pd.errors.ParserWarning)
            header = text.readline()
            names = pd.read_csv(io.StringIO(header), header=None, dtype=str, skipinitialspace=True)
            columns = ["" if pd.isna(name) else str(name) for name in names.iloc[0]]
            _refuse_other_separators(path, columns)
            _refuse_doubled(path, columns)
            frame = pd.read_csv(
                text,
                header=None,
                names=columns,
                index_col=False,
                skipinitialspace=True,
                dtype=dict.fromkeys(set(labels) & set(columns), str),
                # What else stands for "missing" depends on the column: see _all_numbers.
                keep_default_na=False,
                na_values=[""],
                low_memory=False,
            )
    except InvalidInputError:
        raise
    except UnicodeDecodeError as error:
        _refuse(path, f"is not text in UTF-8 ({error.reason})", "save it as a CSV in UTF-8")
    except pd.errors.EmptyDataError:
        _refuse(path, "is empty", "its first line must name the columns")
    except (ValueError, pd.errors.ParserWarning, OSError, EOFError) as error:
        _refuse(path, f"cannot be read as CSV ({error})", "mend that line, or save it again")
    return frame


def _refuse_other_separators(path: Path, names: list[str]) -> None:
    for mark, word in ((";", "';'"), ("\t", "tabs")):
        if len(names) == 1 and mark in names[0]:
            _refuse(
                path,
                f"has {word} between its columns",
                "save it with ',' between columns and '.' in numbers (1.5, not 1,5)",
            )


def _refuse_doubled(path: Path, names: list[str]) -> None:
    doubled = [name for name in names if names.count(name) > 1]
    if doubled and not doubled[0]:
        _refuse(path, f"has {len(doubled)} columns without a name", "name them in the first line")
    if doubled:
        _refuse(path, f"several columns are named {doubled[0]!r}", "give each its own name")


def _text(path: Path, limit: int) -> io.TextIOWrapper:
    # Closing the text closes all that it wraps.
    raw: Any = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115
    bounded: Any = io.BufferedReader(_Bounded(raw, limit))
    return io.TextIOWrapper(bounded, encoding="utf-8-sig", newline="")


class _Bounded(io.RawIOBase):
    """A stream that fails behind ``limit`` bytes: a few bytes of gzip can unpack to any size."""

    def __init__(self, raw: IO[bytes], limit: int) -> None:
        self._raw, self._left = raw, limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("it is larger than the limit on unpacked bytes")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _read_npz(path: Path, limit: int) -> pd.DataFrame:
    columns: dict[str, npt.NDArray[Any]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(part.file_size for part in archive.infolist()) > limit:
                raise ValueError("it is larger than the limit on unpacked bytes")
        with np.load(path, allow_pickle=False) as arrays:
            outcome = [name for name in arrays.files if name.lower() in _OUTCOMES]
            if outcome:
                raise _Steps(outcome[0])
            for name in arrays.files:
                array = arrays[name]
                if array.ndim == 1:
                    columns[name] = array
                elif array.ndim == 2:
                    columns |= {f"{name}_{i}": array[:, i] for i in range(array.shape[1])}
                else:
                    raise ValueError(f"array {name!r} has {array.ndim} dimensions, not 1 or 2")
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"its columns differ in length: {lengths}")
        return pd.DataFrame(columns)
    except _Steps as error:
        _refuse(
            path,
            f"holds steps of an environment ({error}): its outcomes would be taken for inputs",
            "read it with envs.datasets.steps.load_steps, or compare --npz",
        )
    except Exception as error:  # zipfile and numpy raise all kinds for a damaged archive
        _refuse(
            path, f"cannot be read as npz ({error})", "write it with numpy.savez of plain numbers"
        )


class _Steps(Exception):
    """The arrays are steps of an environment; names one of them."""


def _without_index(path: Path, frame: pd.DataFrame, targets: tuple[str, ...]) -> pd.DataFrame:
    """Without a nameless column that counts the rows: where a table is sorted, it gives the answer away.
    Of one that has a name, it says so."""
    for name in [name for name in frame.columns if name not in targets]:
        nameless = name == "" or name.startswith("Unnamed: ")
        values = pd.to_numeric(frame[name], errors="coerce").to_numpy(np.float64, na_value=math.nan)
        counts = bool(len(values)) and values[0] in (0.0, 1.0)
        counts = counts and np.array_equal(values - values[0], np.arange(len(values)))
        if nameless and not counts:
            place = list(frame.columns).index(name) + 1
            _refuse(path, f"column {place} has no name", "name it in the first line, or remove it")
        if nameless:
            _warn(path, "a column without a name counts the rows: it is left out")
            frame = frame.drop(columns=name)
        elif counts:
            _warn(path, f"column {name!r} counts the rows and is a feature: is that meant?")
    return frame


def _warn(path: Path, what: str) -> None:
    warnings.warn(f"table {path}: {what}", stacklevel=4)


def _all_numbers(
    path: Path, frame: pd.DataFrame, targets: tuple[str, ...], text: Text, missing: Missing
) -> pd.DataFrame:
    """Features of text, and those that lack values, as the options say; all else as it is."""
    columns: dict[str, Any] = {}
    lacking = np.zeros(len(frame), dtype=np.bool_)
    for name in frame.columns:
        column = frame[name]
        if name in targets or (text == missing == "refuse"):
            columns[name] = column
            continue
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=math.nan)
        written = column.map(lambda value: "" if pd.isna(value) else str(value).strip().lower())
        gone = written.isin(_MISSING).to_numpy()
        if (np.isnan(numbers) & ~gone).any() and text == "one-hot":
            gone = (written == "").to_numpy()  # a text may well say "none"
            columns |= _one_hot(path, name, column.astype(str).where(~gone, "nothing"))
        elif missing == "fill" and gone.any() and not gone.all():
            columns[name] = column.mask(gone, np.median(numbers[~gone]))
            columns[f"{name}=nothing"] = gone.astype(np.float32)
        else:
            columns[name] = column
        if missing == "drop":
            lacking |= gone
    found = pd.DataFrame(columns)[~lacking].reset_index(drop=True)
    if len(found) < _FEWEST_ROWS:
        _refuse(path, f"has {len(found)} rows that lack nothing", "fill in, or take missing='fill'")
    return found


def _one_hot(path: Path, name: str, column: pd.Series[str]) -> dict[str, Any]:
    values = sorted(column.unique())
    if len(values) > _MOST_VALUES:
        _refuse(
            path,
            f"column {name!r} holds {len(values)} different texts",
            f"leave it out, or bring it down to {_MOST_VALUES} values",
        )
    return {f"{name}={value}": (column == value).to_numpy(np.float32) for value in values}


def _check_names(path: Path, frame: pd.DataFrame, targets: tuple[str, ...], kind: str) -> None:
    names = list(frame.columns)
    if not targets or (kind == "classification" and len(targets) > 1):
        _refuse(path, f"the target is {targets}", "name one column")
    for name in targets:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(names[:20])}"
            _refuse(path, f"has no column {name!r} for the target", hint)
    if len(set(targets)) < len(targets) or len(targets) == len(names):
        _refuse(path, f"the targets are {targets}", "name each once, and leave some feature")
    if len(frame) < _FEWEST_ROWS:
        _refuse(path, f"has {len(frame)} rows", f"at least {_FEWEST_ROWS} are needed")


def _numbers(path: Path, frame: pd.DataFrame, names: list[str]) -> npt.NDArray[Any]:
    """The columns as float32 [N, len(names)], filled one by one: nothing is held twice. As float64 from
    where one is lost in float32: a time stamp of 1.7e9 would be told to two minutes."""
    result: npt.NDArray[Any] = np.empty((len(frame), len(names)), np.float32)
    for i, name in enumerate(names):
        column = frame[name]
        values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=math.nan)
        with np.errstate(over="ignore", invalid="ignore"):
            if coarse(np.abs(values).max(), values.std()):
                result = result.astype(np.float64, copy=False)
            result[:, i] = values
        bad = np.flatnonzero(~np.isfinite(result[:, i]))
        if len(bad):
            row = int(bad[0])
            given = column.iloc[row]
            shown = "nothing" if pd.isna(given) else repr(given)
            remedy = (
                "encode text as numbers (text='one-hot'), fill in or drop missing ones (missing=)"
            )
            if isinstance(given, str) and re.fullmatch(r"[-+]?[\d.]+,[\d.,]*\d", given.strip()):
                remedy = "write numbers with a decimal point, and nothing between thousands"
            _refuse(
                path,
                f"column {name!r}, row {row + 1} holds {shown}, where a finite number belongs",
                remedy,
            )
    return result


def _classes(
    path: Path, frame: pd.DataFrame, name: str
) -> tuple[npt.NDArray[np.int64], tuple[Any, ...]]:
    column = frame[name]
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        _refuse(path, f"column {name!r}, row {missing[0] + 1} holds nothing", "give it a class")
    numbers = pd.to_numeric(column, errors="coerce")
    if np.isfinite(numbers.to_numpy(np.float64, na_value=math.nan)).all() and not (
        column.astype(str).str.fullmatch(r"[-+]?0\d.*").any()  # 007 is a code, not seven
    ):
        column = numbers
    codes, labels = pd.factorize(column, sort=True)
    if len(labels) < 2:
        _refuse(path, f"target {name!r} is always {labels[0]!r}", "there is nothing to learn")
    return codes.astype(np.int64), tuple(labels.tolist())
