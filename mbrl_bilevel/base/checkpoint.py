"""Versioned checkpoints: one safetensors file of tensors plus a JSON document, never a pickle.

Its metadata holds format, version, kind, config (JSON text) and a SHA-256 of all the rest, which
finds damage but is no signature. Source: the format of github.com/huggingface/safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from mbrl_bilevel.base.atomic import write_atomically
from mbrl_bilevel.base.errors import CheckpointError, InvalidInputError

#: Raise by one whenever an older reader would misread the file; keep reading the older versions.
VERSION = 1

_FORMAT = "mbrl_bilevel checkpoint"
_MAX_HEADER = 100_000_000  # bytes: the limit of safetensors itself
# What json and safetensors raise for bad content, down to an assert on empty tensors.
_DAMAGE = (SafetensorError, KeyError, TypeError, ValueError, RecursionError, AssertionError)

T = TypeVar("T", bool, int, float, str, list[Any], dict[str, Any])


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds: ``tensors`` on the CPU; ``config``, a JSON object (tuples as lists)."""

    path: Path
    kind: str
    version: int
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    def require(
        self,
        name: str,
        shape: tuple[int | None, ...] | None = None,
        dtype: torch.dtype | None = None,
        *,
        finite: bool = True,
    ) -> Tensor:
        """The tensor ``name``, with the given shape (None: any size there) and dtype.

        Raises CheckpointError if it is missing, of another shape or dtype, or holds NaN or infinity (a
        bound may be infinite: ``finite=False``).
        """
        tensor = self.tensors.get(name)
        if tensor is None:
            _refuse(self.path, f"it has no tensor {name!r}")
        fits = shape is None or (
            len(shape) == tensor.ndim
            and all(want in (None, got) for want, got in zip(shape, tensor.shape, strict=True))
        )
        if not fits:
            _refuse(self.path, f"tensor {name!r} has shape {tuple(tensor.shape)}, expected {shape}")
        if dtype is not None and tensor.dtype != dtype:
            _refuse(self.path, f"tensor {name!r} is {tensor.dtype}, expected {dtype}")
        if finite and not bool(tensor.isfinite().all()):
            _refuse(self.path, f"tensor {name!r} holds NaN or infinity")
        return tensor

    def setting(self, name: str, kind: type[T]) -> T:
        """The value of ``config[name]``, which must be a ``kind`` (an int will do for a float).

        Raises CheckpointError if it is missing or of another type.
        """
        if name not in self.config:
            _refuse(self.path, f"its config has no {name!r}")
        value = self.config[name]
        if kind is float and type(value) is int:
            return kind(value)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            _refuse(self.path, f"config {name!r} is {value!r}, expected {kind.__name__}")
        return value


def save_checkpoint(
    path: str | Path,
    kind: str,
    tensors: Mapping[str, Tensor | npt.NDArray[Any]],
    config: Mapping[str, object],
) -> None:
    """Write one file atomically: whatever stops it, ``path`` holds the old content or the new.

    ``kind`` says what is saved ("gaussian policy"); load_checkpoint() asks for it again. Missing
    folders are made. Raises InvalidInputError if ``config`` is not plain JSON or a tensor cannot be
    stored, OSError if the disk is full or the folder is not writable.
    """
    path = Path(path)
    stored = {name: _storable(name, value) for name, value in tensors.items()}
    metadata = {
        "format": _FORMAT,
        "version": str(VERSION),
        "kind": kind,
        "config": json.dumps(_plain(dict(config), "config"), allow_nan=False),
    }
    try:
        raw = safetensors_torch.save(stored, metadata)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"save_checkpoint: tensors cannot be stored ({error}); use dense real tensors"
        ) from error
    header, body = _split(raw)
    header["__metadata__"]["sha256"] = _digest(header, body)
    text = json.dumps(header, sort_keys=True).encode()  # the same content is the same file
    if len(text) > _MAX_HEADER - 8:
        raise InvalidInputError(
            f"save_checkpoint: config takes {len(text)} bytes; put large data into tensors"
        )
    text += b" " * (-len(text) % 8)  # the format aligns the data to 8 bytes
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, len(text).to_bytes(8, "little"), text, body)


