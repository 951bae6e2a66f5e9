"""Checkpoints come back exactly, and nothing but a whole checkpoint of ours comes back at all."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mbrl_bilevel.base import checkpoint as module
from mbrl_bilevel.base.checkpoint import load_checkpoint, save_checkpoint
from mbrl_bilevel.base.errors import CheckpointError, InvalidInputError

CONFIG = {
    "obs_dim": 3,
    "lr": 1e-3,
    "name": "ü",
    "hidden": (8, 8),
    "nested": {"on": True, "x": None},
}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, "policy", {"w": torch.arange(6.0).view(2, 3), "n": np.array(7)}, CONFIG)
    return path


def edit_header(path: Path, **changes: Any) -> None:
    """Write other metadata into the file and leave all the rest, the checksum too."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header["__metadata__"].update(changes)
    text = json.dumps({k: v for k, v in header.items() if v is not None}).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.5, float("nan"), -float("inf")]),
        torch.tensor(3.0, dtype=torch.float64),
        torch.zeros(0, 4),
        torch.tensor([True, False]),
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
        torch.Generator().get_state(),
        torch.arange(12).view(3, 4).T,  # not contiguous
        torch.ones(2, requires_grad=True),
    ],
)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, tensor: torch.Tensor) -> None:
    save_checkpoint(tmp_path / "a", "k", {"t": tensor}, {})
    back = load_checkpoint(tmp_path / "a", "k").tensors["t"]
    assert back.dtype == tensor.dtype
    assert torch.equal(back, tensor) or torch.equal(back.isnan(), tensor.isnan())
    assert not back.requires_grad


def test_arrays_come_back_as_tensors(tmp_path: Path) -> None:
    arrays = {
        "big": np.array([1.0, 2.0], dtype=">f8"),
        "view": np.eye(3, dtype=np.float32)[:, ::-1],
    }
    save_checkpoint(tmp_path / "a", "k", arrays, {})
    back = load_checkpoint(tmp_path / "a", "k").tensors
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name].numpy(), array)


def test_tied_tensors_can_be_saved_and_config_comes_back(tmp_path: Path) -> None:
    shared = torch.ones(4)
    save_checkpoint(tmp_path / "new" / "a", "k", {"a": shared, "b": shared[:2]}, CONFIG)
    back = load_checkpoint(tmp_path / "new" / "a", "k")
    assert back.config == {**CONFIG, "hidden": [8, 8]}
    assert (back.kind, back.version) == ("k", module.VERSION)
    assert torch.equal(back.tensors["b"], torch.ones(2))


def test_the_same_content_is_the_same_file(tmp_path: Path, saved: Path) -> None:
    back = load_checkpoint(saved, "policy")
    save_checkpoint(tmp_path / "again", "policy", back.tensors, back.config)
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_every_flipped_byte_and_every_cut_is_found(saved: Path) -> None:
    whole = saved.read_bytes()
    for position in range(0, len(whole), 3):
        saved.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        # A change between two spellings of the same JSON would be harmless, none occurs here.
        with pytest.raises(CheckpointError) as caught:
            load_checkpoint(saved, "policy")
        assert "\n" not in str(caught.value)
        assert str(saved) in str(caught.value)
        saved.write_bytes(whole[:position])
        with pytest.raises(CheckpointError):
            load_checkpoint(saved, "policy")
    saved.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="checksum"):
        load_checkpoint(saved, "policy")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": "2"}, "version 2, this code reads up to 1; update"),
        ({"version": "-1"}, "its version is '-1'"),
        ({"version": "9" * 5000}, "its version is"),
        ({"version": 1}, "metadata is damaged"),
        ({"format": "other"}, "not a checkpoint of ours"),
        ({"config": '{"obs_dim": 4}'}, "checksum"),
        ({"kind": "agent"}, "checksum"),
        ({"sha256": "0" * 64}, "checksum"),
    ],
)
def test_edited_metadata_is_refused(saved: Path, changes: dict[str, Any], words: str) -> None:
    edit_header(saved, **changes)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(saved, "policy")


