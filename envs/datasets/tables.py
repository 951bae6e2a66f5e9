"""Tables from CSV and npz files: numbers in, one clear line for everything else.

Nothing in a file is executed (npz without pickles), and none is ever written to.
"""

from __future__ import annotations

import difflib
import gzip
import io
import math
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd

from mbrl_bilevel.base.errors import InvalidInputError
from mbrl_bilevel.base.rounding import coarse

#: A file of this many bytes, unpacked, is taken for a mistake or an attack: see ``limit``.
LIMIT = 8 * 2**30
_FEWEST_ROWS = 20


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
    limit: int = LIMIT,
) -> Table:
    """The table in ``path``: .csv or .csv.gz with a header line, or .npz.

    In an npz a 1-D array is a column of its name, a 2-D array ``a`` the columns a_0, a_1, …
    All columns but the ``target`` (one, or for regression several) are features: finite numbers.
    Constant features are kept, they do no harm. A class label is a number or a text.

    Raises InvalidInputError, naming column and row (counted from 1, without the header): no such
    file or column, text or missing or infinite values where numbers belong, ragged lines, columns
    of the same name, a constant target, fewer than 20 rows, more than ``limit`` bytes unpacked.
    """
    path, names = Path(path), (target,) if isinstance(target, str) else tuple(target)
    if not path.is_file():
        _refuse(path, "is a folder" if path.is_dir() else "does not exist", "give a .csv or .npz")
    frame = _read_npz(path, limit) if path.suffix == ".npz" else _read_csv(path, limit)
    _check_names(path, frame, names, kind)
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


def _read_csv(path: Path, limit: int) -> pd.DataFrame:
    try:
        with warnings.catch_warnings(), _text(path, limit) as text:
            warnings.simplefilter("error", pd.errors.ParserWarning)
            header = text.readline()
            names = pd.read_csv(io.StringIO(header), header=None, dtype=str, skipinitialspace=True)
            columns = [str(name) for name in names.iloc[0]]
            _refuse_doubled(path, columns)
            frame = pd.read_csv(
                text, header=None, names=columns, index_col=False, skipinitialspace=True
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


def _refuse_doubled(path: Path, names: list[str]) -> None:
    doubled = [name for name in names if names.count(name) > 1]
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
    except Exception as error:  # zipfile and numpy raise all kinds for a damaged archive
        _refuse(
            path, f"cannot be read as npz ({error})", "write it with numpy.savez of plain numbers"
        )


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
            _refuse(
                path,
                f"column {name!r}, row {row + 1} holds {shown}, where a finite number belongs",
                "encode text as numbers, and fill in or drop rows that lack a value",
            )
    return result


def _classes(
    path: Path, frame: pd.DataFrame, name: str
) -> tuple[npt.NDArray[np.int64], tuple[Any, ...]]:
    missing = np.flatnonzero(frame[name].isna().to_numpy())
    if len(missing):
        _refuse(path, f"column {name!r}, row {missing[0] + 1} holds nothing", "give it a class")
    codes, labels = pd.factorize(frame[name], sort=True)
    if len(labels) < 2:
        _refuse(path, f"target {name!r} is always {labels[0]!r}", "there is nothing to learn")
    return codes.astype(np.int64), tuple(labels.tolist())