def load_checkpoint(path: str | Path, *kinds: str) -> Checkpoint:
    """Read and verify a checkpoint of one of these ``kinds``; nothing in the file is ever executed.

    Raises CheckpointError, in one line with the path, the reason and the remedy, if the file is
    missing, truncated, edited, of another kind, from a newer version, or no checkpoint at all.
    """
    path = Path(path)
    raw = _read(path)
    try:
        header, body = _split(raw)
    except (ValueError, RecursionError) as error:
        _refuse(path, _what_else(raw) or f"it is truncated or damaged ({error})")
    metadata = _metadata(path, header)
    claimed = metadata.pop("sha256", None)
    if claimed != _digest(header, body):
        _refuse(path, "its checksum does not match: it was truncated, damaged or edited")
    kind, wanted = metadata["kind"], " or ".join(map(repr, kinds))
    if kind not in kinds:
        raise CheckpointError(
            f"checkpoint {path}: it holds a {kind!r}, not a {wanted}; "
            f"load it as a {kind!r}, or give the path of a {wanted}"
        )
    try:
        config = json.loads(metadata["config"], parse_constant=_no_constant)
        tensors = safetensors_torch.load(raw)
    except (
        SafetensorError,
        KeyError,
        TypeError,
        ValueError,
        RecursionError,
        AssertionError,
    ) as error:
        _refuse(path, f"it is damaged ({error})")
    if not isinstance(config, dict):
        _refuse(path, "its config is not a JSON object")
    return Checkpoint(path, kind, int(metadata["version"]), config, tensors)


def _refuse(path: Path, reason: str) -> NoReturn:
    one_line = " ".join(reason.split())[:500]
    raise CheckpointError(f"checkpoint {path}: {one_line}; restore a good copy or save it again")


def _storable(name: str, value: Tensor | npt.NDArray[Any]) -> Tensor:
    """A contiguous CPU copy with its own memory: safetensors refuses tensors that share theirs."""
    if name == "__metadata__":
        raise InvalidInputError("save_checkpoint: '__metadata__' is taken; use another name")
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        try:
            # PyTorch knows no foreign byte order.
            value = torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        except TypeError as error:
            raise InvalidInputError(
                f"save_checkpoint: {name!r} has dtype {array.dtype}; use numbers or booleans"
            ) from error
    if value.layout != torch.strided:
        raise InvalidInputError(f"save_checkpoint: {name!r} is {value.layout}; use a dense tensor")
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _plain(value: object, where: str) -> object:
    """The same value as JSON will give it back; refuses what JSON would change without a word."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise InvalidInputError(
                    f"save_checkpoint: {where} has key {key!r}; keys must be strings"
                )
        return {key: _plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    raise InvalidInputError(
        f"save_checkpoint: {where} is {value!r} ({type(value).__name__}); use None, strings, "
        "booleans, finite Python numbers, lists and dicts, and put arrays into tensors"
    )


def _read(path: Path) -> bytes:
    if not path.exists():
        raise CheckpointError(f"checkpoint {path}: no such file; check the path, or save one first")
    if not path.is_file():  # a pipe or device would block or never end
        raise CheckpointError(f"checkpoint {path}: not a regular file; give the path of one")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read: {error.strerror}") from error


def _split(raw: bytes) -> tuple[dict[str, Any], memoryview]:
    """The parsed header and the data behind it. Raises ValueError if there is no sound header."""
    if len(raw) < 8:
        raise ValueError(f"only {len(raw)} bytes")
    length = int.from_bytes(raw[:8], "little")
    if not 0 < length <= min(_MAX_HEADER, len(raw) - 8):
        raise ValueError(f"a header of {length} bytes in a file of {len(raw)}")
    header = json.loads(raw[8 : 8 + length].decode(), parse_constant=_no_constant)
    if not isinstance(header, dict):
        raise ValueError("the header is not a JSON object")
    return header, memoryview(raw)[8 + length :]


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _what_else(raw: bytes) -> str | None:
    """What a foreign file looks like, told from its first bytes alone."""
    if raw[:2] == b"PK":
        return "it is a zip archive (torch.save? Stable-Baselines3?), not a checkpoint of ours"
    if raw[:1] == b"\x80" and raw[1:2] <= b"\x05":
        return "it is a pickle, which is never opened here, not a checkpoint of ours"
    return None


def _metadata(path: Path, header: dict[str, Any]) -> dict[str, str]:
    """The metadata of a file of ours that this version can read, all values strings."""
    metadata = header.get("__metadata__")
    if not isinstance(metadata, dict) or metadata.get("format") != _FORMAT:
        _refuse(path, "it is a safetensors file, but not a checkpoint of ours")
    if not all(isinstance(metadata.get(key), str) for key in ("version", "kind", "config")):
        _refuse(path, "its metadata is damaged")
    # isdecimal() alone admits digits of every alphabet; the length bounds the work of int().
    version = metadata["version"]
    if not (version.isascii() and version.isdecimal() and len(version) < 10 and int(version) > 0):
        _refuse(path, f"its version is {version!r}")
    if int(version) > VERSION:
        raise CheckpointError(
            f"checkpoint {path}: it has format version {version}, this code reads up to {VERSION}; "
            "update mbrl-bilevel to read it"
        )
    return metadata


def _digest(header: dict[str, Any], body: memoryview) -> str:
    """SHA-256 over the header (without the digest itself) and the data."""
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(body)
    return digest.hexdigest()
