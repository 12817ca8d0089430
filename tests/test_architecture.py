"""Imports point down: each package belongs to a floor and imports its own package and lower floors only."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "dmray"
FLOORS = {
    "errors": 0, "fields": 0, "registry": 0,
    "specs": 1, "command_line": 1,
    "tasks": 2, "data": 2, "models": 2, "downloads": 2,
    "policies": 3,
    "training": 4, "rollout": 4, "tracking": 4,
    "sources": 5, "storage": 5,
    "execution": 6,
    "reporting": 7,
    "sweep": 8, "report": 8, "evaluate": 8, "doctor": 8, "data.__main__": 8,
    "status": 8, "stop": 8, "pause": 8, "resume": 8, "logs": 8, "submit": 8, "track": 8,
    "__main__": 9,
}  # fmt: skip
SIMULATORS = ("mujoco", "gymnasium", "envpool", "gym", "d4rl", "pybullet")
RIM = {"ray": "execution/on_ray", "mlflow": "tracking", "minari": "data", **dict.fromkeys(SIMULATORS, "rollout")}


def imports_of(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute"
            names.add(node.module or "")
    return names


def floor_name(module: Path) -> str:
    """The package, or the module where it stands on a floor of its own."""
    parts = module.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts) if ".".join(parts) in FLOORS else parts[0]


MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE or path.stem in FLOORS)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(module: Path) -> None:
    own = floor_name(module)
    if own == "testing":
        return
    for name in imports_of(module):
        if name.startswith("dmray."):
            other = name.split(".")[1]
            below = FLOORS[other] < FLOORS[own] or FLOORS[own] == 0
            assert other == own.split(".")[0] or below, f"{own} must not import {other}"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_ray_mlflow_and_simulators_stay_at_the_rim(module: Path) -> None:
    place = module.relative_to(PACKAGE).as_posix()
    for name in imports_of(module):
        home = RIM.get(name.split(".")[0])
        assert home is None or place.startswith((home, "testing")), f"{place} imports {name}, which belongs in {home}"


def test_every_module_has_a_floor() -> None:
    names = {floor_name(path) for path in PACKAGE.rglob("*.py")}
    assert names - {"__init__", "testing"} == set(FLOORS)


def test_importing_dmray_and_planning_load_neither_torch_nor_ray() -> None:
    code = "import sys, dmray.execution, dmray.sweep; print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
