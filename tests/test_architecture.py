"""Reads every import, and holds them against the table of floors in docs/design.md."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

DESIGN = ROOT / "docs" / "design.md"
#: All that the environments may know of the core.
CORE_FOR_ENVS = {"base", "data"}
PACKAGES = ("mbrl_bilevel", "agents", "envs", "scripts")


def floors() -> dict[str, int]:
    """Folder of the core -> its floor, as the page has them."""
    rows = re.findall(r"^\| (\d+) \| `mbrl_bilevel/(\w+)` \|", DESIGN.read_text(), re.MULTILINE)
    return {folder: int(floor) for floor, folder in rows}


FLOORS = floors()


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
        folder = to_module.partition(".")[0]
        why = None
        if to_package == "scripts" and package != "scripts":
            why = "nothing imports scripts"
        elif package == "mbrl_bilevel" and to_package in ("agents", "envs"):
            why = "the core knows nothing of agents or environments"
        elif {package, to_package} == {"agents", "envs"}:
            why = "agents and envs never meet; pass the rule or environment in"
        elif package == "envs" and to_package == "mbrl_bilevel" and folder not in CORE_FOR_ENVS:
            why = f"envs may use only {sorted(CORE_FOR_ENVS)} of the core"
        elif package == to_package == "mbrl_bilevel" and module:
            why = core_violation(module.partition(".")[0], to_module)
        if why:
            found.append(f"{name} imports {target}: {why}")
    return found


def core_violation(folder: str, target: str) -> str | None:
    """``target``: a dotted name within the core, "" the package itself."""
    there, _, file = target.partition(".")
    if not file:
        return "inside the core, import from the file that defines the name"
    if folder != there and FLOORS[there] >= FLOORS[folder]:
        return f"floor {FLOORS[there]} ({there}) is not below floor {FLOORS[folder]} ({folder})"
    return None


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    found = files()
    assert "mbrl_bilevel.base.errors" in found  # the test looks at the right folder
    return {name: imported(name, path.read_text(), set(found)) for name, path in found.items()}


def test_the_table_is_the_house() -> None:
    """Each folder of the core has a floor and each floor its folder; each file is named in its row."""
    core = ROOT / "mbrl_bilevel"
    there = {path.name for path in core.iterdir() if (path / "__init__.py").is_file()}
    assert there == set(FLOORS)
    page = DESIGN.read_text()
    for folder in there:
        (row,) = re.findall(rf"^\| \d+ \| `mbrl_bilevel/{folder}` \|.*$", page, re.MULTILINE)
        files = row.split("|")[4]
        for path in sorted((core / folder).glob("[!_]*.py")):
            assert re.search(rf"\b{path.stem}\b", files), (
                f"name {path.stem} in the row of mbrl_bilevel/{folder} of docs/design.md"
            )
    assert [path.name for path in core.glob("*.py")] == ["__init__.py"]


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


#: What the extra [scripts] brings: a library without it imports, but for these folders.
EXTRA = {"matplotlib", "optuna", "tensorboard", "tyro"}
NEED_EXTRA = ("mbrl_bilevel.studies.", "mbrl_bilevel.figures.")


def test_only_studies_and_figures_need_the_extra() -> None:
    needing = {
        name
        for name, path in files().items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for module in (
            [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module]
        )
        if (module or "").partition(".")[0] in EXTRA
    }
    assert {name for name in needing if name.startswith(NEED_EXTRA)}
    rest = {name for name in needing if not name.startswith((*NEED_EXTRA, "scripts."))}
    assert not rest


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
        ("mbrl_bilevel.base.records", "from mbrl_bilevel.base.errors import Bad", False),
        ("mbrl_bilevel.base.errors", "from mbrl_bilevel.data.splits import Batch", True),
        ("mbrl_bilevel.data.splits", "from mbrl_bilevel.policies.networks import MLP", True),
        ("mbrl_bilevel.data.splits", "def f():\n    from mbrl_bilevel.training import fit", True),
        ("mbrl_bilevel.data.splits", "from ..training import fit", True),
        ("mbrl_bilevel.data.splits", "from ..training.fit import fit", True),
        ("mbrl_bilevel.training.fit", "import mbrl_bilevel.data.splits as d", False),
        ("mbrl_bilevel.training.fit", "from mbrl_bilevel import Batch", True),
        ("mbrl_bilevel.training.fit", "from mbrl_bilevel.data import Batch", True),
        ("mbrl_bilevel.training.fit", "import agents.mpc", True),
        ("agents.mpc", "from mbrl_bilevel.training.fit import fit", False),
        ("agents.mpc", "from envs.known.endings import reward", True),
        ("envs.known.endings", "from agents import mpc", True),
        ("envs.known.endings", "from mbrl_bilevel.base.records import Rule", False),
        ("envs.known.endings", "from mbrl_bilevel.training.fit import fit", True),
        ("envs.known.endings", "from scripts.train import main", True),
        ("scripts.train", "from options.train import Args\nimport envs, agents.mpc", False),
    ],
)
def test_the_rules_bite(name: str, source: str, wrong: bool) -> None:
    ours = {f"mbrl_bilevel.{folder}" for folder in FLOORS} | set(files())
    assert bool(violations(name, imported(name, source, ours))) is wrong
