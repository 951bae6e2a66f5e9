"""For all tests: one thread (tiny tensors lose time to more), and no deadlines on shared machines."""

from __future__ import annotations

import os
from collections.abc import Iterator

# Before torch is imported, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

from mbrl_bilevel.models import learned_ending
from mbrl_bilevel.training.settings import Schedule
from tests.another_device import IN_USE, make_known

torch.set_num_threads(1)
if IN_USE:
    make_known()
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

#: Folders where models only have to be fitted, well or not.
_ROUGH = ("agents", "faults", "scripts")


@pytest.fixture(scope="module", autouse=True)
def rough_endings(request: pytest.FixtureRequest) -> Iterator[None]:
    """A learned ending takes ten times the steps of the small models that it is fitted beside."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name in _ROUGH:
            patch.setattr(learned_ending, "SCHEDULE", Schedule(steps=30))
        yield


@pytest.fixture
def unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a tiny run, its figures' files take the longest."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, *args, **kwargs: None)
