"""For all tests: one thread (tiny tensors lose time to more), and no deadlines on shared machines."""

from __future__ import annotations

import os

# Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
