"""Rows of another run's folder, read while it may still be writing them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The finished rows in ``folder``; none if there is no such run, no torn last line, no failures."""
    path = folder / "rows.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in rows if "failed" not in row]
