"""A million transitions train within 2 GB over the size of the data."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from faulting import ROOT

_TRAIN = """
import resource, sys
import numpy as np, torch
from mbrl_bilevel.models.dynamics import fit_dynamics
from mbrl_bilevel.training.settings import Schedule
from mbrl_bilevel.training.methods import get_method
from mbrl_bilevel.base.records import Transitions

torch.set_num_threads(1)
n, random = 1_000_000, np.random.default_rng(0)
obs = random.standard_normal((n, 17), dtype=np.float32)
action = random.standard_normal((n, 6), dtype=np.float32)
next_obs = np.float32(0.9) * obs
next_obs[:, :6] += np.float32(0.1) * action
never, t = np.zeros(n, bool), np.arange(n)
data = Transitions(obs, action, obs.sum(1), next_obs, never, never, t // 1000, t % 1000)
size = sum(column.nbytes for column in vars(data).values())
fit_dynamics(
    data, get_method(sys.argv[1]), generator=torch.Generator().manual_seed(0),
    schedule=Schedule(steps=40, evaluate_every=20),
)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print((peak - size) / 2**30)
"""


@pytest.mark.parametrize("method", ["nll", "bilevel-constant"])
@pytest.mark.skipif("FAULTS" not in os.environ, reason="takes half a minute: make faults")
def test_a_million_transitions_train_within_two_gigabytes(method: str) -> None:
    command = [sys.executable, "-c", _TRAIN, method]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    print(f"{method}: {float(out):.2f} GiB over the size of the data")
    assert float(out) < 2.0
