"""``--help`` answers at once: no command imports anything heavy before its options are read."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
sys.path.append(str(SCRIPTS))  # where a script finds its neighbours
COMMANDS = sorted(path.stem for path in SCRIPTS.glob("*.py"))

HEAVY = (
    "torch",
    "mujoco",
    "gymnasium",
    "stable_baselines3",
    "matplotlib",
    "pandas",
    "sklearn",
    "scipy",
)

#: Runs a script as a file with --help, then says what was imported.
RUN = f"""
import json, runpy, sys
script = sys.argv[1]
sys.argv, sys.path[0] = [script, "--help"], {str(SCRIPTS)!r}
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as stop:
    assert not stop.code
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""


def test_the_commands_are_these() -> None:
    assert {"train", "compare", "study", "bench"} < set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing_heavy_and_lists_every_option(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(SCRIPTS / f"{name}.py")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=True,
    )
    *told, imported = done.stdout.strip().splitlines()
    assert json.loads(imported) == []
    text = "\n".join(told)
    options = importlib.import_module(f"options.{name}").Args
    for field in fields(options):
        if field.name not in ("file", "runs"):  # positional
            assert f"--{field.name.replace('_', '-')}" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_short(name: str) -> None:
    assert len((SCRIPTS / f"{name}.py").read_text().splitlines()) <= 200
