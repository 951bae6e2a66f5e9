"""docs/metrics.md has every name that runs write and agents log, each once."""

from __future__ import annotations

import json
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import KVWriter

from agents.planning_agent.agent import PlanningAgent
from agents.planning_agent.settings import PlanningSettings
from envs.tasks.make import make_env
from mbrl_bilevel.imagination.settings import Imagination
from mbrl_bilevel.training.settings import Schedule

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "tests" / "data" / "reference"
RESULTS = ROOT / "docs" / "results"

#: The metrics that stand for M in names such as forgetting_M.
MEASURED = ("rmse", "nll", "k_rmse", "return", "accuracy", "ece")


CELLS = re.findall(r"^\| (`[^|]*) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
#: The names in the first columns of the page's tables.
TOLD = [name for cell in CELLS for name in re.findall(r"`([^`]+)`", cell)]
#: The same, those that end in _M once for each metric.
NAMES = {re.sub("_M$", f"_{metric}", name) for name in TOLD for metric in MEASURED}


def stored(path: Path) -> Any:
    return json.loads(path.read_text())


def written() -> dict[str, set[str]]:
    """The names that each script wrote, by script: of the reference rows, and of published runs."""
    found: dict[str, set[str]] = {}
    for script, part in (("compare", "rows"), ("continual", "rows"), ("train", "returns")):
        runs = stored(REFERENCE / f"{script}.json").values()
        found[script] = {name for run in runs for row in run[part] for name in row}
    found["classify"] = {k for r in stored(RESULTS / "classify/metrics.json")["rows"] for k in r}
    bench = stored(RESULTS / "planning/speed-quiet.metrics.json")["rows"]
    found["bench"] = {name for row in bench for name in row}
    theory = stored(RESULTS / "theory/metrics.json")
    parts = ("rows", "moments")
    keys = {"part", "problem", "dim", "form", "solver", "repeat", *parts}
    found["theory"] = {k for p in parts for r in theory[p] for k in r} | theory.keys()
    found["theory"] -= keys
    found["train, the run"] = set(stored(RESULTS / "agents/reacher-0.metrics.json"))
    return found


def test_each_name_has_one_meaning() -> None:
    assert [name for name, count in Counter(TOLD).items() if count > 1] == []


@pytest.mark.parametrize(("script", "keys"), written().items())
def test_what_a_run_writes_is_explained(script: str, keys: set[str]) -> None:
    assert len(keys) > 3
    assert keys - NAMES == set(), script


class Names(KVWriter):
    """Keeps the names that are logged."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def write(self, key_values: dict[str, Any], key_excluded: Any, step: int = 0) -> None:
        self.seen |= key_values.keys()

    def close(self) -> None:
        """There is nothing to close."""


class Watched(BaseCallback):
    """Lets ``kept`` see what is logged."""

    def __init__(self, kept: Names) -> None:
        super().__init__()
        self.kept = kept

    def _on_training_start(self) -> None:
        self.logger.output_formats.append(self.kept)

    def _on_step(self) -> bool:
        return True


def test_what_an_agent_logs_is_explained() -> None:
    settings = PlanningSettings(
        method="bilevel",
        members=2,
        hidden=(8,),
        schedule=Schedule(steps=210, batch_size=32),
        learning_starts=100,
        refit_every=60,
        imagination=Imagination(2),
        updates_per_step=1,
        real_share="auto",
        rollouts_per_step=2,
    )
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [8]}}
    agent = PlanningAgent(make_env("Pendulum-v1"), settings, algorithm_kwargs=kwargs)
    kept = Names()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        agent.learn(420, Watched(kept), log_interval=1)
    groups = {name.partition("/")[0] for name in kept.seen}
    assert groups == {"model", "health", "time", "train", "rollout"}
    reports = {f"model/{name}" for name in NAMES}
    assert kept.seen - NAMES - reports == set()
