"""The tests on a device that is made in Python, in a process of their own: ``another_device.IN_USE`` says why."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = ["tests/agents/test_on_a_device.py", "tests/mbrl_bilevel/models/test_on_a_device.py"]


def test_what_runs_on_another_device() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist", *FILES],
        cwd=ROOT,
        env=os.environ | {"ANOTHER_DEVICE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    if " passed" not in done.stdout:
        pytest.skip("this PyTorch makes no devices in Python")