def test_another_kind_is_refused_by_name(saved: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds a 'policy', not a 'agent'; load it as"):
        load_checkpoint(saved, "agent")


class Bomb:
    """A pickle that leaves a file behind when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(("legacy", "word"), [(None, "pickle"), (True, "pickle"), (False, "zip")])
def test_pickles_are_named_and_never_opened(tmp_path: Path, legacy: bool | None, word: str) -> None:
    bomb, path = tmp_path / "went_off", tmp_path / "model.safetensors"
    if legacy is None:
        path.write_bytes(pickle.dumps(Bomb(bomb)))
    else:
        torch.save(Bomb(bomb), path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=word):
        load_checkpoint(path, "policy")
    assert not bomb.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"\xff" * 64,
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        (3).to_bytes(8, "little") + b"NaN",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
        (2**40).to_bytes(8, "little") + b"{}",
    ],
)
def test_rubbish_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(CheckpointError, match="restore a good copy"):
        load_checkpoint(tmp_path / "a", "policy")


def test_a_forged_checksum_does_not_get_bad_offsets_through(saved: Path) -> None:
    raw = saved.read_bytes()
    end = 8 + int.from_bytes(raw[:8], "little")
    header, body = json.loads(raw[8:end]), raw[end:]
    claimed = header["__metadata__"].pop("sha256")

    def digest() -> str:
        """Of the header without itself, its names in order, and the data."""
        return hashlib.sha256(json.dumps(header, sort_keys=True).encode() + body).hexdigest()

    assert digest() == claimed
    header["w"]["data_offsets"] = [0, 10**12]
    header["__metadata__"]["sha256"] = digest()
    text = json.dumps(header).encode()
    saved.write_bytes(len(text).to_bytes(8, "little") + text + body)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(saved, "policy")


def test_what_is_no_file_of_ours_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file; check the path"):
        load_checkpoint(tmp_path / "none", "policy")
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_checkpoint(tmp_path, "policy")
    os.mkfifo(tmp_path / "pipe")  # would block for ever
    with pytest.raises(CheckpointError, match="not a regular file"):
        load_checkpoint(tmp_path / "pipe", "policy")
    save_file({"w": torch.ones(2)}, tmp_path / "foreign")
    with pytest.raises(CheckpointError, match="not a checkpoint of ours"):
        load_checkpoint(tmp_path / "foreign", "policy")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"x": float("nan")}, "nan"),
        ({"x": [1, {"y": object()}]}, r"config\['x'\]\[1\]\['y'\]"),
        ({"x": {1: 2}}, "has key 1"),
        ({"x": np.float32(1)}, "finite Python numbers"),
        ({"x": Path("a")}, "use None, strings"),
    ],
)
def test_config_that_json_would_change_is_refused(
    tmp_path: Path, config: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidInputError, match=words):
        save_checkpoint(tmp_path / "a", "k", {}, config)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("__metadata__", torch.ones(1)),
        ("s", torch.eye(2).to_sparse()),
        ("o", np.array([object()])),
        ("o", np.array(["text"])),
    ],
)
def test_tensors_that_cannot_be_stored_are_refused(tmp_path: Path, name: str, tensor: Any) -> None:
    with pytest.raises(InvalidInputError, match=name):
        save_checkpoint(tmp_path / "a", "k", {name: tensor}, {})


def test_a_failed_save_keeps_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(saved, "policy", {"w": torch.zeros(9)}, {})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_require_checks_name_shape_and_dtype(saved: Path) -> None:
    back = load_checkpoint(saved, "policy")
    assert back.require("w", (None, 3), torch.float32).shape == (2, 3)
    assert back.require("n", ()).item() == 7
    wrong: list[Any] = [("v",), ("w", (3, 3)), ("w", (2, 3, None)), ("w", (2, 3), torch.float64)]
    for args in wrong:
        with pytest.raises(CheckpointError, match=repr(args[0])):
            back.require(*args)


def test_setting_checks_name_and_type(saved: Path) -> None:
    back = load_checkpoint(saved, "policy")
    assert back.setting("obs_dim", int) == 3
    as_float = back.setting("obs_dim", float)
    assert as_float == 3.0
    assert type(as_float) is float
    assert back.setting("nested", dict)["on"] is True
    with pytest.raises(CheckpointError, match="config 'name' is 'ü', expected int"):
        back.setting("name", int)
    with pytest.raises(CheckpointError, match="no 'missing'"):
        back.setting("missing", str)
