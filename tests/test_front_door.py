"""The names that the three packages export, what importing them loads, and the examples of the README."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import agents
import envs
import mbrl_bilevel
from agents import ICEM, MPC
from mbrl_bilevel import Schedule

ROOT = Path(__file__).resolve().parents[1]
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)


def shown_to_type_checkers(package: Any) -> dict[str, str]:
    """Name -> its module, as the imports under TYPE_CHECKING say."""
    (block,) = (n for n in ast.parse(Path(package.__file__).read_text()).body if type(n) is ast.If)
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.module is not None
        for alias in node.names:
            assert alias.asname == alias.name
            found[alias.name] = node.module
    return found


@pytest.mark.parametrize("package", [mbrl_bilevel, agents, envs])
def test_what_is_exported_is_there_and_type_checkers_see_the_same(package: Any) -> None:
    shown = shown_to_type_checkers(package)
    assert sorted(shown) == package.__all__
    for name, module in shown.items():
        assert getattr(package, name) is getattr(importlib.import_module(module), name)
    assert {*package.__all__, "__name__"} <= set(dir(package))


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'agents' has no attribute 'PlaningAgent'"):
        agents.PlaningAgent  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'PlaningAgent'"):
        exec("from agents import PlaningAgent")


def test_importing_a_package_loads_no_torch() -> None:
    code = """
import sys
import mbrl_bilevel
assert not {"numpy", "torch", "gymnasium"} & set(sys.modules)
import agents
assert not {"numpy", "torch", "gymnasium"} & set(sys.modules)
import envs
import mujoco
assert mujoco.get_mju_user_warning() is not None
envs.make_env("Reacher-v5")
assert "torch" not in sys.modules
from agents import MPC
assert "torch" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.filterwarnings("ignore:Evaluation environment is not wrapped", "ignore:after .* steps")
def test_the_first_example_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it stands, but for a smaller model, shorter plans and fewer steps."""
    monkeypatch.chdir(tmp_path)
    small = {
        "members": 2,
        "hidden": (8,),
        "schedule": Schedule(steps=20),
        "planner": ICEM(horizon=2, population=8, iterations=1),
        "imagination": mbrl_bilevel.Imagination(particles=2),
        "learning_starts": 60,
        "value": None,
    }
    example = BLOCKS[0].replace("seed=0", "seed=0, **small").replace("learn(1000", "learn(100")
    assert example.count("small") == 1
    assert example.count("learn(100,") == 1
    left: dict[str, Any] = {"small": small}
    exec(example, left)
    mean, std = (float(n) for n in re.findall(r"-?\d+\.\d+", capsys.readouterr().out))
    assert -150.0 < mean < -1.0  # of 50 steps at a distance of 0 to about 2, and the torques
    assert std > 0.0
    agent = left["agent"]
    assert isinstance(agent, MPC)
    assert agent.num_timesteps == 100
    assert agent.settings.method == "bilevel-return"
    assert agent.rules.from_env == {"termination": "known"}
    never = agent.termination(*torch.zeros(3, 4, 10))
    assert never.shape == (4,)
    assert not never.any()


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_each_example_imports_what_is_there(block: str) -> None:
    for node in ast.parse(block).body:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.ImportFrom) and node.module == "my_robot":
            continue  # the user's own
        exec(ast.unparse(node), {})


def test_the_example_of_two_fits_wins_as_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (example,) = (block for block in BLOCKS if "without_outer" in block)
    exec(example, {})
    by_reward, by_likelihood = (float(line) for line in capsys.readouterr().out.splitlines())
    assert by_reward < 0.3 < 0.33 < by_likelihood
