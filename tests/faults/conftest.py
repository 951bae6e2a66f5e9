"""``make faults`` runs every fault test at full length; ``make test`` a short part of each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))  # my_task.py
sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))

from faulting import RUNS, go


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Each run undisturbed; no test may write here."""
    folder = tmp_path_factory.mktemp("whole")
    assert [go(name, folder / name) for name in RUNS] == [0] * len(RUNS)
    return {name: folder / name for name in RUNS}
