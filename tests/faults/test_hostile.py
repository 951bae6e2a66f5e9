"""Files with code in them are refused without running it; a saved agent acts the same anywhere."""

from __future__ import annotations

import gzip
import io
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faulting import ROOT, tiny_agent

from agents import MBPO, MPC, PlanningAgent
from envs.datasets.offline import load_minari
from envs.datasets.tables import load_table
from envs.tasks.make import make_env
from mbrl_bilevel.base.checkpoint import load_checkpoint
from mbrl_bilevel.base.errors import BilevelError

_NAMES = ("agent.safetensors", "agent.pt", "agent.zip", "table.csv", "table.npz")


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self._marker,)


def crafted(marker: Path) -> dict[str, bytes]:
    """Twenty ways to put a pickle into a file."""
    load, files = Payload(marker), {}
    for protocol in range(6):
        files[f"pickle {protocol}"] = pickle.dumps(load, protocol)
    raw = pickle.dumps(load)
    for name, zipped in (("torch zip", True), ("torch legacy", False)):
        buffer = io.BytesIO()
        torch.save({"a": load}, buffer, _use_new_zipfile_serialization=zipped)
        files[name] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, np.array([load] * 30, dtype=object))
    files["npy"] = buffer.getvalue()
    buffer = io.BytesIO()
    np.savez(buffer, y=np.array([load] * 30, dtype=object), x=np.arange(30))
    files["npz"] = buffer.getvalue()
    for name in ("data.pkl", "archive/data.pkl", "data", "y.npy"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr(name, raw)
        files[f"zip {name}"] = buffer.getvalue()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        entry = tarfile.TarInfo("pickle")
        entry.size = len(raw)
        tar.addfile(entry, io.BytesIO(raw))
    files["tar"] = buffer.getvalue()
    files["gzip"] = gzip.compress(raw)
    files["header of safetensors"] = len(raw).to_bytes(8, "little") + raw
    files["body of safetensors"] = (2).to_bytes(8, "little") + b"{}" + raw
    files["padded"] = b"\n" * 7 + raw
    files["doubled"] = raw + raw
    return files


def test_pickles_are_refused_unopened_under_every_name(tmp_path: Path) -> None:
    """20 files under 5 names each: 100, each given to every loader."""
    marker, env = tmp_path / "ran", make_env("Pendulum-v1")
    loaders: list[Any] = [
        lambda path: MPC.load(path, env),
        lambda path: MBPO.load(path, env),
        lambda path: PlanningAgent.load(path, env),
        lambda path: load_checkpoint(path, "planning agent"),
        lambda path: load_table(path, "y"),
        lambda path: load_minari(path),
        lambda path: load_minari(path.parent),
    ]
    files, tried = crafted(marker), 0
    assert len(files) == 20
    for content in files.values():
        for name in _NAMES:
            path = tmp_path / name
            path.write_bytes(content)
            for loader in loaders:
                with pytest.raises(BilevelError) as caught:
                    loader(path)
                assert "\n" not in str(caught.value)
            tried += 1
            assert path.read_bytes() == content
            path.unlink()
    assert tried == 100
    assert not marker.exists()
    pickle.loads(files["pickle 4"])
    assert marker.exists()  # the payload would have worked


_ACT = """
import sys, numpy as np, torch
torch.set_num_threads(1)
from agents.mpc import MPC
from envs.tasks.make import make_env
agent = MPC.load(sys.argv[1], make_env("Pendulum-v1"))
obs, state = np.linspace(-1, 1, 30, dtype=np.float32).reshape(10, 3), None
for row in obs:
    action, state = agent.predict(row, state, deterministic=True)
    print(action.tobytes().hex())
"""


def test_a_saved_agent_acts_bit_for_bit_the_same_in_a_fresh_process(tmp_path: Path) -> None:
    agent, path = tiny_agent(), tmp_path / "agent.safetensors"
    agent.save(path)
    state, ours = None, []
    for row in np.linspace(-1, 1, 30, dtype=np.float32).reshape(10, 3):
        action, state = agent.predict(row, state, deterministic=True)
        ours.append(action.tobytes().hex())
    command = [sys.executable, "-c", _ACT, str(path)]
    theirs = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert theirs.split() == ours
    assert len(set(ours)) > 3
