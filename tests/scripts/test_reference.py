"""The rows of compare and continual, and the returns of train, are those of commit b042254.

``tests/data/reference/make.py`` made them. Rounding differs between processors: with vectors of 128,
256 and 512 bits these numbers agreed to 2e-5, returns to 1e-7. The tolerance of 1e-3 leaves room for
other machines, and any other draw, split, step or formula is far outside.

Trajectories of train are chaotic in principle: one plan or one clipped action that comes out otherwise
moves all that follows. Should a machine differ in the returns of train alone, look there first; steps and
structure are the same on any.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "scripts"))

# All that this test imports of the project.
import compare  # noqa: E402
import continual  # noqa: E402
import train  # noqa: E402
from _run import launch  # noqa: E402

REFERENCE = ROOT / "tests" / "data" / "reference"
SCRIPTS: dict[str, Any] = {"compare": compare, "continual": continual, "train": train}
#: What a run is stored with, besides its options: parts of its metrics.
RUNS: dict[str, dict[str, Any]] = {
    name: json.loads((REFERENCE / f"{name}.json").read_text()) for name in SCRIPTS
}


@pytest.fixture(autouse=True)
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the time of so small a run would go into its figures' files."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: None)


def require_alike(found: Any, stored: Any, where: str) -> None:
    """Whatever is stored is found: numbers to a tolerance, all else exactly; new names may be added."""
    if isinstance(stored, dict):
        assert isinstance(found, dict), where
        for name, value in stored.items():
            assert name in found, f"{where} has no {name}"
            require_alike(found[name], value, f"{where}/{name}")
    elif isinstance(stored, list):
        assert isinstance(found, list), where
        assert len(found) == len(stored), where
        for i, value in enumerate(stored):
            require_alike(found[i], value, f"{where}/{i}")
    elif isinstance(stored, float):
        assert found == pytest.approx(stored, rel=1e-3, abs=1e-4), where
    else:
        assert found == stored, where


@pytest.mark.parametrize(
    ("script", "name"), [(script, name) for script, runs in RUNS.items() for name in runs]
)
def test_a_run_finds_the_stored_numbers(script: str, name: str, tmp_path: Path) -> None:
    module, stored = SCRIPTS[script], RUNS[script][name]
    launch(module.Args, module.main, [*stored["options"], "--out", str(tmp_path / "run")])
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    for part in stored.keys() - {"options"}:
        require_alike(found[part], stored[part], f"{script} {name}: {part}")
