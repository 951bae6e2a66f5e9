"""``make faults`` runs every fault test at full length; ``make test`` a short part of each."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent))
sys.path.append(str(Path(__file__).resolve().parents[1] / "scripts"))  # my_task.py
sys.path.append(str(Path(__file__).resolve().parents[2] / "scripts"))
