"""Imports point down: each package has a floor, and imports its own floor's package and lower floors only.

The rule holds for `from dmray import x`, for imports inside functions, between the modules of one package (no circles),
and for strings that name a module of dmray (entry points, loaders).
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.floors import COMMANDS, FLOORS

PACKAGE = Path(__file__).parent.parent / "dmray"
SIMULATORS = ("mujoco", "gymnasium", "envpool", "gym", "d4rl", "pybullet")
RIM = {
    "ray": "on_ray", "mlflow": "mlflow_mirror", "wandb": "trackers", "tensorboard": "trackers", "minari": "datasets",
    **dict.fromkeys(SIMULATORS, "rollout"),
}  # fmt: skip
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(module: Path) -> str:
    """dmray/specs/trial.py -> dmray.specs.trial; a package by its own name."""
    parts = module.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(module) for module in MODULES}


def imports_of(module: Path) -> Iterator[str]:
    """Every module that a file imports or names in a string, wherever in the file it stands."""
    tree = ast.parse(module.read_text())
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in NAMES else str(node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            named = re.fullmatch(r"(dmray(?:\.\w+)+)(?::\w+)?", node.value)
            if (
                named and named[1] in NAMES and named[1].removeprefix("dmray.") not in COMMANDS
            ):  # `python -m dmray.sweep`
                yield named[1]


def floor_name(module: str) -> str:
    """The package or the top-level module that a dotted name belongs to."""
    return module.split(".")[1]


IDS = [str(path.relative_to(PACKAGE)) for path in MODULES]


@pytest.mark.parametrize("module", MODULES, ids=IDS)
def test_imports_point_down(module: Path) -> None:
    if name_of(module) == "dmray" or floor_name(name_of(module)) == "testing":
        return
    own = floor_name(name_of(module))
    for name in imports_of(module):
        if name.startswith("dmray."):
            other = floor_name(name)
            assert other == own or FLOORS[other] < FLOORS[own], f"{own} must not import {other} ({name})"


def test_no_module_imports_itself_through_others() -> None:
    """No circle, inside packages neither; a package's `__init__` re-exports, so it is no part of any."""
    graph = {
        name_of(module): {name for name in imports_of(module) if name in NAMES}
        for module in MODULES
        if module.name != "__init__.py"
    }

    TopologicalSorter(graph).prepare()  # raises CycleError, which names a circle


@pytest.mark.parametrize("module", MODULES, ids=IDS)
def test_ray_mlflow_and_simulators_stay_at_the_rim(module: Path) -> None:
    place = module.relative_to(PACKAGE).as_posix()
    for name in imports_of(module):
        home = RIM.get(name.split(".")[0])
        assert home is None or place.startswith((home, "testing")), f"{place} imports {name}, which belongs in {home}"


def test_every_module_has_a_floor() -> None:
    assert {floor_name(name) for name in NAMES - {"dmray"}} - {"testing"} == set(FLOORS)


def test_a_rounded_number_is_never_shown_as_minus_zero() -> None:
    """The option z of a number's format: a normalized score at the minimum is 0.0, also just below it."""
    fixed = re.compile(r":[^:{}\"']*\.(?:\d|\{\w+\})f\b")
    found = [(path.name, spec) for path in MODULES for spec in fixed.findall(path.read_text(encoding="utf-8"))]
    assert len(found) > 50
    assert [each for each in found if "z" not in each[1]] == []


def test_importing_dmray_and_planning_load_neither_torch_nor_ray() -> None:
    code = "import sys, dmray.cli.sweep; print({'torch', 'ray', 'mlflow', 'wandb', 'tensorboard'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_no_test_module_imports_another_test_module() -> None:
    """What tests share is in modules without `test_` in their names; code in strings, for subprocesses, included."""
    tests = Path(__file__).parent
    imported = re.compile(r"(?:from|import) tests(?:\.\w+)*(?:\.| import )test_\w+")
    found = {
        f"{path.relative_to(tests)}: {line.strip()}"
        for path in tests.rglob("*.py")
        for line in path.read_text().splitlines()
        if imported.search(line)
    }
    assert found == set()
