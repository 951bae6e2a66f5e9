"""The house of docs/DESIGN.md: reads every import and holds the table of floors."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

#: The core, bottom floor first; within a floor a file may import only from those named before it.
FLOORS: dict[str, tuple[str, ...]] = {
    "F0": ("errors", "allocation", "atomic", "types", "linalg", "checkpoint"),
    "F1": (
        "data",
        "growing_folds",
        "row_folds",
        "calibration",
        "normaliser",
        "networks",
        "positive",
        "bounds",
        "distributions",
        "mixture",
        "scaled_policy",
        "policies",
        "warm_start",
        "inference",
        "tempered",
        "rewards",
        "kernel_reward",
        "shift",
        "open_loop",
    ),
    "F2": ("transforms", "estimators", "regularisers", "losses", "class_losses", "penalties"),
    "F3": (
        "objectives",
        "class_objectives",
        "bilevel",
        "implicit",
        "unrolled",
        "closed_form",
        "cross_fitted",
        "temperature",
        "class_temperature",
        "spread",
        "k_step",
        "function_space",
        "outer",
        "brute_force",
        "problems",
    ),
    "F4": ("fit",),
    "F5": (
        "methods",
        "class_methods",
        "regression",
        "classification",
        "dynamics",
        "dynamics_checkpoint",
        "tabular",
    ),
    "F6": (
        "model_env",
        "branches",
        "imagined_env",
        "scores",
        "evaluation",
        "statistics",
        "continual",
        "memory",
        "keeping",
        "continual_methods",
        "learner",
    ),
}
ORDER = [module for floor in FLOORS.values() for module in floor]
#: Pairs that never meet, although the order would let them.
STRANGERS = {("tabular", "dynamics")}
#: All that the environments may know of the core.
CORE_FOR_ENVS = {"errors", "types", "data"}
PACKAGES = ("mbrl_bilevel", "agents", "envs", "scripts")


def files() -> dict[str, Path]:
    """Dotted module name -> file, for all our packages ("agents" is agents/__init__.py)."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, source: str, ours: set[str]) -> set[str]:
    """The modules of ours that a file imports, also inside functions and under TYPE_CHECKING."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")[: -node.level]
                base = ".".join([*parents, base] if base else parents)
            names.update(f"{base}.{alias.name}" for alias in node.names)
    if name.startswith("scripts."):  # run as a file, a script finds its neighbours by bare name
        names |= {f"scripts.{n}" for n in names}
    resolved = {module for n in names if (module := resolve(n, ours)) is not None}
    return resolved - {name, "scripts"} if name.startswith("scripts.") else resolved - {name}


def resolve(dotted: str, ours: set[str]) -> str | None:
    """The longest of our module names at the start of ``a.b.c``; None if the name is not ours."""
    parts = dotted.split(".")
    while parts:
        candidate = ".".join(parts)
        if candidate in ours or candidate in PACKAGES:
            return candidate
        parts.pop()
    return None


def violations(name: str, imports: set[str]) -> list[str]:
    """What is wrong with these imports of this module, in words."""
    package, _, module = name.partition(".")
    found = []
    for target in sorted(imports):
        to_package, _, to_module = target.partition(".")
        why = None
        if to_package == "scripts" and package != "scripts":
            why = "nothing imports scripts"
        elif package == "mbrl_bilevel" and to_package in ("agents", "envs"):
            why = "the core knows nothing of agents or environments"
        elif {package, to_package} == {"agents", "envs"}:
            why = "agents and envs never meet; pass the rule or environment in"
        elif package == "envs" and to_package == "mbrl_bilevel" and to_module not in CORE_FOR_ENVS:
            why = f"envs may use only {sorted(CORE_FOR_ENVS)} of the core"
        elif package == to_package == "mbrl_bilevel" and module:
            why = core_violation(module, to_module)
        if why:
            found.append(f"{name} imports {target}: {why}")
    return found


def core_violation(module: str, target: str) -> str | None:
    if not target:
        return "inside the core, import from the file that defines the name"
    if (module, target) in STRANGERS:
        return "these two never import each other; share through a lower floor"
    if module in ORDER and target in ORDER and ORDER.index(target) >= ORDER.index(module):
        return f"{floor_of(target)} is not below {floor_of(module)} {module}"
    return None


def floor_of(module: str) -> str:
    return next(floor for floor, modules in FLOORS.items() if module in modules)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    found = files()
    assert "mbrl_bilevel.errors" in found  # the test looks at the right folder
    return {name: imported(name, path.read_text(), set(found)) for name, path in found.items()}


def test_every_core_file_has_a_floor(graph: dict[str, set[str]]) -> None:
    core = {name.partition(".")[2] for name in graph if name.startswith("mbrl_bilevel.")}
    homeless = sorted(core - set(ORDER))
    assert not homeless, (
        f"mbrl_bilevel/{homeless[0]}.py is on no floor: name it in FLOORS of {Path(__file__).name} "
        "above all that it imports, and in the table of the design document"
    )


def test_imports_point_downward(graph: dict[str, set[str]]) -> None:
    found = [line for name, imports in graph.items() for line in violations(name, imports)]
    assert not found, "\n" + "\n".join(found)


def test_nothing_goes_round_in_a_circle(graph: dict[str, set[str]]) -> None:
    # A package is its __init__.py, which may gather names from all its files.
    inner = {name: {t for t in targets if "." in t} for name, targets in graph.items()}
    try:
        TopologicalSorter(inner).prepare()
    except CycleError as error:
        pytest.fail(f"these files import each other: {' -> '.join(error.args[1])}")


def test_agents_is_ours() -> None:
    """An unrelated package has the same import name; it must not be the one that answers."""
    import agents

    assert agents.__file__ is not None
    assert Path(agents.__file__).resolve().is_relative_to(ROOT), (
        f"'import agents' found {agents.__file__}: uninstall the other package, "
        "or install this one with pip install --editable ."
    )


@pytest.mark.parametrize(
    ("name", "source", "wrong"),
    [
        ("mbrl_bilevel.types", "from mbrl_bilevel.errors import InvalidInputError", False),
        ("mbrl_bilevel.errors", "from mbrl_bilevel.types import Batch", True),
        ("mbrl_bilevel.data", "def f():\n    from mbrl_bilevel import fit", True),
        ("mbrl_bilevel.data", "from . import fit", True),
        ("mbrl_bilevel.data", "from .fit import fit", True),
        ("mbrl_bilevel.fit", "import mbrl_bilevel.data as d", False),
        ("mbrl_bilevel.fit", "from mbrl_bilevel import Batch", True),
        ("mbrl_bilevel.tabular", "from mbrl_bilevel.dynamics import step", True),
        ("mbrl_bilevel.fit", "import agents.mpc", True),
        ("agents.mpc", "from mbrl_bilevel.dynamics import Dynamics", False),
        ("agents.mpc", "from envs.rules import reward", True),
        ("envs.rules", "from agents import mpc", True),
        ("envs.rules", "from mbrl_bilevel.types import Rule", False),
        ("envs.rules", "from mbrl_bilevel.fit import fit", True),
        ("envs.rules", "from scripts._run import launch", True),
        ("scripts.train", "from _run import launch\nimport envs, agents.mpc", False),
    ],
)
def test_the_rules_bite(name: str, source: str, wrong: bool) -> None:
    ours = {f"mbrl_bilevel.{module}" for module in ORDER} | {
        "agents.mpc",
        "envs.rules",
        "scripts._run",
    }
    assert bool(violations(name, imported(name, source, ours))) is wrong
